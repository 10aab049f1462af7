"""A run of the package `backtesting`, on the GOOG prices that it ships: no input, no network."""

import talib
from backtesting import Backtest, Strategy
from backtesting.lib import crossover
from backtesting.test import GOOG, SMA


class Crossover(Strategy):
    """Long on the cross of two averages while RSI is not overbought; a stop at 8 % below."""

    fast = 10
    slow = 30

    def init(self):
        close = self.data.Close
        self.fast_line = self.I(SMA, close, self.fast)
        self.slow_line = self.I(SMA, close, self.slow)
        self.rsi = self.I(talib.RSI, close, 14)

    def next(self):
        price = self.data.Close[-1]
        if crossover(self.fast_line, self.slow_line) and self.rsi[-1] < 75:
            self.buy(size=0.95, sl=price * 0.92)
        elif crossover(self.slow_line, self.fast_line):
            self.position.close()


statistics = Backtest(GOOG, Crossover, cash=10_000, commission=0.002, finalize_trades=True).run()

metrics = {
    "sharpe_ratio": float(statistics["Sharpe Ratio"]),
    "annual_return": float(statistics["Return (Ann.) [%]"]) / 100,
    "max_drawdown": float(statistics["Max. Drawdown [%]"]) / 100,
    "trades": int(statistics["# Trades"]),
    "final_equity": float(statistics["Equity Final [$]"]),
}
signal = "LONG" if statistics["_trades"]["ExitTime"].iloc[-1] == GOOG.index[-1] else "FLAT"
result = statistics["_equity_curve"]["Equity"]
print(metrics)
