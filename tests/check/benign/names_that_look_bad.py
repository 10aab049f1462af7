# Names of builtins and modules as variables, columns, fields and keywords.
import re
from typing import NamedTuple

import numpy as np
import pandas as pd


class Bar(NamedTuple):
    open: float
    high: float
    low: float
    close: float


class Strategy:
    open = None

    def __init__(self, input, compile=False):
        self.input = input
        self.os = 20
        self.eval = None
        self.exec = self.compile = compile
        self.globals = {}

    def execute(self, open, vars=None):
        print(self.os, self.input, self.eval)
        return open + (vars or 0)

    def eval_model(self):
        return {"open": self.open, "sys": 1}


df = pd.DataFrame({"open": [1.0, 2.0], "close": [2.0, 3.0], "os": [1, 2], "input": [0, 1]})
print(df.open, df["open"], df.close - df.open, df["os"])
input = df["input"]
print(input.sum())
pattern = re.compile(r"^open$")
print(pattern.match("open"))
for open, close in zip(df["open"], df["close"]):
    print(open < close, close - open)
ranges = [close - open for open, close in zip(df.open, df.close)]
vars = {"a": 1}
print(vars["a"], len(vars))
f = lambda open, close: close - open
print(f(1, 2), Bar(open=1, high=2, low=1, close=2).open)


def summarise(open, high, low, close, *, compile=None, type="long"):
    locals = [open, high]
    if type == "long":
        return sum(locals) + low + close
    return type


filter_ = {"type": "long"}
type_ = type(df).__name__
print(type_, isinstance(df, pd.DataFrame), [type(x) for x in filter_.values()])
dir(df)
id(df)
np.save("/work/x.npy", np.arange(3))
arr = np.load("x.npy", allow_pickle=False)
