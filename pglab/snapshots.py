"""Networks kept along training, so that gradients can be measured at the policies that training visited.

A file holds tensors, numbers and strings only and is read with `weights_only`: loading one never runs code.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pglab.agents import ActorCriticAgent, Agent
from pglab.checkpoint import plain, read_tree
from pglab.errors import PglabError
from pglab.tracking.files import atomic_write

FORMAT = 1


@dataclass(frozen=True)
class Snapshot:
    """What a population was at one moment of its training."""

    at: float
    """The fraction of training asked for."""
    steps: list[int]
    """Each member's environment steps."""
    agent: dict[str, Any]
    """`Agent.frozen_state`."""
    transitions: Tensor | None
    """Replay rows `[P, C, F]`, packed as `Replay` packs them, oldest first; None without a replay."""


def save(folder: Path, number: int, at: float, steps: list[int], agent: Agent, transitions: int) -> Path:
    """Write one snapshot. Raises PglabError where the disk refuses."""
    rows = None
    if isinstance(agent, ActorCriticAgent) and transitions:
        replay = agent.replay
        held = replay.size if agent.newest is None else min(agent.newest, replay.size)
        kept = min(held, transitions)
        index = replay.count - held + torch.arange(kept, dtype=torch.int64) * held // max(kept, 1)
        rows = replay.data[:, (index % replay.capacity).to(replay.data.device)]
    tree = {"format": FORMAT, "at": at, "steps": steps, "agent": agent.frozen_state(), "transitions": rows}
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{number:03d}.pt"
    atomic_write(path, lambda file: torch.save(plain(tree), file))
    return path


def files(folder: Path) -> list[Path]:
    """Snapshot files in the order of training."""
    return sorted(p for p in folder.glob("*.pt") if p.stem.isdigit())


def load(path: Path, device: torch.device) -> Snapshot:
    """Read one snapshot. Raises PglabError where it cannot be read."""
    tree = read_tree(path, device, "Snapshot", FORMAT)
    if lacking := {"at", "steps", "agent", "transitions"} - tree.keys():
        raise PglabError(f"Snapshot {path} is damaged: it has no {', '.join(sorted(lacking))}.")
    return Snapshot(tree["at"], tree["steps"], tree["agent"], tree["transitions"])
