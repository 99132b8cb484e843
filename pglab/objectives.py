"""Gradient estimates of a plain objective E[f(z)], through the estimators and baselines that training uses.

Letters: S estimates, N draws per estimate. Estimator rows are `[1, S, N]`: every estimate is a member of its own, so a
baseline that compares draws compares those of one estimate.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pglab.baselines import BASELINES, Baseline, Batch, Scores, baselined
from pglab.distributions import Categorical, Distribution
from pglab.errors import PglabError
from pglab.estimators import ESTIMATORS, Draw, Estimator, Signal
from pglab.gradients import cotangents
from pglab.noise import Noise, Purpose
from pglab.trees import as_dtype, repeat_members

Objective = Callable[[Tensor], Tensor]
"""f: actions `[B, *event]` to `[B]`."""

BLOCK = 2**20
"""About as many numbers are held at a time in one tensor of actions."""
FIT_BATCHES = 64
FIT_ROWS = 512


def estimate_gradient(
    estimator: str | Mapping[str, Any] | Estimator,
    distribution: Distribution,
    f: Objective,
    num_samples: int,
    draws: int = 1,
    seed: int = 0,
    baseline: str | Mapping[str, Any] | Baseline = "none",
    **options: Any,
) -> dict[str, Tensor]:
    """Independent estimates of grad E[f(z)] at the distribution's parameters (ascent).

    estimator: a registered name with its `options`, a mapping with `name`, or an estimator.
    distribution: a record without rows: `Bernoulli(logits)` with logits `[D]`; `Categorical(logits)` with `[D, K]` or
        `[K]`; `Gaussian(mean, log_std)` with `[D]` each, and so on. Its dtype and device are those of the estimates.
    f: takes actions `[B, *event]` (one-hot for Categorical, of the logits' shape) to `[B]`. Estimators that need its
        gradient, or its values at relaxed actions, say so in `pglab list estimators`.
    num_samples: number of estimates.
    draws: draws per estimate, which is their mean. Baselines that compare draws (leave_one_out, ...) compare those of one
        estimate and need at least 2.
    seed: names the noise. The same seed gives two estimators the same draws.
    baseline: likewise a name, mapping or baseline. One that adapts, and an estimator that learns, are fitted on a stream
        of their own and frozen.

    Returns one tensor `[num_samples, *parameter.shape]` for every parameter's name. Raises PglabError where estimator,
    baseline, distribution and f do not fit.
    """
    problem = Problem.of(estimator, distribution, f, draws, seed, baseline, **options)
    return problem.estimates(num_samples)


@dataclass(frozen=True)
class Problem:
    """One estimator with one baseline on one objective, fitted and ready to give estimates."""

    estimator: Estimator
    baseline: Baseline
    distribution: Distribution
    f: Objective
    draws: int
    noise: Noise
    estimator_state: Mapping[str, Any]
    baseline_state: dict[str, Any]
    squeezed: bool
    """Whether the caller's actions lack the axis of factors."""

    @classmethod
    def of(
        cls,
        estimator: str | Mapping[str, Any] | Estimator,
        distribution: Distribution,
        f: Objective,
        draws: int = 1,
        seed: int = 0,
        baseline: str | Mapping[str, Any] | Baseline = "none",
        **options: Any,
    ) -> Problem:
        """See `estimate_gradient`."""
        part = _built(ESTIMATORS, estimator, options)
        against = _built(BASELINES, baseline, {})
        one, squeezed = without_rows(distribution)
        _check(part, against, one, draws)
        first = getattr(one, one.parameters[0])
        noise = Noise.of_seeds([seed], first.device)
        event = tuple(one.noise_shape)
        starts = {}
        for name in part.scheduled:
            values = getattr(part, name)
            if len(values) > 1:
                raise PglabError(
                    f"Estimator option {name!r} has {len(values)} values; a plain objective takes one at a time."
                )
            starts[name] = values[0].start
        learned = as_dtype(part.initial(noise, event, 0), first.dtype)
        state = against.initial(1, first.device)
        state = as_dtype(state, first.dtype)
        found = cls(part, against, one.detach(), f, draws, noise, {**starts, **learned}, state, squeezed)
        return found._fitted(starts)

    # -- estimates

    def estimates(self, num_samples: int) -> dict[str, Tensor]:
        """See `estimate_gradient`."""
        if num_samples < 1:
            raise PglabError(f"num_samples must be at least 1, not {num_samples}.")
        found: list[list[Tensor]] = []
        for count, noise, counter in self._blocks(num_samples, self.noise):
            found.append([g[:count] for g in self._block(noise, counter, self._block_size)])
        return {
            name: self._shaped(torch.cat(parts))
            for name, parts in zip(self.distribution.parameters, zip(*found, strict=True), strict=True)
        }

    @property
    def _block_size(self) -> int:
        """Estimates at a time: a function of the problem alone, so that an estimate's noise depends on its number only."""
        numbers = math.prod(self.distribution.noise_shape) * self.draws
        extra = self.estimator.extra_noise(self.distribution.noise_kind, tuple(self.distribution.noise_shape))
        numbers += sum(math.prod(shape) for _, shape in extra.values()) * self.draws
        numbers *= max(1, self.estimator.width(self.distribution))
        return max(1, min(8192, BLOCK // numbers))

    def _blocks(self, num_samples: int, noise: Noise) -> Iterator[tuple[int, Noise, int]]:
        size = self._block_size
        for counter, start in enumerate(range(0, num_samples, size)):
            yield min(size, num_samples - start), noise, counter

    def _rows(self, noise: Noise, counter: int, s: int, n: int) -> tuple[Distribution, Draw]:
        """The distribution on rows `[1, S, N]` and draws there."""
        rows, one = (1, s, n), self.distribution
        event = tuple(one.noise_shape)
        parameters = {p: getattr(one, p).expand(*rows, *event) for p in one.parameters}
        if isinstance(one, Categorical) and one.mask is not None:
            parameters["mask"] = one.mask.expand(*rows, *event)
        d = replace(one, **parameters)
        kind = d.noise_kind
        drawn = self._drawn(noise, kind, Purpose.ACTION, (counter,), (*rows, *event))
        extra = {
            name: self._drawn(noise, k, Purpose.EXTRA, (counter, i), (*rows, *shape))
            for i, (name, (k, shape)) in enumerate(sorted(self.estimator.extra_noise(kind, event).items()))
        }
        return d, Draw(d.sample(drawn), drawn, extra)

    def _drawn(
        self, noise: Noise, kind: str, purpose: Purpose, counter: tuple[int, ...], shape: tuple[int, ...]
    ) -> Tensor:
        dtype = getattr(self.distribution, self.distribution.parameters[0]).dtype
        wide = np.float64 if dtype == torch.float64 else np.float32
        return noise.of_kind(kind, purpose, counter, shape, dtype=wide)[0].to(dtype)

    def _signal(self, d: Distribution, draw: Draw) -> Signal:
        with torch.no_grad():
            value = self.critic(d.executed(draw.action)) if self._values else None
        obs = draw.action.new_zeros(*d.batch_shape, 0)
        return Signal(value=value, critic=self.critic, obs=obs)

    @property
    def _values(self) -> bool:
        return "value" in self.estimator.needs or (self.estimator.uses_baseline and self.baseline.name != "none")

    def critic(self, action: Tensor) -> Tensor:
        """f at actions `[*lead, *event]`, `[*lead]`. PglabError where f's result is not one number per action, or has no
        gradient where one is needed."""
        event = tuple(self.distribution.noise_shape)
        lead = action.shape[: action.ndim - len(event)]
        given = action.reshape(-1, *(event[1:] if self.squeezed else event))
        value = self.f(given)
        if not isinstance(value, Tensor) or value.shape != given.shape[:1]:
            shape = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise PglabError(
                f"f gave {shape} for {len(given)} actions {list(given.shape)}: one number each, [{len(given)}]."
            )
        if not value.is_floating_point():
            raise PglabError(f"f gave {value.dtype}; floating-point numbers are wanted.")
        if torch.is_grad_enabled() and action.requires_grad and not value.requires_grad:
            raise PglabError(
                f"Estimator {self.estimator.name!r} differentiates f, but f's result has no gradient with respect to its "
                "actions: write f in torch operations, or choose an estimator that needs values only."
            )
        return value.reshape(lead)

    def _batch(self, d: Distribution, draw: Draw, signal: Signal) -> Batch:
        value = signal.value
        assert value is not None
        return Batch(
            obs=draw.action.new_zeros(*value.shape, 0),
            value=value,
            valid=torch.ones_like(value, dtype=torch.bool),
            time=torch.zeros_like(value, dtype=torch.int64),
            distribution=d,
            critic=self.critic,
            action=draw.action,
            scores=lambda: self._scores(d, draw, signal),
            whole_episodes=True,  # of one step each
        )

    def _block(self, noise: Noise, counter: int, s: int) -> list[Tensor]:
        """One estimate per member, `[S, *event]` for every parameter."""
        d, draw = self._rows(noise, counter, s, self.draws)
        signal = self._signal(d, draw)
        if signal.value is not None and self.estimator.uses_baseline:
            state = repeat_members(self.baseline_state, s)
            signal = baselined(self.baseline, state, self._batch(d, draw, signal), signal)
        grads, _ = cotangents(self.estimator, d, draw, signal, self.estimator_state)
        if self.baseline.per_parameter:
            ones, _ = self._with_ones(d, draw, signal)
            b = self.baseline.coefficient(self.baseline_state)  # [1, n]
            sizes = [g[0, 0, 0].numel() for g in grads]
            parts = [c.reshape(g.shape[3:]) for c, g in zip(b[0].split(sizes), grads, strict=True)]
            grads = [g - c * one for g, one, c in zip(grads, ones, parts, strict=True)]
        return [g[0].mean(1) for g in grads]

    def _with_ones(self, d: Distribution, draw: Draw, signal: Signal) -> tuple[list[Tensor], Tensor]:
        assert signal.value is not None
        constant = replace(signal, value=torch.ones_like(signal.value), baseline=None)
        return cotangents(self.estimator, d, draw, constant, self.estimator_state)

    def _scores(self, d: Distribution, draw: Draw, signal: Signal) -> Scores:
        """A column is one draw; the parameters are the distribution's."""
        plain = replace(signal, baseline=None)
        values, _ = cotangents(self.estimator, d, draw, plain, self.estimator_state)
        ones, _ = self._with_ones(d, draw, signal)
        value = torch.cat([g[0].flatten(2) for g in values], -1)  # [S, N, n]
        one = torch.cat([g[0].flatten(2) for g in ones], -1)

        def along(baseline: Tensor) -> tuple[Tensor, Tensor]:
            left = value - baseline[0].unsqueeze(-1) * one
            return (one * left).sum(-1).unsqueeze(0), one.square().sum(-1).unsqueeze(0)

        return Scores(value, one, along)

    def _shaped(self, g: Tensor) -> Tensor:
        return g.squeeze(1) if self.squeezed else g

    # -- fitting

    def _fitted(self, starts: Mapping[str, Any]) -> Problem:
        """With what learns and adapts fitted on a stream of its own."""
        found = self
        noise = self.noise.apart(Purpose.FIT)
        adapts = self.baseline.adapts and self.estimator.uses_baseline
        batches = max(FIT_BATCHES if adapts else 0, self.estimator.fit_updates if self.estimator.learns else 0)
        for counter in range(batches):
            d, draw = found._rows(noise, counter, 1, FIT_ROWS)
            signal = found._signal(d, draw)
            state, learned = found.baseline_state, found.estimator_state
            if signal.value is not None and self.estimator.uses_baseline:
                batch = found._batch(d, draw, signal)
                signal = baselined(self.baseline, state, batch, signal)
                if adapts and counter < FIT_BATCHES:
                    state, _ = self.baseline.update(state, batch)
            if self.estimator.learns:
                weight = torch.full_like(draw.action[..., 0].reshape(1, 1, FIT_ROWS, -1)[..., 0], 1 / FIT_ROWS)
                learned, _ = self.estimator.update(learned, d, draw, signal, weight)
                learned = {**starts, **learned}
            found = replace(found, baseline_state=state, estimator_state=learned)
        return found


def without_rows(distribution: Distribution) -> tuple[Distribution, bool]:
    """The distribution with parameters of one row's shape, and whether an axis of one factor was put in front (a
    `Categorical` with logits `[K]`). PglabError for anything else."""
    wanted = distribution.event_ndim
    first = getattr(distribution, distribution.parameters[0])
    if not all(isinstance(getattr(distribution, p), Tensor) for p in distribution.parameters):
        raise PglabError(f"{type(distribution).__name__} wants tensors for {', '.join(distribution.parameters)}.")
    squeezed = wanted == 2 and first.ndim == 1
    if squeezed:
        mask = getattr(distribution, "mask", None)
        parts: dict[str, Any] = {p: getattr(distribution, p).unsqueeze(0) for p in distribution.parameters}
        distribution = replace(distribution, **parts, **({} if mask is None else {"mask": mask.unsqueeze(0)}))
    shapes = [list(getattr(distribution, p).shape) for p in distribution.parameters]
    if any(len(s) != wanted or s != shapes[0] for s in shapes):
        given = ", ".join(f"{p} {s}" for p, s in zip(distribution.parameters, shapes, strict=True))
        allowed = "[D, K] or [K]" if wanted == 2 else "[D], the same for all"
        raise PglabError(f"{type(distribution).__name__} of a plain objective wants {allowed}; given: {given}.")
    if not first.is_floating_point():
        raise PglabError(f"{type(distribution).__name__} wants floating-point parameters, not {first.dtype}.")
    distribution.check()
    return distribution, squeezed


def _built(registry: Any, given: Any, options: Mapping[str, Any]) -> Any:
    if options and not isinstance(given, str):
        raise PglabError(f"Options ({', '.join(options)}) go with an estimator's name; give them in the part itself.")
    try:
        return registry.build({"name": given, **options} if isinstance(given, str) else given)
    except ValueError as error:
        raise PglabError(str(error)) from None


def _check(estimator: Estimator, baseline: Baseline, distribution: Distribution, draws: int) -> None:
    family = type(distribution)
    if not estimator.serves(family):
        fits = ", ".join(n for n in ESTIMATORS.names() if ESTIMATORS.get(n).serves(family))
        raise PglabError(
            f"Estimator {estimator.name!r} does not serve {family.__name__} ({family.kind}; only {estimator.served()}): "
            f"choose one of {fits}."
        )
    if draws < 1:
        raise PglabError(f"draws must be at least 1, not {draws}.")
    if baseline.name != "none" and not estimator.uses_baseline:
        users = ", ".join(n for n in ESTIMATORS.names() if ESTIMATORS.get(n).uses_baseline)
        raise PglabError(f"Estimator {estimator.name!r} uses no baseline: choose none, or an estimator of {users}.")
    if "v" in baseline.needs:
        raise PglabError(f"Baseline {baseline.name!r} needs a learned V(s), and a plain objective has no states.")
    if baseline.couples and draws < 2:
        raise PglabError(f"Baseline {baseline.name!r} compares the draws of one estimate: draws must be at least 2.")
    if "scores" in baseline.needs and not estimator.linear:
        raise PglabError(
            f"Baseline {baseline.name!r} needs an estimate that is linear in the value, which {estimator.name!r} is not: "
            f"choose one of {', '.join(n for n in ESTIMATORS.names() if ESTIMATORS.get(n).linear)}."
        )
