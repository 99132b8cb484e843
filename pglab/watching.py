"""Whoever looks on while something is trained, and Ctrl-C."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Watcher:
    """What the loop calls for whoever looks on: `progress(step, total, return, steps per second)` (steps of all members
    together), `note(text)`;
    and asks: `stop()`, True to stop as after Ctrl-C."""

    progress: Callable[[int, int, float | None, float | None], None] = lambda *_: None
    note: Callable[[str], None] = lambda _: None
    stop: Callable[[], bool] = lambda: False


class DeferredInterrupt:
    """Ctrl-C inside the context only asks; `check` raises the KeyboardInterrupt where stopping loses nothing. A second
    Ctrl-C raises at once. Outside of the main thread signals cannot be caught, and nothing is deferred."""

    def __init__(self) -> None:
        self.asked = False
        self._previous: Any = None

    def __enter__(self) -> DeferredInterrupt:
        if threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGINT, self._ask)
        return self

    def _ask(self, number: int, frame: Any) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True

    def check(self) -> None:
        """Raise KeyboardInterrupt if it was asked for."""
        if self.asked:
            raise KeyboardInterrupt

    def __exit__(self, *_: object) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGINT, self._previous)
