"""The gradient of the objective itself, which estimates are held to: exact where there is a way, else a large sample.

Letters: K chunks, E episodes of a chunk, M states, S states of a table, n parameters.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from contextlib import closing

import numpy as np
import torch
from torch import Tensor

from pglab.agents import ActorCriticAgent, OnPolicyAgent
from pglab.environments.contract import Environment
from pglab.environments.torch_native import TorchEnvironment
from pglab.errors import PglabError
from pglab.estimators import ESTIMATORS, Draw, Signal
from pglab.executors import Eager
from pglab.gradients import cotangents, entropy
from pglab.lab.exact_references import exact_reference
from pglab.lab.exact_states import critic_at, exact_cotangents, has_exact
from pglab.lab.jacobian import Jacobian, pair_cotangents, sections
from pglab.lab.onward import entropy_weight, onward, settable, tail
from pglab.lab.reference import Reference, said_of
from pglab.lab.sampling import REFERENCE
from pglab.lab.subject import Subject
from pglab.noise import Counter, Purpose
from pglab.policy import CLASSES
from pglab.returns import discount_powers, monte_carlo
from pglab.rollout import Position, Rollout, whole_episodes

CHUNKS = 32
"""Independent parts of a sampled reference, from whose spread its noise is known."""
COLUMNS = 8192
"""Environments played at a time."""


def true_gradient(subject: Subject, draws: int) -> Reference:
    """grad J of a subject: exact where the environment has it, else from about `draws` episodes (on-policy agents, and
    environments that cannot be set to a state) or states (actor-critic agents)."""
    if draws < CHUNKS:
        raise PglabError(f"The reference needs at least {CHUNKS} episodes or states, not {draws}.")
    agent = subject.agent
    with closing(subject.environment(1)) as env:
        if isinstance(agent, OnPolicyAgent):
            found = exact_reference(subject, agent, env)
            return _sampled(subject, agent, draws) if found is None else found
        if settable(env) and has_exact(CLASSES[agent.policy.family], agent.policy.action):
            return _at_replayed(subject, agent, draws)
    return _sampled(subject, agent, draws)


# -- sampled


class _Chunks:
    """Sums over chunks, from which a mean (or a ratio of means) and its noise come."""

    def __init__(self, places: Mapping[str, slice]) -> None:
        self.places = places
        self.sums: list[Tensor] = []  # [G, n] of each chunk: several gradients
        self.counts: list[float] = []

    def add(self, sums: Tensor, count: float) -> None:
        self.sums.append(sums.double().cpu())
        self.counts.append(count)

    def ratio(self, index: int, plus: np.ndarray | float = 0.0) -> tuple[np.ndarray, dict[str, float], float]:
        """The ratio sum / count of gradient number `index`, its noise by section, and the cosine of its halves with `plus`, a
        part that is known, added."""
        g = torch.stack([s[index] for s in self.sums]).numpy()  # [K, n]
        c = np.array(self.counts)
        value = g.sum(0) / c.sum()
        rest = (g - c[:, None] * value) / c.mean()  # what each chunk adds to the error of the ratio
        k = len(c)
        noise = {name: float((rest[:, place] ** 2).sum()) / (k * (k - 1)) for name, place in self.places.items()}
        noise["total"] = float((rest**2).sum()) / (k * (k - 1))
        a, b = (plus + g[i::2].sum(0) / c[i::2].sum() for i in (0, 1))
        norm = np.linalg.norm(a) * np.linalg.norm(b)
        return value, noise, float(a @ b / norm) if norm > 0 else math.nan


def _sampled(subject: Subject, agent: OnPolicyAgent | ActorCriticAgent, episodes: int) -> Reference:
    """From whole episodes of the policy, with score_function on their returns and V (else the other episodes' mean at the
    same step) as baseline: both leave it unbiased."""
    replay = isinstance(agent, ActorCriticAgent)
    discount = float(agent.hyper("discount")[0, 0])
    limit = agent.spec.max_episode_steps or 1000
    bootstraps = replay or agent.bootstraps  # type: ignore[union-attr]
    beyond = tail(discount) if bootstraps else 0
    each = max(2, -(-episodes // CHUNKS))
    alpha = entropy_weight(agent)
    twin = agent.replicated(range(1), subject.number, REFERENCE)
    twin.executor = Eager()
    chunks = _Chunks(sections(agent.policy_parameters))
    lengths, steps = 0, 0
    estimator = ESTIMATORS.build("score_function")
    whole = isinstance(agent, OnPolicyAgent) and agent.settings.collect == "episodes"
    summed = isinstance(agent, OnPolicyAgent) and agent.settings.reduction == "mean_over_episodes"
    with closing(subject.environment(1, each, limit + beyond if beyond else None)) as env:
        for k in range(CHUNKS):
            rollout = _episodes(twin, env, (k,))
            steps += int(rollout.valid.sum())
            kept = min(len(rollout), limit)
            inside = rollout.valid & (rollout.time < limit)
            with torch.no_grad():
                obs = agent.preprocessor.observations(rollout.obs)
                reward = torch.where(rollout.valid, agent.preprocessor.rewards(rollout.reward), 0.0)
                mask = None if rollout.action_mask is None else rollout.action_mask[:kept]
                if replay and alpha is not None:
                    h = entropy(
                        agent.policy.distribution(agent.policy_parameters, obs, rollout.action_mask), rollout.noise
                    )
                    h = torch.where(rollout.valid, alpha * h, 0.0)
                    value = monte_carlo(reward + h, rollout.ended, discount) - h
                else:
                    value = monte_carlo(reward, rollout.ended, discount)
                value, obs, inside = value[:kept], obs[:kept], inside[:kept]
                if not replay and agent.value_parameters is not None:  # type: ignore[union-attr]
                    baseline = agent.v(obs)  # type: ignore[union-attr]
                else:
                    alive = inside.to(value.dtype)
                    others = (value * alive).sum(2, keepdim=True) - value * alive
                    baseline = others / (alive.sum(2, keepdim=True) - alive).clamp_min(1)
            jacobian = Jacobian(agent.policy, agent.policy_parameters, obs, mask)
            draw = Draw(rollout.action[:kept], rollout.noise[:kept])
            grads, _ = cotangents(
                estimator,
                jacobian.distribution,
                draw,
                Signal(value=value, baseline=baseline.detach()),
                {},
                alpha,
                draw.noise,
            )
            weight = inside.to(value.dtype)
            powers = weight * discount_powers(rollout.time[:kept], torch.full((1, 1), discount, device=value.device))
            both = jacobian.pull([pair_cotangents(grads, w) for w in (weight, powers)], "batch")[:, 0]  # [2, n]
            count = float(inside.sum())
            lengths += int(count)
            per_episode = whole and summed
            chunks.add(both, float(each) if per_episode else count)
    discounts = not replay and agent.settings.discount_states  # type: ignore[union-attr]
    (gradient, noise, halves), (other, apart, _) = (chunks.ratio(i) for i in ((1, 0) if discounts else (0, 1)))
    if isinstance(agent, OnPolicyAgent) and summed and not whole:
        factor = agent.settings.steps
        gradient, other = gradient * factor, other * factor
        noise, apart = ({name: x * factor**2 for name, x in found.items()} for found in (noise, apart))
    conventions = ("step t weighs gamma^t", "every step weighs the same")
    mine, others_said = conventions if discounts else conventions[::-1]
    if replay:
        own, later = "", ""
        if alpha is not None:
            own, later = " + the weighted entropy's gradient", ", later entropies included"
        said = (
            f"E[grad log pi(a|s) Q(s, a)]{own} with the returns of the policy itself (up to {beyond} steps past the time limit "
            f"of {limit}{later}), averaged over the steps of its own episodes, not over the buffer's states"
        )
    else:
        said = said_of(agent, limit, beyond)  # type: ignore[arg-type]
    said = f"From {each * CHUNKS:,} whole episodes ({steps:,} steps): {said}; {mine}"
    return Reference(said, gradient, other, others_said, noise, halves, None, each * CHUNKS, steps, apart["total"])


def _episodes(twin: OnPolicyAgent | ActorCriticAgent, env: Environment, counter: Counter) -> Rollout:
    """One whole episode of every environment."""

    def play(position: Position, actions: Tensor, resets: Tensor | None) -> tuple[Rollout, Position]:
        return twin.executor.block(twin, env, position, actions, resets)[:2]

    return whole_episodes(env, play, twin.noise, counter, 64, twin.event)


def _at_replayed(subject: Subject, agent: ActorCriticAgent, states: int) -> Reference:
    """The exact gradient of the critic at all states of the buffer, plus, at `states` of them that are put into the
    environment, score_function of what the critic is wrong by: Q(s, a) as the policy plays on from there less the critic's.
    Only the second part is sampled."""
    discount = float(agent.hyper("discount")[0, 0])
    each = max(2, -(-states // CHUNKS))
    at_once = max(1, min(CHUNKS, COLUMNS // (2 * each)))
    horizon = tail(discount)
    twin = agent.replicated(range(1), subject.number, REFERENCE)
    chunks, on_policy = (_Chunks(sections(agent.policy_parameters)) for _ in range(2))
    steps = 0
    for first in range(0, CHUNKS, at_once):
        numbers = range(first, min(first + at_once, CHUNKS))
        g = len(numbers)
        with (
            closing(subject.environment(1, 2 * g * each, 10**9)) as env,
            closing(subject.environment(1, max(2 * g, 64))) as playing,
        ):
            assert isinstance(env, TorchEnvironment)
            u = twin.noise.uniform(Purpose.REPLAY, (first,), (g * each,))
            rows = agent.replay.sample(u, agent.newest)
            weight = rows.valid[0].view(g, each)
            own = _visited(twin, playing, first, g * each)
            for which, into, raw, w in (
                (0, chunks, rows.obs[0], weight),
                (1, on_policy, own, torch.ones_like(weight)),
            ):
                found = _wrongness(agent, twin, env, raw.view(g, each, -1), w, horizon, (first, which))
                for i in range(g):
                    into.add(found[:, i], float(w[i].sum()))
            steps += 4 * g * each * horizon
    believed = _of_buffer(agent)
    wrong, noise, halves = chunks.ratio(1, believed)
    gradient = believed + wrong
    other, apart, _ = on_policy.ratio(0)
    norm = float(gradient @ gradient) - noise["total"]
    share = max(0.0, float(wrong @ wrong) - noise["total"]) / norm if norm > 0 else math.nan
    held = agent.replay.size if agent.newest is None else min(agent.newest, agent.replay.size)
    bonus, later = "", ""
    if entropy_weight(agent) is not None:
        bonus, later = " + the weighted entropy's gradient", ", later entropies included"
    said = (
        f"E[grad log pi(a|s) Q(s, a)]{bonus} with the returns of the policy itself{later}, states weighted as in the buffer: the "
        f"critic's exact gradient at all {held:,} of them, and its error at {each * CHUNKS:,}, each gone on from for "
        f"up to {horizon} steps"
    )
    about = "states weighted as the policy visits them"
    return Reference(said, gradient, other, about, noise, halves, share, each * CHUNKS, steps, apart["total"])


def _of_buffer(agent: ActorCriticAgent) -> np.ndarray:
    """The exact gradient of the critic, `[n]`, averaged over all transitions that minibatches are drawn from."""
    replay = agent.replay
    size = replay.size if agent.newest is None else min(agent.newest, replay.size)
    total, count = np.zeros(agent.policy_parameters.size), 0.0
    for start in range(0, size, COLUMNS):
        few = torch.arange(start, min(start + COLUMNS, size), device=agent.noise.device)
        rows = replay.sample(((few + 0.5) / size).unsqueeze(0), agent.newest)  # every one of them once
        obs = agent.preprocessor.observations(rows.obs)  # [1, M, O]
        mask = None if rows.action_mask is None else rows.action_mask.unflatten(-1, agent.spec.action.event_shape) > 0.5
        jacobian = Jacobian(
            agent.policy, agent.policy_parameters, obs.unsqueeze(0), None if mask is None else mask.unsqueeze(0)
        )
        exact = pair_cotangents(exact_cotangents(agent, jacobian.distribution, obs), rows.valid.unsqueeze(0))
        total += jacobian.pull([exact], "batch")[0, 0].double().cpu().numpy()
        count += float(rows.valid.sum())
    return total / count


def _wrongness(
    agent: ActorCriticAgent,
    twin: ActorCriticAgent,
    env: TorchEnvironment,
    raw: Tensor,
    weight: Tensor,
    horizon: int,
    counter: tuple[int, ...],
) -> Tensor:
    """Sums over the states `raw` `[G, E, O]` of each of G chunks: of grad J's rows, and of the part of it that is the
    critic's error, `[2, G, n]`."""
    g, each, _ = raw.shape
    obs = agent.preprocessor.observations(raw)  # [G, E, O]
    jacobian = Jacobian(agent.policy, agent.policy_parameters, obs.unsqueeze(0))
    distribution = jacobian.distribution  # rows [1, G, E]
    kind, shape = agent.event
    noise = twin.noise.of_kind(kind, Purpose.UPDATE, counter, (2, g, each, *shape))[0].unsqueeze(1)  # [2, 1, G, E, ...]
    everything = copy.copy(agent)
    everything.critic = copy.copy(agent.critic)
    everything.critic.parameters = agent.critic.parameters.repeated(g)
    critic, actions, off = critic_at(everything, obs), [], []
    for one in noise:
        actions.append(distribution.sample(one))
        with torch.no_grad():
            off.append(critic(distribution.executed(actions[-1])))  # [1, G, E]
    taken = torch.stack([a[0].flatten(0, 1) for a in actions])  # [2, G*E, *event]
    played = onward(agent, env, raw.flatten(0, 1), taken, horizon, twin.noise, counter).view(2, 1, g, each)
    first, second = (q - believed for q, believed in zip(played, off, strict=True))
    # Each action's baseline is what the other came to.
    parts = [exact_cotangents(everything, distribution, obs)]
    for action, one, value in zip(actions, noise, (first - second, second - first), strict=True):
        signal = Signal(value=value / 2)
        parts.append(cotangents(ESTIMATORS.build("score_function"), distribution, Draw(action, one), signal)[0])
    exact, *wrong = parts
    error = [a + b for a, b in zip(*wrong, strict=True)]
    w = weight.unsqueeze(0)
    both = [pair_cotangents([a + b for a, b in zip(exact, error, strict=True)], w), pair_cotangents(error, w)]
    return jacobian.pull(both, "batch")


def _visited(twin: ActorCriticAgent, env: Environment, k: int, states: int) -> Tensor:
    """`states` observations `[M, O]`, drawn uniformly from the steps of whole episodes of the policy."""
    rollout = _episodes(twin, env, (k, 2))
    seen = rollout.obs[rollout.valid]  # [steps, O]
    u = twin.noise.uniform(Purpose.REPLAY, (k, 1), (states,))[0]
    return seen[(u * len(seen)).long().clamp_max(len(seen) - 1)]
