"""The law of total variance of the whole-episode policy gradient at a frozen policy, by an unbiased nested design.

One episode's gradient is g = sum_t x_t with x_t = w_t (Q_t - b(s_t)) grad log pi(a_t | s_t): Q_t the discounted reward-to-go to
the episode's end (the time limit is the horizon), w_t = gamma^t where the agent weighs states so, else 1, and x_t = 0 after
the end. The variance of each x_t has three parts,

    tau     trace E[Var(x_t | s_t, a_t)]             what comes after the action: outcomes and later actions
    action  trace E[Var(E[x_t | s_t, a_t] | s_t)]    which action was drawn
    state   trace Var(E[x_t | s_t])                  where the policy was (and whether the episode was still under way)

and trace Var(g) = sum_t trace Var(x_t) + cross, cross = sum over t != u of trace Cov(x_t, x_u), which the law leaves out and
which is estimated here by itself: E[|g|^2 - sum_t |x_t|^2] - (|E g|^2 - sum_t |E x_t|^2).

**Design.** At a state of a main episode there are its action a_1 with its reward-to-go Q_11, another action a_2 drawn
independently, and further independent continuations: Q_12 of a_1, Q_21 and Q_22 of a_2. With scores z_i, D_ij = Q_ij - b
and bars for means over j,

    tau     w^2 mean_i |z_i|^2 (Q_i1 - Q_i2)^2 / 2                    free of b
    action  w^2 (mean_i |z_i|^2 D_i1 D_i2  -  z_1 . z_2 D_1 D_2 (bars))
    state   w^2 z_1 . z_2 D_1 D_2 (bars)  -  |E x_t|^2                the last a U-statistic over episodes

have these means. Squared norms of means are U-statistics over pairs of different episodes, so all is unbiased, and parts
may come out negative.

**Errors.** The independent unit is the episode with all that continues from it. Every statistic is a mean over episodes or
a U-statistic over them; leaving out one episode at a time gives each one's contribution, and contributions add up as the
statistics do, so that what parts have in common is accounted for. Intervals are Student's t, transformed by Hall's
(1992) monotone cubic for the skewness of the contributions.

Source: Tucker, Bhupatiraju, Gu, Turner, Ghahramani & Levine (2018), "The mirage of action-dependent baselines in
reinforcement learning", section 3.

Letters: T time, E episodes, R nested states, n parameters, O observation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pglab.agents import ActorCriticAgent, OnPolicyAgent
from pglab.environments.torch_native import TorchEnvironment
from pglab.errors import PglabError, unknown
from pglab.gradients import RowGradients, row_gradients
from pglab.lab.continuations import Episodes, Player, branches_from, decomposable, scores
from pglab.lab.intervals import hall, quantile_of
from pglab.lab.sampling import DECOMPOSE
from pglab.lab.subject import Subject
from pglab.noise import Purpose

StateBaseline = Callable[[Tensor, Tensor], Tensor]
"""b: observations `[T, 1, E, O]` as the networks see them and steps in the episode `[T, 1, E]` (int64) to `[T, 1, E]`, row by
row, in units of the reward as the agent learns from it."""

ROWS = 60_000
"""Rows of the main episodes whose gradients are held at a time, as factors."""


@dataclass(frozen=True)
class Interval:
    """A number with its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Series:
    """A number for every step of the episode, with its standard error."""

    value: np.ndarray  # [T]
    error: np.ndarray  # [T]


@dataclass(frozen=True)
class Parts:
    """The decomposition with one baseline, in squared units of one episode's gradient."""

    tau: Series
    action: Series
    state: Series
    squared_mean: Series
    """|E x_t|^2, which no baseline changes."""
    sums: dict[str, Interval]
    """`tau`, `action`, `state`: sums over time. `cross`: the covariance between steps. `total`: trace Var(g), from the
    whole episodes alone. `gap`: `total` less the four others, 0 within its interval. `squared_mean`: |E g|^2."""
    removable: Interval
    """Sum over time of `action`: all of sum_t trace Var(x_t) that an action-dependent baseline could still remove once this
    baseline is subtracted. (It would change `cross` too, either way.)"""
    removable_share: Interval
    """`removable` as a share of `total` (a ratio: biased by O(1 / E), as the next)."""
    removable_share_of_steps: Interval
    """`removable` as a share of sum_t trace Var(x_t), as in Tucker et al."""


