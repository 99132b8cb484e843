"""Texts of unknown content on pages that render Markdown."""

from __future__ import annotations

import re


def printable(text: str) -> str:
    """`text` with control characters (terminal escapes, bidirectional overrides, ...) as `\\x1b`; line ends are kept."""
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)


def fenced(text: str, language: str = "") -> str:
    """`text` as a block of code that nothing in it can end: the fence is longer than any run of backticks inside."""
    text = printable(text.expandtabs()).rstrip("\n")
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", text)), default=0))
    return f"{fence}{language}\n{text}\n{fence}"
