"""Turtle breakout: Donchian channels of 20 days in and 10 days out, positions sized by the average true range.

Each position risks 1 % of the equity over a stop two ATR away. Orders are decided on the close and filled at the next
day's open, so nothing is traded at a price known only afterwards.
"""

from dataclasses import dataclass, field
from datetime import date

import numpy as np
import pandas as pd

INITIAL_CASH = 100_000.0


@dataclass
class Position:
    side: int  # +1 long, -1 short
    shares: int
    entry_price: float
    entry_date: date
    stop: float


@dataclass
class Trade:
    side: int
    entry_date: date
    exit_date: date
    entry_price: float
    exit_price: float
    shares: int

    @property
    def profit(self) -> float:
        return self.side * self.shares * (self.exit_price - self.entry_price)


@dataclass
class TurtleTrader:
    entry_window: int = 20
    exit_window: int = 10
    atr_window: int = 20
    risk_per_trade: float = 0.01
    stop_atr: float = 2.0
    cash: float = INITIAL_CASH
    position: Position | None = None
    pending: int | None = None
    trades: list[Trade] = field(default_factory=list)

    def indicators(self, df: pd.DataFrame) -> pd.DataFrame:
        """Channels of the days before (hence the shift) and Wilder's average true range."""
        previous_close = df["Close"].shift(1)
        true_range = pd.concat(
            [df["High"] - df["Low"], (df["High"] - previous_close).abs(), (df["Low"] - previous_close).abs()], axis=1
        ).max(axis=1)
        return df.assign(
            entry_high=df["High"].rolling(self.entry_window).max().shift(1),
            entry_low=df["Low"].rolling(self.entry_window).min().shift(1),
            exit_high=df["High"].rolling(self.exit_window).max().shift(1),
            exit_low=df["Low"].rolling(self.exit_window).min().shift(1),
            atr=true_range.ewm(alpha=1 / self.atr_window, adjust=False, min_periods=self.atr_window).mean(),
        ).dropna()

    def order(self, bar) -> int | None:
        """The side wanted from tomorrow's open on: +1, -1, 0 to close the position, None to leave all as it is."""
        if self.position is None:
            if bar.Close > bar.entry_high:
                return 1
            if bar.Close < bar.entry_low:
                return -1
            return None
        if self.position.side > 0:
            return 0 if bar.Close < max(bar.exit_low, self.position.stop) else None
        return 0 if bar.Close > min(bar.exit_high, self.position.stop) else None

    def open_position(self, side: int, bar, atr: float) -> None:
        # Flat, the equity is the cash. No leverage: never more shares than the cash would pay for.
        shares = int(min(self.cash * self.risk_per_trade / (self.stop_atr * atr), self.cash / bar.Open))
        if shares > 0:
            stop = bar.Open - side * self.stop_atr * atr
            self.position = Position(side, shares, bar.Open, bar.Index.date(), stop)
            self.cash -= side * shares * bar.Open

    def close_position(self, bar) -> None:
        held = self.position
        if held is not None:
            self.cash += held.side * held.shares * bar.Open
            self.trades.append(
                Trade(held.side, held.entry_date, bar.Index.date(), held.entry_price, bar.Open, held.shares)
            )
            self.position = None

    def run(self, df: pd.DataFrame) -> pd.Series:
        """Trade bar by bar and return the equity at each close."""
        equity: dict[pd.Timestamp, float] = {}
        atr = 0.0
        for bar in self.indicators(df).itertuples():
            if self.pending == 0:
                self.close_position(bar)
            elif self.pending is not None:
                self.open_position(self.pending, bar, atr)
            value = self.position.side * self.position.shares * bar.Close if self.position else 0.0
            equity[bar.Index] = self.cash + value
            self.pending, atr = self.order(bar), bar.atr
        return pd.Series(equity, name="equity")


prices = pd.read_csv("/input/prices", index_col=0, parse_dates=True)
trader = TurtleTrader()
result = trader.run(prices)
daily = result.pct_change().dropna()

metrics = {
    "sharpe_ratio": float(np.sqrt(252) * daily.mean() / daily.std()),
    "annual_return": float((result.iloc[-1] / INITIAL_CASH) ** (252 / len(result)) - 1),
    "max_drawdown": float((result / result.cummax() - 1).min()),
    "trades": len(trader.trades),
    "profit_factor": sum(t.profit for t in trader.trades if t.profit > 0)
    / -sum(t.profit for t in trader.trades if t.profit < 0),
}
if trader.pending is not None:
    signal = {1: "BUY", -1: "SELL SHORT", 0: "CLOSE"}[trader.pending]
else:
    signal = "HOLD" if trader.position else "WAIT"

print(f"{'side':<6}{'entry':<12}{'exit':<12}{'shares':>7}{'in':>10}{'out':>10}{'profit':>12}")
for trade in trader.trades[-8:]:
    name = "long" if trade.side > 0 else "short"
    print(
        f"{name:<6}{trade.entry_date!s:<12}{trade.exit_date!s:<12}{trade.shares:>7}"
        f"{trade.entry_price:>10.2f}{trade.exit_price:>10.2f}{trade.profit:>12.2f}"
    )
print(f"Final equity: {result.iloc[-1]:,.2f} after {len(trader.trades)} trades, next order: {signal}")