@dataclass(frozen=True)
class Decomposition:
    """Made by `decompose`. T is the length of the longest main episode; later steps were not reached."""

    baselines: dict[str, Parts]
    alive: np.ndarray  # [T]: the share of the main episodes that have a step t
    episodes: int
    states_per_step: int
    """Episodes of which the state is continued from, in every step; those that have ended count, as zeros."""
    steps: int
    """Environment steps that were played."""
    definition: str

    def plain(self) -> dict[str, Any]:
        """Everything as JSON holds it; what is not finite is None."""
        return _plain(self)


def decompose(
    subject: Subject,
    episodes: int = 64,
    baselines: Sequence[str | StateBaseline | tuple[str, StateBaseline]] = ("none", "value"),
    states_per_step: int | None = None,
    seed_offset: int = 0,
) -> Decomposition:
    """The variance of one whole episode's policy gradient, by its sources (see the top of this file).

    The gradient is that of the return, by the score function with discounted rewards-to-go, whatever estimator, returns and
    entropy weight the subject was trained with; its policy, normalisers and discount are what is used. All baselines are
    measured on the same draws, which depend on nothing but subject, arguments and `seed_offset`.

    Args:
        subject: a frozen agent of either kind in a torch-native environment.
        episodes: main episodes E.
        baselines: `none`; `value`, the agent's own V; or functions (see `StateBaseline`), by themselves or as (name, function).
        states_per_step: in every step, only so many episodes are continued from, drawn at random beforehand; None for all.
        seed_offset: another number gives independent draws.

    Raises:
        PglabError: the environment cannot be put into a given state; the agent has no V and `value` is asked for; a
            baseline is unknown, named twice, or gives another shape or a number that is not finite; fewer than 8
            episodes or 2 states per step.
    """
    decomposable(subject)
    agent = subject.agent
    if episodes < 8:
        raise PglabError(f"A decomposition needs at least 8 episodes for its intervals, got {episodes}.")
    nested = episodes if states_per_step is None else min(states_per_step, episodes)
    if nested < 2:
        raise PglabError(f"states_per_step must be at least 2, got {states_per_step}.")
    named = _named(baselines, agent)
    discount = float(agent.hyper("discount"))
    weighs = isinstance(agent, OnPolicyAgent) and agent.settings.discount_states
    noise = agent.noise.apart(Purpose.MEASUREMENT, subject.number, DECOMPOSE, seed_offset)
    with closing(subject.environment(1, episodes)) as env:
        assert isinstance(env, TorchEnvironment)
        player = Player(agent, env, noise)
        main = player.episodes((0,))
        t = len(main.alive)
        # Who is continued from is drawn before anything is known of the episodes, anew for every step.
        keys = noise.uniform(Purpose.REPLAY, (1,), (player.limit or t, episodes))[0, :t]  # [T, E]
        chosen = keys.argsort(1).argsort(1) < nested  # [T, E] bool
        branches = branches_from(player, main, chosen & main.alive, discount)
    weight = (discount if weighs else 1.0) ** np.arange(t)[:, None]  # [T, 1]
    value = main.to_go(discount).cpu().double().numpy()  # [T, E]
    alive, picked = main.alive.cpu().numpy(), chosen.cpu().numpy()
    b = {name: _predicted(name, f, main) for name, f in named.items()}
    advantages = {name: weight * np.where(alive, value - x, 0.0) for name, x in b.items()}
    whole = _whole(agent, main, advantages)
    found = {}
    for name, x in b.items():
        tau, action, same = (_mean(y, picked) for y in branches.parts(weight, value, x))
        found[name] = _assembled(tau, action, same, *whole[name])
    how = f"w_t = {discount:g}^t" if weighs else "w_t = 1"
    return Decomposition(
        found, alive.mean(1), episodes, nested, player.steps, DEFINITION.format(discount=f"{discount:g}", weight=how)
    )


DEFINITION = (
    "Trace of the covariance of one whole episode's gradient g = sum_t x_t, x_t = w_t (Q_t - b(s_t)) grad log pi(a_t|s_t), at a "
    "frozen policy, with Q_t the reward-to-go to the episode's end discounted by {discount}, {weight}, and x_t = 0 after the "
    "end: total = sum_t (tau_t + action_t + state_t) + cross (Tucker et al. 2018, section 3; cross is the covariance "
    "between steps). Unbiased nested estimates; 95 % intervals by leaving out episodes."
)


