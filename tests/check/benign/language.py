#!/usr/bin/env python3
# -*- coding: utf-8 -*-
# 策略：動量 — comments may mention eval(), os and __globals__
"""Module text that mentions __globals__ and eval() does nothing."""
import abc
import contextlib
import copy
import datetime as dt
import decimal
import enum
import functools
import itertools
import json
import logging
import operator
import random
import statistics
import string
import time
import traceback
import types
import typing as t
import uuid
import warnings
from abc import ABC, ABCMeta, abstractmethod
from collections import Counter, OrderedDict, defaultdict, deque, namedtuple
from concurrent.futures import ThreadPoolExecutor
from datetime import date, datetime, timedelta
from enum import Enum, auto
from functools import lru_cache, partial, reduce, wraps
from math import *
from typing import Callable, Generic, Protocol, TypeVar

__all__ = ["Side", "Base"]
__version__ = "1.0"
__author__ = "loop"

warnings.filterwarnings("ignore")
random.seed(7)
T = TypeVar("T")
價格 = 100.0
µ = 0.1
naïve_estimate = 價格 * µ


class Side(Enum):
    LONG = auto()
    SHORT = auto()

    def __str__(self):
        return self.name.lower()


class Base(ABC):
    registry: dict = {}

    @abstractmethod
    def run(self, x: float) -> float: ...

    @classmethod
    def make(cls, **kwargs):
        self = cls()
        for key, value in kwargs.items():
            setattr(self, key, value)
        return self

    @staticmethod
    def helper(x):
        return x


class Meta(metaclass=ABCMeta):
    __slots__ = ("a", "b")

    def __init__(self, a=1, b=2):
        self.a, self.b = a, b

    def __eq__(self, other):
        return isinstance(other, type(self)) and self.a == other.a

    __hash__ = None

    def __add__(self, other):
        return Meta(self.a + other.a)

    __radd__ = __add__

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        return False

    def __getattr__(self, name):
        raise AttributeError(name)


def timed(function: Callable[..., T]) -> Callable[..., T]:
    @wraps(function)
    def wrapper(*args, **kwargs):
        started = time.perf_counter()
        try:
            return function(*args, **kwargs)
        finally:
            print(f"{function.__name__}: {time.perf_counter() - started:.3f}s")

    wrapper.__name__ = function.__name__
    wrapper.__doc__ = function.__doc__
    return wrapper


class Child(Base):
    def __init__(self, *args, **kwargs):
        super(Child, self).__init__(*args, **kwargs)
        self.__private = 1
        self._protected = 2
        self.f = getattr(self, "_protected", None)

    def run(self, x):
        if hasattr(self, "_protected") and hasattr(x, "value"):
            return getattr(x, "value")
        return f"{x!r:>10} {self.__class__.__name__} {type(self).__name__} {x:{10}.2f}"


@lru_cache(maxsize=None)
@timed
def fib(n: int) -> int:
    return n if n < 2 else fib(n - 1) + fib(n - 2)


def walk(tree):
    match tree:
        case {"left": left, "right": right, **rest}:
            yield from walk(left)
            yield rest
            yield from walk(right)
        case [first, *others] if others:
            yield first
        case Side.LONG | Side.SHORT as side:
            yield side
        case Meta(a=1, b=b):
            yield b
        case str() | int():
            yield tree
        case _:
            return


async def gather(x):
    async with x as y:
        async for z in y:
            await z
    return [i async for i in y]


def counter():
    count = 0

    def inner():
        nonlocal count
        count += 1
        return count

    return inner


def use_global():
    global 價格
    價格 += 1


Point = namedtuple("Point", ["x", "y"])
p = Point(1, 2)
print(p._asdict(), p._replace(x=3))
print(reduce(operator.add, [1, 2, 3]), sorted([3, 1], key=operator.itemgetter(0) if False else None))
print([x for x in range(10) if (y := x) % 2], {k: v for k, v in zip("ab", "cd")}, (x for x in [1]))
print(list(map(str, [1])), list(filter(None, [1])), any([]), all([]), sum([1]), min(1, 2), round(1.5))
with contextlib.suppress(ValueError, KeyError):
    raise ValueError("x") from None
try:
    1 / 0
except (ZeroDivisionError, *[KeyError]) as e:
    logging.error("failed: %s", e)
    traceback.print_exc()
    print(str(e), repr(e), e.args)
else:
    pass
finally:
    del p
with ThreadPoolExecutor(max_workers=2) as pool:
    print(list(pool.map(fib, range(5))))
ns = types.SimpleNamespace(a=1)
print(copy.deepcopy(ns), uuid.uuid4(), dt.datetime.now(), dt.timedelta(days=1), string.ascii_letters)
print(statistics.mean([1, 2]), decimal.Decimal("1.1"), json.loads("{}"), itertools.chain([1], [2]))
print(datetime.now().strftime("%Y-%m-%d"), date.today(), "__main__" == __name__, __file__, sqrt(2), pi)
x = 1 if True else 2
x = not x
assert x is not None, "message"
while x:
    x -= 1
    if x > 5:
        break
    elif x > 3:
        continue
else:
    pass
lambda *a, k=1, **kw: (a, k, kw)
long_text = (
    "a" "b" f"c{x}"
    + "d"
)
matrix = [[1, 2], [3, 4]]
print(matrix @ matrix if False else matrix[0][::-1], ..., None, b"bytes", 0x1F, 1_000, 1e-3, 2j)
raise SystemExit(0)
with ThreadPoolExecutor() as pool:
    print(list(pool.map(partial(fib), range(5), range(5))))
handlers = {"a": fib}
print(list(pool.map(handlers["a"], [1], [2])), list(map(handlers.get, "ab")))
