"""What estimates are held to: a gradient, how it was found, and what it supports."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from pglab.agents import OnPolicyAgent
from pglab.lab.onward import entropy_weight

RESOLVED = 0.05
"""A reference supports cosines and biases where its noise is at most this share of its squared norm: a cosine to it is
then at most 2.5 % too small."""


@dataclass(frozen=True)
class Reference:
    """grad J, for ascent, in the convention of the subject's agent (see `definition`)."""

    definition: str
    gradient: np.ndarray
    """`[n]` float64."""
    other: np.ndarray
    """`[n]`: the same with the other weighting of states."""
    other_definition: str
    noise: dict[str, float] = field(default_factory=dict)
    """Of every section and the total: trace of the covariance of `gradient` (0: exact)."""
    halves: float = 1.0
    """Cosine between the means of its two halves."""
    critic_share: float | None = None
    """|grad J - exact gradient of the critic|^2 / |grad J|^2, less what sampling adds: how wrong the critic is here."""
    episodes: int = 0
    """How many independent draws (episodes or states) it is the mean of; 0: exact."""
    steps: int = 0
    """Environment steps it took."""
    other_noise: float = 0.0
    """Noise of `other`, as far as its chunks tell (those of states that were visited share episodes)."""

    @property
    def squared_norm(self) -> float:
        """|grad J|^2, less what noise adds."""
        return float(self.gradient @ self.gradient) - self.noise.get("total", 0.0)

    @property
    def relative_noise(self) -> float:
        """Noise over the squared norm."""
        noise = self.noise.get("total", 0.0)
        return noise / self.squared_norm if self.squared_norm > 0 else math.inf

    @property
    def supported(self) -> bool:
        """Whether cosines and biases to it mean anything."""
        return self.relative_noise <= RESOLVED

    @property
    def other_supported(self) -> bool:
        """Whether cosines to `other` mean anything."""
        return self.supported and self.other_noise <= RESOLVED * (float(self.other @ self.other) - self.other_noise)

    @property
    def verdict(self) -> str:
        """What can be said of it, in a sentence."""
        if not self.noise:
            return "It is exact." if self.supported else "It is exactly zero, so no cosine or bias to it is given."
        if not math.isfinite(self.relative_noise):
            return "No signal is resolved in its noise, so no cosine or bias to it is given; raise --reference."
        said = f"Its halves agree with cosine {self.halves:.3f}; its noise is {self.relative_noise:.1%} of its squared norm"
        if self.supported:
            return f"{said}."
        wanted = math.ceil(self.episodes * self.relative_noise / RESOLVED)
        return f"{said}: too noisy for cosines and biases, which are not given; about --reference {wanted:,} would do."


def reduced(agent: OnPolicyAgent, summed: np.ndarray, steps: float) -> np.ndarray:
    """A sum over an episode's steps, whose mean number is `steps`, as the agent's reduction takes it."""
    s = agent.settings
    if s.collect == "episodes":
        return summed if s.reduction == "mean_over_episodes" else summed / steps
    return summed / steps * (s.steps if s.reduction == "mean_over_episodes" else 1)


def said_of(agent: OnPolicyAgent, horizon: int, tail_steps: int) -> str:
    s = agent.settings
    per = {
        ("episodes", "mean_over_episodes"): "summed over an episode",
        ("episodes", "mean_over_steps"): "summed over an episode, over the mean number of steps",
        ("steps", "mean_over_steps"): "averaged over the steps of episodes",
        ("steps", "mean_over_episodes"): f"averaged over the steps of episodes, times the {s.steps} steps of a block",
    }[(s.collect, s.reduction)]
    beyond = (
        f"past the time limit of {horizon}, where training bootstraps, for up to {tail_steps} steps"
        if tail_steps
        else f"to the time limit of {horizon}"
    )
    entropies = "" if entropy_weight(agent) is None else " + the weighted entropy's gradient"
    return f"E[grad log pi(a|s) Q(s, a)]{entropies} with the returns of the policy itself ({beyond}), {per}"
