"""RSI strategy with an honest bug: it reads a column that the price file does not have, and ends in a KeyError."""

import pandas as pd


def relative_strength_index(close: pd.Series, period: int = 14) -> pd.Series:
    delta = close.diff()
    gain = delta.clip(lower=0).ewm(alpha=1 / period, adjust=False).mean()
    loss = (-delta).clip(lower=0).ewm(alpha=1 / period, adjust=False).mean()
    return 100 - 100 / (1 + gain / loss)


data = pd.read_csv("/input/prices", index_col=0, parse_dates=True)
print(f"Loaded {len(data)} days of prices")

# The file's column is "Close".
rsi = relative_strength_index(data["Adj Close"])
signal = "BUY" if rsi.iloc[-1] < 30 else "SELL" if rsi.iloc[-1] > 70 else "HOLD"
metrics = {"rsi": float(rsi.iloc[-1])}
