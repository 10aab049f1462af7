"""Momentum with a volatility filter: a strategy of the size that the loop writes."""

from __future__ import annotations

import json
import logging
import math
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any, Dict, List, Optional

import numpy as np
import pandas as pd

logging.basicConfig(level=logging.INFO)
logger = logging.getLogger(__name__)

LOOKBACK = 20
SLOW = 50
RISK_FREE = 0.02
FEE = 0.001425
TAX = 0.003


@dataclass
class Trade:
    """One round trip."""

    symbol: str
    opened: pd.Timestamp
    closed: Optional[pd.Timestamp] = None
    size: float = 0.0
    entry: float = 0.0
    exit: float = 0.0
    tags: List[str] = field(default_factory=list)

    @property
    def profit(self) -> float:
        return (self.exit - self.entry) * self.size

    @property
    def holding_days(self) -> int:
        if self.closed is None:
            return 0
        return (self.closed - self.opened).days


@dataclass
class Settings:
    fast: int = LOOKBACK
    slow: int = SLOW
    stop: float = 0.08
    take: float = 0.25
    max_positions: int = 10
    rebalance: str = "M"

    def __post_init__(self) -> None:
        if self.fast >= self.slow:
            raise ValueError(f"fast ({self.fast}) must be below slow ({self.slow})")


class Indicator:
    """Base of all indicators."""

    def __init__(self, name: str, window: int = LOOKBACK):
        self.name = name
        self.window = window
        self._cache: Dict[str, pd.Series] = {}

    def __repr__(self) -> str:
        return f"{self.__class__.__name__}({self.name!r}, {self.window})"

    def compute(self, close: pd.Series) -> pd.Series:
        raise NotImplementedError

    def __call__(self, close: pd.Series) -> pd.Series:
        key = f"{close.name}:{len(close)}"
        if key not in self._cache:
            self._cache[key] = self.compute(close)
        return self._cache[key]


class Sma(Indicator):
    def __init__(self, window: int):
        super().__init__("sma", window)

    def compute(self, close: pd.Series) -> pd.Series:
        return close.rolling(self.window).mean()


class Rsi(Indicator):
    def __init__(self, window: int = 14):
        super().__init__("rsi", window)

    def compute(self, close: pd.Series) -> pd.Series:
        delta = close.diff()
        gain = delta.clip(lower=0).ewm(alpha=1 / self.window, adjust=False).mean()
        loss = -delta.clip(upper=0).ewm(alpha=1 / self.window, adjust=False).mean()
        rs = gain / loss.replace(0, np.nan)
        return 100 - 100 / (1 + rs)


class Atr(Indicator):
    def compute_frame(self, df: pd.DataFrame) -> pd.Series:
        previous = df["close"].shift()
        ranges = pd.concat(
            [df["high"] - df["low"], (df["high"] - previous).abs(), (df["low"] - previous).abs()], axis=1
        )
        return ranges.max(axis=1).rolling(self.window).mean()


def make_prices(seed: int = 7, days: int = 750, symbols: int = 8) -> Dict[str, pd.DataFrame]:
    rng = np.random.default_rng(seed)
    index = pd.date_range("2021-01-01", periods=days, freq="B")
    out = {}
    for number in range(symbols):
        returns = rng.normal(0.0004, 0.018, days)
        close = 100 * np.exp(np.cumsum(returns))
        open_ = close * (1 + rng.normal(0, 0.002, days))
        high = np.maximum(open_, close) * (1 + np.abs(rng.normal(0, 0.004, days)))
        low = np.minimum(open_, close) * (1 - np.abs(rng.normal(0, 0.004, days)))
        volume = rng.integers(1_000, 100_000, days)
        frame = pd.DataFrame(
            {"open": open_, "high": high, "low": low, "close": close, "volume": volume}, index=index
        )
        out[f"SYM{number:02d}"] = frame
    return out


def signals(df: pd.DataFrame, settings: Settings) -> pd.Series:
    fast = Sma(settings.fast)(df["close"])
    slow = Sma(settings.slow)(df["close"])
    rsi = Rsi()(df["close"])
    long_ = (fast > slow) & (rsi < 70)
    flat = (fast < slow) | (rsi > 85)
    position = pd.Series(np.nan, index=df.index)
    position[long_] = 1.0
    position[flat] = 0.0
    return position.ffill().fillna(0.0)


def backtest(prices: Dict[str, pd.DataFrame], settings: Settings) -> Dict[str, Any]:
    trades: List[Trade] = []
    curves = []
    for symbol, df in prices.items():
        position = signals(df, settings).shift().fillna(0.0)
        change = position.diff().abs().fillna(0.0)
        returns = df["close"].pct_change().fillna(0.0) * position - change * (FEE + TAX / 2)
        curves.append(returns.rename(symbol))
        current: Optional[Trade] = None
        for day, wanted in position.items():
            price = float(df.at[day, "open"])
            if wanted > 0 and current is None:
                current = Trade(symbol, day, size=1_000 / price, entry=price)
            elif wanted == 0 and current is not None:
                current.closed, current.exit = day, price
                trades.append(current)
                current = None
    portfolio = pd.concat(curves, axis=1).mean(axis=1)
    return {"returns": portfolio, "trades": trades}


def measure(returns: pd.Series, trades: List[Trade]) -> Dict[str, float]:
    equity = (1 + returns).cumprod()
    years = len(returns) / 252
    growth = equity.iloc[-1] ** (1 / years) - 1 if years > 0 else 0.0
    volatility = returns.std() * math.sqrt(252)
    sharpe = (growth - RISK_FREE) / volatility if volatility else 0.0
    drawdown = (equity / equity.cummax() - 1).min()
    winners = [trade for trade in trades if trade.profit > 0]
    by_symbol = defaultdict(float)
    for trade in trades:
        by_symbol[trade.symbol] += trade.profit
    best = max(by_symbol, key=by_symbol.get) if by_symbol else None
    logger.info("best symbol: %s", best)
    return {
        "cagr": round(float(growth), 4),
        "volatility": round(float(volatility), 4),
        "sharpe": round(float(sharpe), 4),
        "max_drawdown": round(float(drawdown), 4),
        "trades": len(trades),
        "win_rate": round(len(winners) / len(trades), 4) if trades else 0.0,
        "mean_holding": float(np.mean([trade.holding_days for trade in trades])) if trades else 0.0,
    }


def main() -> Dict[str, float]:
    settings = Settings()
    prices = make_prices()
    outcome = backtest(prices, settings)
    figures = measure(outcome["returns"], outcome["trades"])
    for name, value in sorted(figures.items()):
        print(f"{name:>14}: {value:10.4f}")
    print(json.dumps(figures, indent=2))
    outcome["returns"].to_frame("returns").to_csv("/output/returns.csv")
    return figures


if __name__ == "__main__":
    metrics = main()
    result = metrics["sharpe"]
