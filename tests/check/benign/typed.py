from __future__ import annotations
import typing as t
from dataclasses import dataclass
from typing import Annotated, Literal, TypedDict, Union, overload, TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

type Vector[N: (int, float)] = list[N]


def first[N](items: list[N], *, default: N | None = None) -> N | None:
    return items[0] if items else default


class Box[N]:
    item: N

    def __init__(self, item: N) -> None:
        self.item = item


class Config(TypedDict, total=False):
    name: str
    window: t.Optional[int]


@dataclass(frozen=True, slots=True)
class Order:
    side: Literal["buy", "sell"]
    quantity: Annotated[int, "shares"]
    kind: type[Exception] = ValueError


@overload
def f(x: int) -> int: ...
@overload
def f(x: str) -> str: ...
def f(x: Union[int, str]) -> "int | str":
    return x


def g(df: "pd.DataFrame", /, open: float = 1.0) -> None:
    print(df.shape, open)
