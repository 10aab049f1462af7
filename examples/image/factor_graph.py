"""A graph of factors: what correlates is joined (networkx), the centre of each community votes, weighted by a fit
under constraints (scipy).

The fit sees the first half of the prices alone; the figures are those of the second.
"""

import networkx as nx
import numpy as np
import pandas as pd
from backtesting.test import GOOG
from scipy import optimize, stats
from scipy.cluster import hierarchy

YEAR = 252

prices = GOOG
close, volume = prices["Close"], prices["Volume"]
returns = close.pct_change()

factors = pd.DataFrame(
    {
        **{f"momentum_{days}": close.pct_change(days) for days in (5, 10, 20, 60, 120)},
        **{f"reversal_{days}": -(close / close.rolling(days).mean() - 1) for days in (3, 5, 10)},
        **{f"volatility_{days}": -returns.rolling(days).std() for days in (10, 20, 60)},
        **{f"volume_{days}": volume.rolling(days).mean() / volume.rolling(120).mean() for days in (5, 20)},
    }
).dropna()
ranks = factors.rolling(250).rank(pct=True).dropna() - 0.5
forward = returns.shift(-1).reindex(ranks.index).fillna(0.0)
half = len(ranks) // 2
fit, test = ranks.iloc[:half], ranks.iloc[half:]

graph = nx.Graph()
graph.add_nodes_from(ranks.columns)
correlation, _ = stats.spearmanr(fit.to_numpy())
for i, left in enumerate(ranks.columns):
    for j, right in enumerate(ranks.columns[:i]):
        if abs(correlation[i, j]) > 0.4:
            graph.add_edge(left, right, weight=float(abs(correlation[i, j])))
communities = nx.community.greedy_modularity_communities(graph, weight="weight")
central = nx.degree_centrality(graph)
chosen = sorted(max(sorted(community), key=central.get) for community in communities)
tree = hierarchy.linkage(np.clip(1 - np.abs(correlation[np.triu_indices_from(correlation, k=1)]), 0, None), "average")


def loss(weights: np.ndarray) -> float:
    """The Sharpe ratio of the weighted votes, as a loss, with a small price on large weights."""
    earned = np.tanh(fit[chosen].to_numpy() @ weights) * forward.iloc[:half].to_numpy()
    return float(-earned.mean() / (earned.std() + 1e-12) * np.sqrt(YEAR) + 0.01 * weights @ weights)


bounds = [(-2.0, 2.0)] * len(chosen)
fitted = optimize.minimize(loss, np.full(len(chosen), 0.5), method="L-BFGS-B", bounds=bounds)
weights = fitted.x

held = pd.Series(np.tanh(test[chosen].to_numpy() @ weights), index=test.index).clip(lower=0.0)
earned = held * forward.iloc[half:]
equity = (1 + earned).cumprod()

metrics = {
    "sharpe_ratio": float(earned.mean() / earned.std() * np.sqrt(YEAR)),
    "annual_return": float(equity.iloc[-1] ** (YEAR / len(equity)) - 1),
    "max_drawdown": float((equity / equity.cummax() - 1).min()),
    "communities": len(communities),
    "edges": graph.number_of_edges(),
    "tree_height": float(tree[-1, 2]),
    "p_value": float(stats.ttest_1samp(earned, 0.0).pvalue),
}
signal = {"exposure": float(held.iloc[-1]), "factors": chosen}
result = equity
print(metrics)
