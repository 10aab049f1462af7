import io
from io import BytesIO, StringIO

import numpy as np
import pandas as pd

CSV = """date,close
2024-01-01,1
2024-01-02,2
"""
DATA = "/input"
PATH = DATA + "/prices.csv"

a = pd.read_csv("/input/prices.csv", parse_dates=["date"], index_col="date")
b = pd.read_csv(PATH)
c = pd.read_csv(f"{DATA}/prices.csv")
d = pd.read_csv(StringIO(CSV))
e = pd.read_csv(io.StringIO(CSV), sep=",")
buffer = io.StringIO(CSV)
f = pd.read_csv(buffer)
g = pd.read_parquet("/work/x.parquet", columns=["close"])
h = np.loadtxt("/input/x.txt", delimiter=",")
i = np.genfromtxt("/input/deep/x.txt")
j = pd.read_json(StringIO("[]"))
k = pd.read_csv("local.csv")

a.to_csv("/output/a.csv")
a.to_csv("a.csv", index=False)
text = a.to_csv()
text = a.to_csv(index=False)
text = a.to_csv(None)
print(a.to_string(), a.to_markdown(), a.to_html())
a.to_json("/output/a.json", orient="records")
data = a.to_json(orient="records")
buf = BytesIO()
a.to_parquet(buf)
a.to_excel("/output/a.xlsx")
with io.StringIO() as out:
    a.to_csv(out)
    print(out.getvalue())

limit = 1.5
print(a.query("close > 1 and close < @limit"))
print(a.eval("twice = close * 2"))
print(a.query("close > @limit", engine="python"))
print(a.groupby("date").agg({"close": ["mean", "std"]}))
print(a.agg("sum"), a.agg(["min", "max"]), a.apply(np.sqrt), a["close"].map(lambda x: x + 1))
print(a.groupby("date").agg(mean=("close", "mean"), last=("close", "last")))
print(a.transform("cumsum"), a.rolling(5).apply(lambda x: x.mean(), raw=True))
print(a.pipe(lambda frame: frame.dropna()))
how = "mean"
print(a.agg(how), a.resample("W").agg(how))
agg = {"close": "last"}
print(a.resample("W").agg(agg))
print(a.style.format("{:.2f}"), a.style.format({"close": "{:.2f}"}))
pd.options.display.float_format = "{:.2f}".format
pd.set_option("display.max_rows", 10)
pd.options.mode.chained_assignment = None
print("{:.2f} {name}".format(limit, name="x"), "{0[0]} {1.real}".format([1], 2))
TEMPLATE = "{name}: {value:.3f}"
print(TEMPLATE.format(name="a", value=1.0))
print("%s %d" % ("a", 1))
print(a.to_dict(), a.to_numpy(), a.to_records())
np.testing.assert_allclose([1.0], [1.0])
import logging
from typing import Literal

import pyarrow as pa
import pyarrow.parquet as pq
import statsmodels.api as sm
import statsmodels.formula.api as smf

logging.basicConfig(level=logging.INFO, format="%(message)s")
pq.write_table(pa.table({"a": [1]}), "/output/x.parquet")
model = smf.ols("close ~ np.log(volume) + C(weekday)", data=a).fit()
ols = sm.OLS(a["close"], sm.add_constant(a[["open"]])).fit()
print(model.summary(), ols.params, a.query("open > close and type == 'x'"), a.eval("close - open"))


def side(x: "Literal['open', 'close']", y: Literal["open"], z: "pd.Series") -> "pd.DataFrame":
    return a
