"""Trend following in pandas alone: long above the 200-day average, out below it, sized to 15 % volatility."""

import numpy as np
from backtesting.test import GOOG

YEAR = 252

prices = GOOG
close = prices["Close"]
returns = close.pct_change().fillna(0.0)

trend = close > close.rolling(200).mean()
volatility = returns.rolling(20).std() * np.sqrt(YEAR)
position = (0.15 / volatility).clip(upper=1.0).where(trend, 0.0).fillna(0.0)
# What is decided on a close earns from the next day on.
held = position.shift(1, fill_value=0.0)
earned = held * returns - held.diff().abs().fillna(0.0) * 0.001
equity = (1 + earned).cumprod()

metrics = {
    "sharpe_ratio": float(earned.mean() / earned.std() * np.sqrt(YEAR)),
    "annual_return": float(equity.iloc[-1] ** (YEAR / len(equity)) - 1),
    "max_drawdown": float((equity / equity.cummax() - 1).min()),
    "trades": int((trend & ~trend.shift(1, fill_value=False)).sum()),
}
signal = "LONG" if trend.iloc[-1] else "FLAT"
result = equity
print(metrics)
