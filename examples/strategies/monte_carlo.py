"""How lucky was the backtest? A block bootstrap of a trend filter's daily returns.

The strategy holds the asset while it closes above its 100-day average. Its daily returns are drawn again, in blocks of
a month so that volatility keeps its clusters, into 2,000 alternative years.
"""

import numpy as np
import pandas as pd

PATHS = 2_000
DAYS = 252
BLOCK = 21

rng = np.random.default_rng(seed=42)

prices = pd.read_csv("/input/prices", index_col=0, parse_dates=True)
close = prices["Close"]
above = close > close.rolling(100).mean()
held = above.shift(1, fill_value=False).astype(float)
returns = (held * close.pct_change()).iloc[100:].to_numpy()
equity = np.cumprod(1 + returns)

# Each row is one alternative year: 12 blocks of 21 consecutive days, from random starts.
starts = rng.integers(0, len(returns) - BLOCK + 1, size=(PATHS, DAYS // BLOCK))
days = (starts[:, :, None] + np.arange(BLOCK)).reshape(PATHS, DAYS)
sampled = returns[days]
paths = np.cumprod(1 + sampled, axis=1)

finals = paths[:, -1] - 1
sharpes = sampled.mean(axis=1) / sampled.std(axis=1, ddof=1) * np.sqrt(DAYS)
peaks = np.maximum(np.maximum.accumulate(paths, axis=1), 1.0)
drawdowns = (paths / peaks - 1).min(axis=1)
tail = np.percentile(finals, 5)

metrics = {
    "sharpe_ratio": float(returns.mean() / returns.std(ddof=1) * np.sqrt(DAYS)),
    "annual_return": float(equity[-1] ** (DAYS / len(returns)) - 1),
    "max_drawdown": float((equity / np.maximum.accumulate(equity) - 1).min()),
    "trades": int((held.diff() > 0).sum()),
    "probability_of_loss": float((finals < 0).mean()),
    "value_at_risk_95": float(-tail),
    "expected_shortfall_95": float(-finals[finals <= tail].mean()),
    "sharpe_interval_90": np.percentile(sharpes, [5, 95]).round(4).tolist(),
}
signal = "LONG" if above.iloc[-1] else "CASH"
result = pd.DataFrame(
    np.percentile(paths, [5, 25, 50, 75, 95], axis=0).T,
    columns=["p05", "p25", "p50", "p75", "p95"],
    index=pd.RangeIndex(1, DAYS + 1, name="day"),
)

low, high = metrics["sharpe_interval_90"]
print(f"{PATHS:,} simulated years of {DAYS} days")
print(f"Median return          {np.median(finals):8.2%}")
print(f"Median max drawdown    {np.median(drawdowns):8.2%}")
print(f"Probability of a loss  {metrics['probability_of_loss']:8.2%}")
print(f"95 % value at risk     {metrics['value_at_risk_95']:8.2%}")
print(f"95 % exp. shortfall    {metrics['expected_shortfall_95']:8.2%}")
print(f"Sharpe ratio           {metrics['sharpe_ratio']:8.2f}  (90 % interval {low:.2f} to {high:.2f})")
