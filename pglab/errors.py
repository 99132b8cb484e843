"""Errors that a user can mend: one clear sentence, no traceback. The command line prints them and exits with status 2."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class PglabError(Exception):
    """A mistake in the input: the message names the thing, its value and what is allowed."""


def unknown(kind: str, value: object, allowed: Iterable[str]) -> PglabError:
    """`unknown("estimator", "reinforc", names)`: an error that lists what is allowed and suggests the nearest name."""
    names = sorted(allowed)
    near = difflib.get_close_matches(str(value), names, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return PglabError(f"Unknown {kind} {str(value)!r}: choose one of {', '.join(names)}.{hint}")
