"""A random forest and a logistic regression vote on tomorrow's direction, trained anew on each fold of the past."""

import numpy as np
import pandas as pd
from backtesting.test import GOOG
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score
from sklearn.model_selection import TimeSeriesSplit
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

YEAR = 252

prices = GOOG
close = prices["Close"]
returns = close.pct_change()
features = pd.DataFrame(
    {
        **{f"return_{days}": close.pct_change(days) for days in (1, 2, 5, 10, 20)},
        **{f"volatility_{days}": returns.rolling(days).std() for days in (5, 20)},
        "range": (prices["High"] - prices["Low"]) / close,
        "distance": close / close.rolling(50).mean() - 1,
    }
).dropna()
forward = returns.shift(-1).reindex(features.index).fillna(0.0)
target = (forward > 0).astype(int)

chance = pd.Series(0.5, index=features.index)
scores = []
for train, test in TimeSeriesSplit(n_splits=5).split(features):
    forest = RandomForestClassifier(n_estimators=60, max_depth=4, min_samples_leaf=20, random_state=7)
    linear = make_pipeline(StandardScaler(), LogisticRegression(C=0.1))
    votes = []
    for model in (forest, linear):
        model.fit(features.iloc[train], target.iloc[train])
        votes.append(model.predict_proba(features.iloc[test])[:, 1])
    chance.iloc[test] = np.mean(votes, axis=0)
    scores.append(accuracy_score(target.iloc[test], chance.iloc[test] > 0.5))

held = (chance > 0.51).astype(float)
earned = held * forward - held.diff().abs().fillna(0.0) * 0.0005
equity = (1 + earned).cumprod()

metrics = {
    "sharpe_ratio": float(earned.mean() / earned.std() * np.sqrt(YEAR)),
    "annual_return": float(equity.iloc[-1] ** (YEAR / len(equity)) - 1),
    "max_drawdown": float((equity / equity.cummax() - 1).min()),
    "accuracy": [float(score) for score in scores],
}
signal = {"action": "LONG" if held.iloc[-1] else "FLAT", "chance": float(chance.iloc[-1])}
result = equity
print(metrics)
