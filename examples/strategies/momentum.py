"""Time-series momentum, rebalanced monthly and scaled to a volatility target.

Each month end the strategy looks at the return of the past twelve months without the last one ("12-1" momentum). If it
is positive it holds the asset, sized for an expected volatility of 20 % a year, and cash otherwise.
"""

from typing import Final

import numpy as np
import pandas as pd

TRADING_DAYS: Final = 252
LOOKBACK: Final = 252
SKIP: Final = 21
TARGET_VOLATILITY: Final = 0.20


def momentum_score(close: pd.Series) -> pd.Series:
    """12-1 momentum: the price one month ago over the price twelve months ago, minus one."""
    return close.shift(SKIP) / close.shift(LOOKBACK) - 1.0


def target_weights(close: pd.Series) -> pd.Series:
    """Weight in [0, 1] wanted at each close; it changes only at month ends."""
    volatility = close.pct_change().ewm(span=63, min_periods=63).std() * np.sqrt(TRADING_DAYS)
    wanted = (TARGET_VOLATILITY / volatility).clip(upper=1.0).where(momentum_score(close) > 0, 0.0)
    month = pd.Series(close.index.month, index=close.index)
    # The last day of the data is no month end until the next month has begun.
    month_end = month.ne(month.shift(-1)) & month.shift(-1).notna()
    return wanted.where(month_end).ffill().fillna(0.0)


def max_drawdown(equity: pd.Series) -> float:
    return float((equity / equity.cummax() - 1.0).min())


df = pd.read_csv("/input/prices", index_col=0, parse_dates=True)
close = df["Close"]

weights = target_weights(close)
held = weights.shift(1, fill_value=0.0)
turnover = held.diff().abs().fillna(0.0)
strategy_returns = held * close.pct_change().fillna(0.0) - turnover * 0.0005
equity = (1.0 + strategy_returns).cumprod().rename("equity")

# The months in which the position was opened from cash.
entries = (weights > 0) & (weights.shift(1, fill_value=0.0) == 0)

# numpy scalars are collected like plain numbers.
metrics = {
    "sharpe_ratio": strategy_returns.mean() / strategy_returns.std() * np.sqrt(TRADING_DAYS),
    "annual_return": equity.iloc[-1] ** (TRADING_DAYS / len(equity)) - 1.0,
    "max_drawdown": max_drawdown(equity),
    "trades": entries.sum(),
    "average_exposure": held.mean(),
}
signal = {
    "action": "HOLD LONG" if weights.iloc[-1] > 0 else "STAY IN CASH",
    "weight": round(float(weights.iloc[-1]), 4),
    "momentum": round(float(momentum_score(close).iloc[-1]), 4),
}
result = equity

by_year = (1.0 + strategy_returns).groupby(strategy_returns.index.year).prod() - 1.0
print("Year      Return")
for year, value in by_year.items():
    print(f"{year}   {value:9.2%}")
print(f"\nCurrent signal: {signal['action']} (weight {signal['weight']:.2f}, 12-1 momentum {signal['momentum']:+.1%})")