# -- baselines


def _named(
    baselines: Sequence[str | StateBaseline | tuple[str, StateBaseline]], agent: OnPolicyAgent | ActorCriticAgent
) -> dict[str, StateBaseline]:
    found: dict[str, StateBaseline] = {}
    for one in baselines:
        if isinstance(one, str):
            if one not in ("none", "value"):
                raise unknown("state baseline", one, ("none", "value"))
            name, f = one, _nothing if one == "none" else _value(agent)
        else:
            name, f = one if isinstance(one, tuple) else (getattr(one, "__name__", type(one).__name__), one)
        if name in found:
            raise PglabError(f"Two baselines are named {name!r}: give them names, as (name, function).")
        found[name] = f
    if not found:
        raise PglabError("There is no baseline to decompose with: name at least one, such as 'none'.")
    return found


def _nothing(obs: Tensor, time: Tensor) -> Tensor:
    return torch.zeros(time.shape, device=obs.device)


def _value(agent: OnPolicyAgent | ActorCriticAgent) -> StateBaseline:
    if not isinstance(agent, OnPolicyAgent) or agent.value_parameters is None:
        raise PglabError(
            f"Baseline 'value' needs a learned V, and this {agent.config.agent.name} agent has none: leave it out, give a function "
            "of your own, or train with baseline: value."
        )
    v = agent.v
    return lambda obs, time: v(obs)


def _predicted(name: str, baseline: StateBaseline, main: Episodes) -> np.ndarray:
    """`[T, E]` float64; 0 where no step was taken."""
    time = main.time.unsqueeze(1)  # [T, 1, E]
    with torch.no_grad():
        found = baseline(main.obs, time)
    if found.shape != time.shape:
        raise PglabError(f"Baseline {name!r} gave shape {list(found.shape)}; the rows want {list(time.shape)}.")
    b = np.where(main.alive.cpu().numpy(), found[:, 0].cpu().double().numpy(), 0.0)
    if not np.isfinite(b).all():
        raise PglabError(f"Baseline {name!r} gave a number that is not finite.")
    return b


# -- gradients


