"""A vote of TA-Lib's indicators: RSI, MACD, Bollinger bands and ADX; long while the trend is strong and two agree."""

import numpy as np
import pandas as pd
import talib
from backtesting.test import GOOG

YEAR = 252

prices = GOOG.astype(float)
high, low, close = (prices[name].to_numpy() for name in ("High", "Low", "Close"))

rsi = talib.RSI(close, timeperiod=14)
macd, macd_signal, _ = talib.MACD(close, fastperiod=12, slowperiod=26, signalperiod=9)
upper, middle, lower = talib.BBANDS(close, timeperiod=20, nbdevup=2.0, nbdevdn=2.0)
adx = talib.ADX(high, low, close, timeperiod=14)
atr = talib.ATR(high, low, close, timeperiod=14)
hammers = talib.CDLHAMMER(prices["Open"].to_numpy(), high, low, close)

votes = (rsi > 50).astype(int) + (macd > macd_signal).astype(int) + (close > middle).astype(int)
wanted = pd.Series((votes >= 2) & (adx > 15), index=prices.index)
size = pd.Series(np.clip(0.01 / (atr / close), 0.0, 1.0), index=prices.index).fillna(0.0)

held = (size * wanted).shift(1, fill_value=0.0)
earned = held * prices["Close"].pct_change().fillna(0.0) - held.diff().abs().fillna(0.0) * 0.0005
equity = (1 + earned).cumprod()

metrics = {
    "sharpe_ratio": float(earned.mean() / earned.std() * np.sqrt(YEAR)),
    "annual_return": float(equity.iloc[-1] ** (YEAR / len(equity)) - 1),
    "max_drawdown": float((equity / equity.cummax() - 1).min()),
    "trades": int((wanted & ~wanted.shift(1, fill_value=False)).sum()),
    "hammers": int((hammers != 0).sum()),
}
signal = {"action": "LONG" if wanted.iloc[-1] else "FLAT", "rsi": float(rsi[-1]), "adx": float(adx[-1])}
result = pd.DataFrame({"rsi": rsi, "adx": adx, "equity": equity})
print(metrics)
