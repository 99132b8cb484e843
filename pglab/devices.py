"""Choosing the torch device."""

from __future__ import annotations

import torch

from pglab.errors import PglabError


def pick_device(name: str) -> torch.device:
    """The torch device of that name; `auto` is cuda where there is one. Raises PglabError for one that is not there."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise PglabError(f"Unknown device {name!r}: choose cpu, cuda or auto.") from None
    if device.type not in ("cpu", "cuda"):
        raise PglabError(f"Device {name!r} is not supported: choose cpu, cuda or auto.")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise PglabError(f"Device {name!r} is not there: this machine or this build of torch has no CUDA; choose cpu.")
    return device
