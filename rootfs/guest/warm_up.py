"""The warm-up of the pool's zygote and slots: touches what a strategy will, in the sizes that it will.

What it touches is each slot's own from then on, 4 KiB a page: it does what nearly all strategies do, and nothing more.
"""

try:
    import numpy as np
    import pandas as pd
except ImportError:
    np = pd = None

if pd is not None:
    rows = 500
    steps = np.sin(np.arange(rows) / 7.0) + np.cos(np.arange(rows) / 31.0)
    index = pd.date_range("2020-01-01", periods=rows, freq="D")
    data = pd.DataFrame({"open": 100 + steps, "close": 100 + steps.cumsum() / 10, "volume": np.arange(rows)}, index=index)
    data["fast"] = data["close"].rolling(10).mean()
    data["slow"] = data["close"].rolling(window=30).mean()
    data["position"] = np.where(data["fast"] > data["slow"], 1.0, 0.0)
    data["signal"] = (data["fast"] > data["slow"]).astype(int).diff().fillna(0)
    walk = pd.Series(100 * np.exp(np.cumsum(np.random.default_rng(7).normal(0, 0.01, rows))))
    trend = (walk.rolling(10).mean() > walk.rolling(30).mean()).astype(float).shift(1).fillna(0)
    data["noise"] = (np.log(walk).diff().fillna(0) * trend).to_numpy()
    returns = data["close"].pct_change().fillna(0.0)
    strategy = returns * data["position"].shift(1).fillna(0)
    equity = (1 + strategy).cumprod()
    drawdown = equity / equity.cummax() - 1
    deviation = strategy.std()
    sharpe = float(strategy.mean() / deviation * np.sqrt(252)) if deviation > 0 else 0.0
    result = {
        "total_return": float(equity.iloc[-1] - 1),
        "max_drawdown": float(drawdown.min()),
        "sharpe": sharpe,
        "trades": int((data["signal"] != 0).sum()),
    }
else:
    result = {"value": sum(i * i for i in range(1000)), "text": f"{1.5:.2f}", "list": sorted([3, 1, 2])}

metrics = {"total": 1.0, "count": 1}


def describe(values):
    """A function, a class and an exception, as scripts have them."""
    try:
        return {str(key): value for key, value in values.items() if value is not None}["absent"]
    except KeyError:
        return f"{len(values)} values"


report = describe(result)
