"""Names, numbers and series in few characters, safe to print in any terminal."""

from __future__ import annotations

import itertools
import math
import unicodedata
from collections.abc import Sequence

BLOCKS = "▁▂▃▄▅▆▇█"
ASCII_BLOCKS = "_.-=+*#@"
"""The same for encodings without block characters: the more ink, the higher."""
HIDDEN = {"Cc", "Cf", "Cs", "Zl", "Zp"}
"""Unicode categories of characters that are obeyed, not shown: control codes, marks of direction, line separators."""


def visible(text: str, keep: str = "") -> str:
    r"""`text` with every control character as its escape, such as `\x1b`, so that no name can steer the terminal.

    Those in `keep` stay as they are.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        c.encode("unicode_escape").decode("ascii") if unicodedata.category(c) in HIDDEN and c not in keep else c
        for c in text
    )


def can_show(text: str, encoding: str | None) -> bool:
    """Whether a stream of this encoding can write `text`. A stream without one takes any."""
    try:
        text.encode(encoding or "utf-8")
    except (UnicodeError, LookupError):
        return False
    return True


def clock_time(seconds: float) -> str:
    """`0:12`, `12:05` or `1:02:03`."""
    minutes, second = divmod(math.ceil(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"


def short_count(count: int) -> str:
    """`950`, `120k` or `1.5M`: a count of steps in few characters."""
    for size, unit in ((1_000_000, "M"), (1_000, "k")):
        if count >= size:
            return f"{count / size:.1f}".removesuffix(".0") + unit
    return str(count)


def short_return(value: float) -> str:
    """`212.3`, or `1.23e+06` from a hundred thousand on."""
    return f"{value:.1f}" if abs(value) < 1e5 else f"{value:.3g}"


def sparkline(values: Sequence[float], width: int, unicode: bool = True) -> str:
    """A series as one line of blocks, from the lowest value to the highest; a level line where all are equal.

    A series longer than `width` is shown as the means of as many equal parts. What is not finite is left out.
    """
    finite = [v for v in values if math.isfinite(v)]
    cells = min(width, len(finite))
    if cells < 1:
        return ""
    edges = [len(finite) * i // cells for i in range(cells + 1)]
    means = [sum(finite[a:b]) / (b - a) for a, b in itertools.pairwise(edges)]
    low, high = min(means), max(means)
    blocks = BLOCKS if unicode else ASCII_BLOCKS
    # Halved, so that the distance between the largest numbers of either sign is still a number.
    spread = high / 2 - low / 2
    if spread <= 0:
        return blocks[3] * cells
    return "".join(blocks[min(7, int((m / 2 - low / 2) / spread * 8))] for m in means)


class Course:
    """A series of any length as at most `most` means of equally many values each."""

    def __init__(self, most: int = 128) -> None:
        self.most = most
        self.means: list[float] = []
        self._each, self._sum, self._count = 1, 0.0, 0

    def add(self, value: float) -> None:
        """Take the next value; what is not finite is left out."""
        if not math.isfinite(value):
            return
        self._sum, self._count = self._sum + value, self._count + 1
        if self._count < self._each:
            return
        self.means.append(self._sum / self._count)
        self._sum, self._count = 0.0, 0
        if len(self.means) == self.most:
            pairs = zip(self.means[::2], self.means[1::2], strict=True)
            self.means, self._each = [(a + b) / 2 for a, b in pairs], 2 * self._each

    @property
    def values(self) -> list[float]:
        """The means, and that of the values since."""
        return [*self.means, self._sum / self._count] if self._count else self.means
