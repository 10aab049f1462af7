import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import networkx as nx
import numpy as np
import pandas as pd
import talib
from backtesting import Backtest, Strategy
from backtesting.lib import crossover
from backtesting.test import SMA
from scipy import optimize, stats
from scipy.signal import savgol_filter
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LinearRegression
from sklearn.model_selection import TimeSeriesSplit, train_test_split
from sklearn.preprocessing import StandardScaler
from sklearn.pipeline import make_pipeline

try:
    import seaborn as sns
except ImportError:
    sns = None

if sns is not None and talib:
    sns.set_theme()


class SmaCross(Strategy):
    n1 = 10
    n2 = 20

    def init(self):
        close = self.data.Close
        self.sma1 = self.I(SMA, close, self.n1)
        self.sma2 = self.I(talib.SMA, close, self.n2)

    def next(self):
        if crossover(self.sma1, self.sma2):
            self.buy(size=0.5)
        elif crossover(self.sma2, self.sma1):
            self.position.close()


df = pd.read_csv("/input/prices.csv", index_col=0, parse_dates=True)
bt = Backtest(df, SmaCross, cash=10_000, commission=0.002)
stats_ = bt.run()
best = bt.optimize(n1=range(5, 30, 5), n2=range(10, 70, 5), maximize="Equity Final [$]", constraint=lambda p: p.n1 < p.n2)
print(stats_["Sharpe Ratio"], best._strategy)
rsi = talib.RSI(df["Close"].values, timeperiod=14)
macd, signal, hist = talib.MACD(df["Close"])
upper, middle, lower = talib.BBANDS(df["Close"], timeperiod=20, nbdevup=2, nbdevdn=2, matype=0)
fitted = optimize.minimize(lambda x: (x**2).sum(), x0=np.ones(3), method="Nelder-Mead")
print(stats.zscore(df["Close"]), stats.norm.cdf(0.5), savgol_filter(df["Close"], 11, 3))
model = make_pipeline(StandardScaler(), RandomForestClassifier(n_estimators=100, random_state=0))
for train, test in TimeSeriesSplit(5).split(df):
    model.fit(df.iloc[train][["Close"]], df.iloc[train]["Close"].diff() > 0)
    print(model.score(df.iloc[test][["Close"]], df.iloc[test]["Close"].diff() > 0))
graph = nx.Graph()
graph.add_edge("a", "b", weight=1)
print(nx.pagerank(graph), nx.minimum_spanning_tree(graph))
fig, ax = plt.subplots(figsize=(8, 4))
ax.plot(df.index, df["Close"], label="close")
ax.legend()
fig.savefig("/output/plot.png", dpi=100)
plt.savefig("/output/plot2.png")
plt.close(fig)
plt.rcParams["figure.dpi"] = 100
print(pd.__version__, np.__version__)
from matplotlib.path import Path

print(Path([(0, 0), (1, 1)]), memoryview(b"x").nbytes)
