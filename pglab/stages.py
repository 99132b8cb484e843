"""Looking at policies along training: evaluations, measurements and snapshots, each member at its own number of steps.

Members that collect whole episodes reach a number of steps at different updates. What a member is at the moment it gets
there is kept until the last one has got there too; then all are looked at together. So neither what is evaluated nor the
noise it is evaluated with depends on who else is in the population.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from pglab.agents import ActorCriticAgent, Agent
from pglab.config import ActorCriticConfig, Config
from pglab.trees import join_members, take_member

FINAL = 2**20  # the number of the last evaluation, which no other reaches


@dataclass(frozen=True)
class Look:
    """One evaluation, measurement or snapshot: its number (of its kind) and the steps of a member at which it is due."""

    kind: Literal["evaluation", "measurement", "snapshot"]
    number: int
    due: float

    @property
    def key(self) -> str:
        return f"{self.kind}/{self.number}"


def looks_of(config: Config) -> list[Look]:
    """All of a run's looks. A replay agent cannot be measured before its first update."""
    total, every = config.total_steps, config.evaluation.every
    evaluations = [Look("evaluation", k, k * every) for k in range(-(-total // every))]
    first = config.agent.replay.warmup if isinstance(config.agent, ActorCriticConfig) else 0
    kinds: list[tuple[Literal["measurement", "snapshot"], list[float]]] = [
        ("measurement", config.measurement.at),
        ("snapshot", config.snapshots.at),
    ]
    others = [Look(k, j, min(max(f * total, first), total)) for k, at in kinds for j, f in enumerate(at)]
    return [*evaluations, Look("evaluation", FINAL, total), *others]


class Stages:
    """Keeps what members were at the looks that some of them have reached, and hands out the looks that all have."""

    def __init__(self, config: Config) -> None:
        self.looks = looks_of(config)
        self.done: list[str] = []
        self.kept: dict[str, dict[str, Any]] = {}
        self._last_evaluated: list[int] | None = None

    def state(self) -> dict[str, Any]:
        """For the checkpoint."""
        return {"done": self.done, "kept": self.kept, "last": self._last_evaluated}

    def load_state(self, tree: dict[str, Any]) -> None:
        self.done, self.kept, self._last_evaluated = tree["done"], tree["kept"], tree["last"]

    def reopen(self, steps: int) -> None:
        """For a run that goes on past an end it once had: what is due later is to be done again."""
        self.done = [x.key for x in self.looks if x.key in self.done and x.due <= steps and x.number != FINAL]

    def ready(self, agent: Agent, steps: np.ndarray, total: int) -> Iterator[tuple[Look, Agent, list[int]]]:
        """The looks that every member has reached, each with the agent as its members were then and their steps `[P]`.

        To be asked before every update and after the last.
        """
        furthest, least = steps.max(), steps.min()
        for look in [x for x in self.looks if x.due <= furthest and x.key not in self.done]:
            if isinstance(agent, ActorCriticAgent) and look.kind != "evaluation" and agent.replay.size == 0:
                continue
            if look.key not in self.kept and look.due <= least:
                at, then = steps.tolist(), agent  # all at once
            else:
                kept = self.kept.setdefault(look.key, {"steps": [-1] * len(steps), "trees": [None] * len(steps)})
                for p in np.flatnonzero(steps >= look.due).tolist():
                    if kept["trees"][p] is None:
                        kept["steps"][p], kept["trees"][p] = int(steps[p]), take_member(agent.frozen_state(), p)
                if least < look.due:
                    continue
                at, then = kept["steps"], agent.frozen(join_members(kept["trees"]))
            self.done.append(look.key)
            self.kept.pop(look.key, None)
            then = then.at_progress([min(1.0, s / total) for s in at])
            if look.kind == "evaluation":
                # One update may pass several: the policy is looked at once (but always at the end).
                if at == self._last_evaluated and look.number != FINAL:
                    continue
                self._last_evaluated = list(at)
            yield look, then, list(at)
