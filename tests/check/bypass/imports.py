# expect: NSB101
import os
# ---
# expect: NSB101
import os.path as p
# ---
# expect: NSB101
from os import system
# ---
# expect: NSB101
import numpy as np, subprocess
# ---
# expect: NSB101
def f():
    try:
        from ctypes import CDLL
    except ImportError:
        pass
# ---
# expect: NSB101
import importlib
m = importlib.import_module("os")
# ---
# expect: NSB101
import builtins
builtins.eval("1")
# ---
# expect: NSB101
import pickle
# ---
# expect: NSB101
import joblib
joblib.load("/input/model.pkl")
# ---
# expect: NSB101
import inspect
inspect.currentframe()
# ---
# expect: NSB101
import sys
sys.modules["os"].system("id")
# ---
# expect: NSB101
import sys
class Hook:
    def find_spec(self, name, path, target=None):
        return None
sys.meta_path.insert(0, Hook())
# ---
# expect: NSB101
import yfinance as yf
# ---
# expect: NSB101
import a.b.c
# ---
# expect: NSB103
from pandas import *
# ---
# expect: NSB104
from . import os
# ---
# expect: NSB104
from ..x import y
# ---
# expect: NSB102
from pandas.io import pickle
# ---
# expect: NSB102
import pandas.io.common
# ---
# expect: NSB102
import pandas.io.common as c
c.os.system("id")
# ---
# expect: NSB102
from random import _os
_os.system("id")
# ---
# expect: NSB102
from typing import sys as s
# ---
# expect: NSB102
from io import open
# ---
# expect: NSB102
from io import FileIO as F
# ---
# expect: NSB102
from numpy.lib.stride_tricks import as_strided
# ---
# expect: NSB102
from numpy import f2py
# ---
# expect: NSB102
from numpy.ctypeslib import load_library
# ---
# expect: NSB102
from types import FunctionType
# ---
# expect: NSB102
from operator import attrgetter as ag
ag("__globals__")(print)
# ---
# expect: NSB102
from string import Formatter
# ---
# expect: NSB102
from typing import get_type_hints
class A:
    x: "1"
get_type_hints(A)
# ---
# expect: NSB102
from timeit import timeit
timeit("1")
# ---
# expect: NSB102
from sklearn.datasets import fetch_openml
# ---
# expect: NSB102
from logging import os
# ---
# expect: NSB102
from backtesting._util import sys
# ---
# expect: NSB202
import math as __builtins__
