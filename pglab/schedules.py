"""Schedules: a number that changes with the fraction of training done."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, PlainSerializer, model_validator

from pglab.registry import Strict


class Schedule(Strict):
    """`start` at the beginning, `end` once the fraction `until` of training is done, and constant from there."""

    kind: Literal["constant", "linear", "exponential", "cosine"] = "constant"
    """How it moves from start to end: along a line, a geometric sequence, or half a cosine."""
    start: float
    """Value at the beginning."""
    end: float | None = None
    """Value at the end; not given for a constant."""
    until: float = 1.0
    """Fraction of training after which the value stays at `end`, in (0, 1]."""

    @model_validator(mode="after")
    def _consistent(self) -> Schedule:
        if self.kind != "constant" and self.end is None:
            raise ValueError(f"a {self.kind} schedule needs 'end'")
        if self.kind == "constant" and self.end is not None:
            raise ValueError(
                f"a constant schedule has no 'end' (given: {self.end}); choose linear, exponential or cosine"
            )
        if self.kind == "exponential" and (self.start <= 0 or (self.end or 0) <= 0):
            raise ValueError(f"an exponential schedule needs start and end above 0, not {self.start} and {self.end}")
        if not 0 < self.until <= 1:
            raise ValueError(f"'until' is a fraction of training in (0, 1], not {self.until}")
        return self

    @property
    def bounds(self) -> tuple[float, float]:
        """The smallest and the largest value it takes."""
        end = self.start if self.end is None else self.end
        return min(self.start, end), max(self.start, end)

    def __call__(self, progress: float) -> float:
        """The value at `progress`, a fraction of training in [0, 1]."""
        if self.kind == "constant" or self.end is None:
            return self.start
        x = min(max(progress / self.until, 0.0), 1.0)
        if self.kind == "linear":
            return self.start + (self.end - self.start) * x
        if self.kind == "exponential":
            return self.start * (self.end / self.start) ** x
        return self.end + (self.start - self.end) * 0.5 * (1 + math.cos(math.pi * x))


def _from_number(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError(f"a number or a schedule is wanted, not {value!r}")
    if isinstance(value, (int, float, str)):
        return {"start": value}
    return value


def _to_plain(value: Schedule) -> float | dict[str, Any]:
    return value.start if value.kind == "constant" else value.model_dump()


Scheduled = Annotated[Schedule, BeforeValidator(_from_number), PlainSerializer(_to_plain)]
"""A field that takes a number (constant) or a mapping with kind, start, end and until."""


def _as_list(value: Any) -> Any:
    return value if isinstance(value, list) else [value]


def _unlist(value: list[Schedule]) -> Any:
    plain = [_to_plain(v) for v in value]
    return plain[0] if len(plain) == 1 else plain


Swept = Annotated[list[Scheduled], Field(min_length=1), BeforeValidator(_as_list), PlainSerializer(_unlist)]
"""A field that takes one `Scheduled`, or a list of them: then each is trained as a member of the same population."""