def _whole(
    agent: OnPolicyAgent | ActorCriticAgent, main: Episodes, advantages: dict[str, np.ndarray]
) -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]:
    """Of every baseline, the squares and the products with their sums over episodes of x_t, `[T, E]` each, and of g, `[E]`
    each; `advantages` `[T, E]` hold the weights."""
    steps, episodes = main.alive.shape
    times = {name: torch.from_numpy(x).to(main.reward) for name, x in advantages.items()}  # [T, E]
    squares = {name: np.zeros((steps, episodes)) for name in times}
    along = {name: np.zeros((steps, episodes)) for name in times}
    wide = max(1, ROWS // episodes)
    for at in range(0, steps, wide):
        part = slice(at, at + wide)
        # Columns are steps and rows are episodes: a column's sum is that of x_t over episodes.
        rows = _row_gradients(agent, *(x[part].transpose(0, 2) for x in (main.obs, main.action, main.noise)))
        norms = rows.squared_norms()  # [E, 1, T]
        for name, x in times.items():
            by = x[part].T.unsqueeze(1)  # [E, 1, T]
            products = by * rows.along(rows.column_sums(by))
            squares[name][part] = (by.square() * norms)[:, 0].T.cpu()
            along[name][part] = products[:, 0].T.cpu()
    gradients: dict[str, list[Tensor]] = {name: [] for name in times}
    wide = max(1, ROWS // steps)
    for at in range(0, episodes, wide):
        part = slice(at, at + wide)
        rows = _row_gradients(agent, main.obs[:, :, part], main.action[:, :, part], main.noise[:, :, part])
        for name, x in times.items():
            gradients[name].append(rows.column_sums(x[:, part].unsqueeze(1))[0].cpu())  # [E, n]
    found = {}
    for name, parts in gradients.items():
        g = torch.cat(parts).double()
        found[name] = (squares[name], along[name], g.square().sum(1).numpy(), (g @ g.sum(0)).numpy())
    return found


def _row_gradients(agent: OnPolicyAgent | ActorCriticAgent, obs: Tensor, action: Tensor, noise: Tensor) -> RowGradients:
    """grad log pi of every row, of three axes whichever they are."""
    policy, parameters = agent.policy, agent.policy_parameters
    with torch.no_grad():
        distribution = policy.distribution(parameters, obs, None).detach()
    ones = torch.ones(obs.shape[:3], device=obs.device)
    return row_gradients(policy, parameters, obs, scores(distribution, action, noise), ones)


# -- statistics over episodes


@dataclass(frozen=True)
class _Statistic:
    """Estimates and every episode's contribution to their errors: squares and products of contributions, summed over
    episodes, are the jackknife's variances and covariances (Efron & Stein 1981)."""

    value: np.ndarray  # [...]
    contributions: np.ndarray  # [..., E]

    def __add__(self, other: _Statistic) -> _Statistic:
        return _Statistic(self.value + other.value, self.contributions + other.contributions)

    def __sub__(self, other: _Statistic) -> _Statistic:
        return _Statistic(self.value - other.value, self.contributions - other.contributions)

    def over(self, other: _Statistic) -> _Statistic:
        """The ratio, its error by the delta method."""
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = self.value / other.value
            return _Statistic(ratio, (self.contributions - ratio * other.contributions) / other.value)

    def summed(self) -> _Statistic:
        """Over time."""
        return _Statistic(self.value.sum(0), self.contributions.sum(0))

    def series(self) -> Series:
        return Series(self.value, np.sqrt((self.contributions**2).sum(-1)))

    def interval(self) -> Interval:
        value, c = float(self.value), self.contributions
        error = math.sqrt((c**2).sum())
        if not error > 0:  # nothing varies, or nothing is there
            return Interval(value, value + error, value + error)
        quantile, n = quantile_of(len(c)), len(c)
        skewness = np.sqrt(n) * (c**3).sum() / error**3
        low, high = (value - error * float(hall(q, skewness, n)) for q in (quantile, -quantile))
        return Interval(value, low, high)


def _mean(y: np.ndarray, chosen: np.ndarray) -> _Statistic:
    """Mean over the `chosen` episodes, equally many in every step; `[T, E]` both."""
    m = chosen[0].sum()
    value = (y * chosen).sum(-1) / m
    return _Statistic(value, (y - value[:, None]) * chosen / math.sqrt(m * (m - 1)))


def _squared_mean(squares: np.ndarray, along: np.ndarray) -> _Statistic:
    """|E y|^2 over pairs of different episodes, from |y_e|^2 and y_e . sum of all y, `[..., E]` both."""
    n = squares.shape[-1]
    pairs = along - squares  # y_e . sum of the others
    apart = pairs - pairs.mean(-1, keepdims=True)
    # Without episode e there are (n - 1) (n - 2) ordered pairs, and both orders of each pair with e are gone.
    return _Statistic(pairs.sum(-1) / (n * (n - 1)), math.sqrt((n - 1) / n) * 2 * apart / ((n - 1) * (n - 2)))


def _assembled(
    tau: _Statistic,
    action: _Statistic,
    same_state: _Statistic,
    squares: np.ndarray,
    along: np.ndarray,
    whole_squares: np.ndarray,
    whole_along: np.ndarray,
) -> Parts:
    everyone = np.ones((1, len(whole_squares)), dtype=bool)
    by_step, of_all = _squared_mean(squares, along), _squared_mean(whole_squares, whole_along)
    state = same_state - by_step
    total = _mean(whole_squares[None], everyone).summed() - of_all
    between = _mean((whole_squares - squares.sum(0))[None], everyone).summed()
    cross = between - (of_all - by_step.summed())
    sums = {"tau": tau.summed(), "action": action.summed(), "state": state.summed()}
    steps = sums["tau"] + sums["action"] + sums["state"]
    sums |= {"cross": cross, "total": total, "gap": total - steps - cross, "squared_mean": of_all}
    removable = sums["action"]
    return Parts(
        tau.series(),
        action.series(),
        state.series(),
        by_step.series(),
        {name: x.interval() for name, x in sums.items()},
        removable.interval(),
        removable.over(total).interval(),
        removable.over(steps).interval(),
    )


def _plain(x: Any) -> Any:
    if isinstance(x, dict):
        return {name: _plain(y) for name, y in x.items()}
    if isinstance(x, np.ndarray | list):
        return [_plain(y) for y in x]
    if isinstance(x, float | np.floating):
        return float(x) if math.isfinite(x) else None
    if isinstance(x, int | str):
        return x
    return {name: _plain(y) for name, y in vars(x).items()}
