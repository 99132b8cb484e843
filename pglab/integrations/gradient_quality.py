"""A callback for stable-baselines3: what the gradient that a model trains with is worth, while it trains."""

from __future__ import annotations

import math
import random
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback

from pglab.agents import ActorCriticAgent
from pglab.config import Config
from pglab.errors import PglabError
from pglab.integrations.sb3_subjects import PLAYED, empty, live, of_model
from pglab.lab.measuring import FEWEST, Measured, measure
from pglab.lab.pairs import pairs_of
from pglab.lab.references import CHUNKS

ABSOLUTE = ("nsr", "trace", "squared_norm", "pairwise_cosine", "cosine")
"""Statistics logged as they are."""
RELATIVE = ("mse", "bias_squared")
"""Statistics logged over the squared norm of the reference."""
TABLES = ("stdout", "log")
"""stable-baselines3's formats that are tables for people: they cut names short, and raise where two become the same."""


class GradientQuality(BaseCallback):
    """Measures the gradient of an A2C, PPO or SAC agent of stable-baselines3 while it trains.

    At the first end of a rollout after every `every` environment steps (of SAC: once it learns), the model as it is then
    goes through `pglab.lab.measuring.measure`, with environments and random numbers of its own: training ends with
    the same weights, bit for bit, as without. All measurements share their noise, so what changes from one to the next is
    the model, and `measure(of_sb3(path, env_id), ...)` of the model saved then gives the same numbers (of SAC: with the
    same `fill_buffer`).

    Logged are, for each pair of an estimator and a baseline, `gradient/<pair>/<statistic>` and, of the model's own pair,
    also `gradient/<statistic>`, which alone is in the tables on the screen:

        nsr               noise-to-signal ratio (infinite: no signal was resolved), with its interval nsr_low to nsr_high
        trace             of the covariance
        squared_norm      of the mean
        pairwise_cosine   between two gradients of training
        cosine            to the reference, where that is resolved
        mse, bias_squared of the distance to the reference, over the reference's squared norm, where that is resolved

    (where advantages are whitened, as PPO's are, the gradient has another length, which counts there; a cosine has none)
    and `time/gradient_quality`, the seconds that a measurement took. They are written at once, as those of
    stable-baselines3's EvalCallback are, with all else that is waiting to be written.

    Attributes:
        measurements: the step and the `Measured` of every measurement, in the order of training; the replay buffers that
            they were made from are not kept.
    """

    def __init__(
        self,
        every: int = 10_000,
        pairs: Sequence[str] | None = None,
        replicates: int = 32,
        reference: int = 1024,
        fit: int = 16,
        env_id: str | None = None,
        env_kwargs: Mapping[str, Any] | None = None,
        verbose: int = 0,
        fill_buffer: int | None = None,
    ) -> None:
        """
        Args:
            every: environment steps between measurements.
            pairs: what is measured beside the model's own pair, named as for `measure`; None: nothing.
            replicates, reference, fit: see `measure`.
            env_id: the environment that is measured in; None for that of the model's own.
            env_kwargs: its keyword arguments; None, where `env_id` is None too, for those of the model's own.
            verbose: from 1 on, every measurement is told on the screen in a line.
            fill_buffer: of SAC, so many transitions played by the model as it is take the place of its replay buffer.

        Raises:
            PglabError: a number that is too small.
        """
        super().__init__(verbose)
        least = {"every": 1, "replicates": FEWEST, "reference": CHUNKS, "fit": 1, "fill_buffer": 1}
        given = {
            "every": every,
            "replicates": replicates,
            "reference": reference,
            "fit": fit,
            "fill_buffer": fill_buffer,
        }
        for name, value in given.items():
            if value is not None and value < least[name]:
                raise PglabError(f"GradientQuality needs {name} of at least {least[name]}, not {value}.")
        self.every, self.replicates, self.reference, self.fit = every, replicates, reference, fit
        self.pairs = None if pairs is None else list(pairs)
        self.env_id, self.env_kwargs, self.fill_buffer = env_id, env_kwargs, fill_buffer
        self.measurements: list[tuple[int, Measured]] = []
        self._due = every

    def _on_training_start(self) -> None:
        """Raises PglabError where the model, its environment or a pair cannot be measured: now, not after hours."""
        with self._apart():
            found = live(self.model, self.env_id, self.env_kwargs)
            pairs_of(found.config, found.agent.spec, self._wanted(found.config))
        if found.algorithm == "SAC" and self.fill_buffer is None:
            buffer = getattr(self.model, "replay_buffer", None)
            # The kinds that `sb3_memory.refill` takes over.
            if not isinstance(buffer, ReplayBuffer) or buffer.optimize_memory_usage:
                raise PglabError(
                    f"The replay buffer of this SAC model, a {type(buffer).__name__}, is of a kind that is not read: set "
                    f"fill_buffer, for example to {PLAYED:,}."
                )
        self._due = (self.num_timesteps // self.every + 1) * self.every

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        # SAC acts at random and does not learn until then, so there is no gradient of training yet.
        learns = self.num_timesteps > getattr(self.model, "learning_starts", -1)
        if self.num_timesteps < self._due or not learns:
            return
        self._due = (self.num_timesteps // self.every + 1) * self.every
        try:
            with self._apart():
                measured = self._measured()
        except PglabError as error:  # such as weights that are no longer finite: training is not ours to end
            warnings.warn(f"The gradient at step {self.num_timesteps:,} was not measured: {error}", stacklevel=2)
            return
        self.measurements.append((self.num_timesteps, measured))
        self._log(measured)

    def _measured(self) -> Measured:
        subjects = of_model(self.model, self.env_id, self.env_kwargs, 0, self.fill_buffer)
        wanted = self._wanted(subjects[0].config)
        (measured,) = measure(
            subjects, pairs=wanted, replicates=self.replicates, reference=self.reference, fit=self.fit
        ).measured
        if isinstance(subjects[0].agent, ActorCriticAgent):
            empty(subjects[0].agent, 1)  # a copy of a whole replay buffer for every measurement would fill the memory
        return measured

    def _wanted(self, config: Config) -> list[str]:
        """The pairs to measure, the model's own first."""
        if self.pairs == ["all"]:
            return self.pairs
        return [f"{config.estimator.name}/{config.baseline.name}", *(self.pairs or [])]

    def _log(self, measured: Measured) -> None:
        for i, pair in enumerate(measured.pairs):
            prefix = f"gradient/{pair.name.replace(' / ', '/')}"
            for name, value in figures(measured, i).items():
                if pair.own:
                    self.logger.record(f"gradient/{name}", value)
                self.logger.record(f"{prefix}/{name}", value, exclude=TABLES)
        self.logger.record("time/gradient_quality", measured.seconds)
        self.logger.dump(self.num_timesteps)
        if self.verbose >= 1:
            own = next(i for i, pair in enumerate(measured.pairs) if pair.own)
            said = ", ".join(f"{name} {value:.3g}" for name, value in figures(measured, own).items())
            print(f"Gradient at step {self.num_timesteps:,}: {said} ({measured.seconds:.1f} s)")

    @contextmanager
    def _apart(self) -> Iterator[None]:
        """Leave the process's random generators as they are found. pglab's noise is a function and needs none of them, but
        an environment may draw from any."""
        python, arrays, device = random.getstate(), np.random.get_state(), self.model.device  # noqa: NPY002
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            try:
                yield
            finally:
                random.setstate(python)
                np.random.set_state(arrays)  # noqa: NPY002


def figures(measured: Measured, pair: int) -> dict[str, float]:
    """What is logged of pair number `pair` (see `GradientQuality`); what is not known is left out."""
    found = {}
    for name in (*ABSOLUTE, *RELATIVE):
        estimate = measured.total(name)
        if estimate is None:
            continue
        value, low, high, _ = estimate[pair]
        found[name] = value / measured.reference.squared_norm if name in RELATIVE else value
        if name == "nsr":
            found |= {"nsr_low": low, "nsr_high": high}
    return {name: value for name, value in found.items() if not math.isnan(value)}
