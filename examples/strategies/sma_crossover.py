"""SMA crossover strategy: long while the fast moving average is above the slow one, flat otherwise."""

import numpy as np
import pandas as pd


class SMACrossoverStrategy:
    """Simple moving average crossover, long only."""

    def __init__(self, data: pd.DataFrame, fast: int = 20, slow: int = 50, commission: float = 0.001):
        self.data = data.copy()
        self.fast = fast
        self.slow = slow
        self.commission = commission

    def generate_signals(self) -> pd.DataFrame:
        """Add the averages, the position wanted at each close, and its changes (+1 buy, -1 sell)."""
        close = self.data["Close"]
        self.data["SMA_fast"] = close.rolling(self.fast).mean()
        self.data["SMA_slow"] = close.rolling(self.slow).mean()
        self.data["position"] = (self.data["SMA_fast"] > self.data["SMA_slow"]).astype(int)
        self.data["order"] = self.data["position"].diff().fillna(0).astype(int)
        return self.data

    def backtest(self) -> pd.DataFrame:
        """Hold yesterday's position today, so that no return is earned on a price not yet seen."""
        held = self.data["position"].shift(1, fill_value=0)
        cost = held.diff().abs().fillna(0) * self.commission
        self.data["strategy_return"] = held * self.data["Close"].pct_change().fillna(0) - cost
        self.data["equity"] = (1 + self.data["strategy_return"]).cumprod()
        return self.data

    def performance(self) -> dict:
        returns = self.data["strategy_return"]
        equity = self.data["equity"]
        return {
            "sharpe_ratio": float(np.sqrt(252) * returns.mean() / returns.std()),
            "annual_return": float(equity.iloc[-1] ** (252 / len(equity)) - 1),
            "max_drawdown": float((equity / equity.cummax() - 1).min()),
            "trades": int((self.data["order"] == 1).sum()),
        }


prices = pd.read_csv("/input/prices", index_col=0, parse_dates=True)

strategy = SMACrossoverStrategy(prices)
signals = strategy.generate_signals()
strategy.backtest()

for date, row in signals[signals["order"] != 0].tail(8).iterrows():
    side = "BUY" if row["order"] > 0 else "SELL"
    print(f"Signal: {side} at {row['Close']:.2f} on {date:%Y-%m-%d}")

metrics = strategy.performance()
signal = "LONG" if signals["position"].iloc[-1] else "FLAT"
result = strategy.data[["Close", "SMA_fast", "SMA_slow", "position", "equity"]]

print(f"Sharpe Ratio:  {metrics['sharpe_ratio']:.2f}")
print(f"Annual Return: {metrics['annual_return']:.2%}")
print(f"Max Drawdown:  {metrics['max_drawdown']:.2%}")
