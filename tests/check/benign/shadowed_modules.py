# A name may be a module in one place and something else in another.
import datetime
import time

import numpy as np
import pandas as pd
from scipy import stats


def run(stats):
    return stats["a"], len(stats)


def report():
    time = 5
    return str(time) + str(datetime.date.today())


def both(np=None, pd=None):
    return [np, pd]


stats = {"a": 1}
print(stats, run(stats), both(1, 2))
for time in range(3):
    print(time)
talib = None
try:
    import talib
except ImportError:
    talib = None
HAVE_TALIB = talib is not None
if not talib:
    print("no talib")
if hasattr(np, "float64") and getattr(np, "nan", None) is not None:
    print(np.nan)
del np
