# The finlab style of the old system.
from finlab import backtest, data
import finlab

close = data.get("price:收盤價")
volume = data.get("price:成交股數")
roe = data.get("fundamental_features:ROE稅後")
momentum = close / close.shift(60)
condition = (momentum > 1.1) & (close > close.average(20)) & (roe > 10)
position = momentum[condition].is_largest(10)
report = backtest.sim(position, resample="M", fee_ratio=1.425 / 1000, stop_loss=0.1, upload=False)
metrics = report.get_stats()
print(metrics.get("daily_sharpe"))
