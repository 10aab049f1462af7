"""Mean reversion on Bollinger bands, long and short.

Enter against a close more than two standard deviations away from its 20-day average, leave when it is back there.
"""

from dataclasses import asdict, dataclass

import numpy as np
import pandas as pd


@dataclass(frozen=True)
class Parameters:
    window: int = 20
    entry_z: float = 2.0
    exit_z: float = 0.0
    commission: float = 0.001


@dataclass
class Metrics:
    sharpe_ratio: float
    annual_return: float
    max_drawdown: float
    trades: int
    win_rate: float


def z_scores(close: pd.Series, window: int) -> pd.Series:
    """Distance of each close from its rolling average, in rolling standard deviations."""
    rolling = close.rolling(window)
    return (close - rolling.mean()) / rolling.std()


def positions(z: pd.Series, params: Parameters) -> pd.Series:
    """-1, 0 or +1 at each close: one leg each for long and short, carried forward between entry and exit."""
    long = pd.Series(np.nan, index=z.index)
    long[z >= -params.exit_z] = 0.0
    long[z < -params.entry_z] = 1.0
    short = pd.Series(np.nan, index=z.index)
    short[z <= params.exit_z] = 0.0
    short[z > params.entry_z] = -1.0
    return (long.ffill().fillna(0.0) + short.ffill().fillna(0.0)).rename("position")


def evaluate(frame: pd.DataFrame) -> Metrics:
    returns, equity, held = frame["returns"], frame["equity"], frame["held"]
    # Consecutive days with one position are one trade, numbered by the changes before them and won before commission.
    trade_id = held.ne(held.shift()).cumsum()[held != 0]
    per_trade = (1 + frame["gross"][held != 0]).groupby(trade_id).prod() - 1
    return Metrics(
        sharpe_ratio=float(returns.mean() / returns.std() * np.sqrt(252)),
        annual_return=float(equity.iloc[-1] ** (252 / len(equity)) - 1),
        max_drawdown=float((equity / equity.cummax() - 1).min()),
        trades=len(per_trade),
        win_rate=float((per_trade > 0).mean()),
    )


def main() -> tuple[pd.DataFrame, Metrics]:
    params = Parameters()
    data = pd.read_csv("/input/prices", index_col=0, parse_dates=True)
    frame = pd.DataFrame({"close": data["Close"], "z": z_scores(data["Close"], params.window)})
    frame["position"] = positions(frame["z"], params)
    frame["held"] = frame["position"].shift(1, fill_value=0.0)
    frame["gross"] = frame["held"] * frame["close"].pct_change().fillna(0.0)
    frame["returns"] = frame["gross"] - frame["held"].diff().abs().fillna(0.0) * params.commission
    frame["equity"] = (1 + frame["returns"]).cumprod()
    return frame, evaluate(frame)


if __name__ == "__main__":
    result, performance = main()
    metrics = asdict(performance)
    last = result.iloc[-1]
    signal = {1: "LONG", 0: "FLAT", -1: "SHORT"}[int(last["position"])]
    report = (
        f"Mean reversion, {result.index[0]:%Y-%m-%d} to {result.index[-1]:%Y-%m-%d}: {performance.trades} trades, "
        f"{performance.win_rate:.0%} of them won, {performance.annual_return:.2%} a year at a Sharpe ratio of "
        f"{performance.sharpe_ratio:.2f}. The last close is {last['z']:+.2f} standard deviations from its average."
    )
    print(report)
    for name, value in metrics.items():
        print(f"{name:>15}: {value:.4f}" if isinstance(value, float) else f"{name:>15}: {value}")
