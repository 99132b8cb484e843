"""The population: seeds x swept values, with each hyperparameter as one tensor over members."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from pglab.config import Config
from pglab.errors import PglabError
from pglab.noise import Noise, Purpose
from pglab.schedules import Schedule

SWEPT_PATHS = (
    "learning_rate",
    "discount",
    "entropy_weight",
    "agent.returns.lam",
    "agent.value.learning_rate",
    "agent.critic.learning_rate",
    "agent.sigma",
    "agent.sigma_learning_rate",
)


@dataclass(frozen=True)
class PopulationMember:
    """One member: its seed and the schedule it has for every swept field."""

    seed: int
    schedules: dict[str, Schedule] = field(default_factory=dict)
    swept: tuple[str, ...] = ()

    @property
    def overrides(self) -> dict[str, Any]:
        """The swept values that tell this member from others of its seed."""
        return {path: self.schedules[path].start for path in self.swept}


def _field(config: Config, path: str) -> list[Schedule] | None:
    found: Any = config
    for key in path.split("."):
        found = getattr(found, key, None)
    return found


def swept_fields(config: Config) -> dict[str, list[Schedule]]:
    """Every field of the config that may be swept, with its values: one, unless it is swept."""
    paths = (*SWEPT_PATHS, *(f"estimator.{name}" for name in config.estimator.scheduled))
    found = {path: _field(config, path) for path in paths}
    return {path: values for path, values in found.items() if values}


def size_of(config: Config) -> int:
    """How many members the config's population has."""
    return len(config.seed_list) * math.prod(len(values) for values in swept_fields(config).values())


class Population:
    """The members in order: all seeds with the first combination of swept values, then the next combination."""

    def __init__(self, members: list[PopulationMember], noise: Noise) -> None:
        self.members, self.noise = members, noise
        self._values: dict[str, tuple[list[float], Tensor]] = {}

    @classmethod
    def of(cls, config: Config, device: torch.device) -> Population:
        fields = swept_fields(config)
        swept = tuple(path for path, values in fields.items() if len(values) > 1)
        members = [
            PopulationMember(seed, dict(zip(fields, values, strict=True)), swept)
            for values in itertools.product(*fields.values())
            for seed in config.seed_list
        ]
        names = [(m.seed, *m.overrides.items()) for m in members]
        if len(set(names)) < len(names):
            raise PglabError(f"Two members have the same seed and the same starting values of {', '.join(swept)}.")
        return cls(members, Noise.of_seeds([m.seed for m in members], device))

    def __len__(self) -> int:
        return len(self.members)

    def replicated(self, replicates: range, *prefix: int) -> Population:
        """Each member once for every number in `replicates`, in a row, with measurement noise of its own."""
        noise = self.noise.apart(Purpose.MEASUREMENT, *prefix).replicated(replicates)
        return Population([m for m in self.members for _ in replicates], noise)

    def __contains__(self, path: str) -> bool:
        return path in self.members[0].schedules

    def value(self, path: str, progress: Sequence[float]) -> Tensor:
        """The field's current value for every member, `[P, 1]`, at the fractions `progress` of their training. Always the same
        tensor, which the next call (or `move_on`) overwrites."""
        known = self._values.get(path)
        if known is not None and not self._moves(path):
            return known[1]
        schedules = [m.schedules[path] for m in self.members]
        values = [s(x) for s, x in zip(schedules, progress, strict=True)]
        if known is None or known[0] != values:
            with torch.inference_mode(False):  # wherever it is asked for first, it is to be written to
                now = torch.tensor(values, dtype=torch.float32, device=self.noise.device).unsqueeze(1)
                known = (values, now if known is None else known[1].copy_(now))
            self._values[path] = known
        return known[1]

    def _moves(self, path: str) -> bool:
        """Whether the field changes during training."""
        return any(m.schedules[path].kind != "constant" for m in self.members)

    def move_on(self, progress: Sequence[float]) -> None:
        """Every value that was asked for so far as it is at these fractions of training."""
        for path in self._values:
            self.value(path, progress)
