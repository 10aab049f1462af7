"""RSI strategy in plain Python: no pandas, no numpy, no input file, only the standard library.

The prices are 250 daily closes of GOOG, 2012-03-02 to 2013-03-01. Buy when Wilder's RSI crosses up through 35, sell
when it crosses down through 65, one position at a time, long only.
"""

import itertools
import json
import math
import statistics
from collections import deque
from dataclasses import dataclass
from datetime import date

FIRST_DAY = date(2012, 3, 2)
LAST_DAY = date(2013, 3, 1)
PRICES = """
    621.25 614.25 604.96 606.80 607.14 600.25 605.15 617.78 615.99 621.13
    625.04 633.98 633.49 639.98 646.05 642.59 649.33 647.02 655.76 648.41
    641.24 646.92 642.62 635.15 632.32 630.84 626.86 635.96 651.01 624.60
    606.07 609.57 607.45 599.30 596.06 597.60 601.27 609.72 615.47 614.98
    604.85 604.43 607.26 611.02 596.97 607.55 612.79 609.15 613.66 605.23
    604.00 611.11 628.93 623.05 600.40 614.11 600.80 609.46 603.66 591.53
    594.34 588.23 580.86 570.98 578.59 570.41 580.57 578.23 580.45 568.50
    565.10 561.09 559.05 564.51 570.85 581.53 577.51 565.21 571.48 560.70
    564.68 569.30 564.31 580.07 580.47 587.83 595.92 585.98 586.01 581.70
    571.19 570.48 576.52 574.92 576.73 580.76 593.06 610.82 615.51 607.57
    607.99 613.36 634.96 632.30 632.97 632.68 628.75 641.33 642.82 640.54
    642.23 642.35 642.00 660.01 668.66 667.54 672.87 677.14 675.54 669.51
    677.18 676.80 678.63 669.22 677.25 688.01 681.68 685.09 681.04 680.72
    699.40 706.15 700.77 692.19 690.88 706.04 709.68 709.98 718.28 727.50
    728.12 733.99 749.38 749.16 753.46 756.50 754.50 761.78 756.99 762.50
    768.05 767.65 757.84 744.09 744.56 751.48 744.75 740.98 744.70 755.49
    695.00 681.79 678.67 680.35 677.30 677.76 675.15 680.30 687.59 687.92
    682.96 681.72 667.12 652.29 663.03 665.90 659.05 652.55 647.26 647.18
    668.21 669.97 665.87 667.97 661.15 670.71 683.67 691.89 698.37 695.25
    691.03 687.82 691.13 684.21 685.42 696.88 697.56 702.70 701.96 720.78
    721.07 720.11 722.36 715.63 709.50 708.87 706.29 700.01 707.38 723.25
    723.67 737.97 734.75 733.30 738.12 741.48 739.99 723.25 724.93 715.19
    711.32 704.51 702.87 741.50 754.21 753.67 750.73 753.68 753.83 755.69
    775.60 759.02 765.74 770.17 773.95 785.37 782.42 780.70 782.86 787.82
    792.89 806.85 792.46 795.53 799.71 790.77 790.13 799.78 801.20 806.19
"""
CLOSES = [float(price) for price in PRICES.split()]

PERIOD = 14
BUY_ABOVE = 35.0
SELL_BELOW = 65.0
TRADING_DAYS = 252


@dataclass(frozen=True)
class Trade:
    """A closed trade; days count from the first close."""

    opened: int
    closed: int
    entry_price: float
    exit_price: float

    @property
    def profit(self) -> float:
        return self.exit_price / self.entry_price - 1


def rsi(closes: list[float], period: int = PERIOD) -> list[float | None]:
    """Wilder's relative strength index of each close; None until `period` changes have been seen."""
    values: list[float | None] = [None] * len(closes)
    changes = [after - before for before, after in itertools.pairwise(closes)]
    gain = sum(max(change, 0.0) for change in changes[:period]) / period
    loss = sum(max(-change, 0.0) for change in changes[:period]) / period
    for day in range(period, len(closes)):
        if day > period:
            change = changes[day - 1]
            gain = (gain * (period - 1) + max(change, 0.0)) / period
            loss = (loss * (period - 1) + max(-change, 0.0)) / period
        values[day] = 100.0 if loss == 0 else 100 - 100 / (1 + gain / loss)
    return values


def backtest(closes: list[float], index: list[float | None]) -> tuple[list[int], list[Trade]]:
    """The position held after each close, and the trades closed by then."""
    positions: list[int] = []
    trades: list[Trade] = []
    opened: int | None = None
    recent: deque[float | None] = deque(maxlen=2)
    for day, value in enumerate(index):
        recent.append(value)
        before = recent[0]
        if before is not None and value is not None:
            if opened is None and before <= BUY_ABOVE < value:
                opened = day
                print(f"day {day:>3}: BUY  at {closes[day]:.2f} (RSI {value:.1f})")
            elif opened is not None and before >= SELL_BELOW > value:
                trades.append(Trade(opened, day, closes[opened], closes[day]))
                print(f"day {day:>3}: SELL at {closes[day]:.2f} (RSI {value:.1f}), {trades[-1].profit:+.2%}")
                opened = None
        positions.append(0 if opened is None else 1)
    return positions, trades


index = rsi(CLOSES)
positions, trades = backtest(CLOSES, index)

# The position held after one close earns the change to the next.
days = itertools.pairwise(CLOSES)
returns = [held * (after / before - 1) for held, (before, after) in zip(positions[:-1], days, strict=True)]
equity = list(itertools.accumulate(returns, lambda value, change: value * (1 + change), initial=1.0))
peaks = list(itertools.accumulate(equity, max))

metrics = {
    "sharpe_ratio": statistics.mean(returns) / statistics.stdev(returns) * math.sqrt(TRADING_DAYS),
    "annual_return": equity[-1] ** (TRADING_DAYS / len(returns)) - 1,
    "max_drawdown": min(value / peak - 1 for value, peak in zip(equity, peaks, strict=True)),
    "trades": len(trades),
}
signal = "LONG" if positions[-1] else "FLAT"
result = equity
report = json.dumps(
    {
        "from": FIRST_DAY.isoformat(),
        "to": LAST_DAY.isoformat(),
        "rsi": round(index[-1] or 0.0, 2),
        "buy_and_hold": round(CLOSES[-1] / CLOSES[0] - 1, 4),
        "trades": [{"days": trade.closed - trade.opened, "profit": round(trade.profit, 4)} for trade in trades],
    }
)
print(f"{(LAST_DAY - FIRST_DAY).days} calendar days, {len(trades)} closed trades, position now: {signal}")
