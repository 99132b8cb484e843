"""Whole episodes of a frozen policy, and further episodes that continue from the states it was in.

Only torch-native environments can do this: all that changes in them is a state and a count of steps, and a step is a
function of the two. A continuation starts from any states at any steps, and the time limit goes on from there.

Letters: T time, E episodes, R rows (states to continue from), C columns (continuations under way), S state, O observation.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pglab.agents import ActorCriticAgent, OnPolicyAgent
from pglab.distributions import Distribution
from pglab.environments.factory import torch_class
from pglab.environments.torch_native import TorchEnvironment
from pglab.errors import PglabError
from pglab.estimators import ESTIMATORS, Draw, Signal
from pglab.gradients import cotangents
from pglab.lab.jacobian import Jacobian
from pglab.lab.subject import Subject
from pglab.noise import Counter, Noise, Purpose

COLUMNS = 8192
"""Continuations under way at a time."""
BLOCK = 32
"""Steps between two looks at who has ended; noise is drawn per block."""


def decomposable(subject: Subject) -> None:
    """PglabError where the environment is none that continuations can start in."""
    e = subject.config.env
    if torch_class(e.id, e.backend, e.kwargs) is None:
        raise PglabError(
            f"{e.id} (gymnasium's) cannot be put into a given state, and continuations start from given states: decompose "
            "takes torch-native environments, which `pglab list environments` names."
        )


@dataclass(frozen=True)
class Episodes:
    """Whole episodes. Rows that are not `alive` come after an episode's end: finite contents, reward 0."""

    state: Tensor  # [T, E, S]: before the step
    obs: Tensor  # [T, 1, E, O] as the networks see them
    action: Tensor  # [T, 1, E, *event]
    noise: Tensor  # [T, 1, E, *event]: what made the action
    reward: Tensor  # [T, E] as the agent learns from them
    alive: Tensor  # [T, E] bool

    @property
    def time(self) -> Tensor:
        """`[T, E]` int64: the step in the episode."""
        return torch.arange(len(self.alive), device=self.alive.device).unsqueeze(1).expand(self.alive.shape)

    def to_go(self, discount: float) -> Tensor:
        """Discounted reward-to-go to the episode's end, `[T, E]`."""
        found, later = torch.empty_like(self.reward), torch.zeros_like(self.reward[0])
        for t in reversed(range(len(found))):
            later = found[t] = self.reward[t] + discount * later  # rewards past the end are 0
        return found


class Player:
    """A frozen agent of one member in an environment whose columns can be put anywhere."""

    def __init__(self, agent: OnPolicyAgent | ActorCriticAgent, env: TorchEnvironment, noise: Noise) -> None:
        self.agent, self.env, self.noise = agent, env, noise
        self.limit = env.spec.max_episode_steps
        assert self.limit is not None  # a torch-native environment has one
        self.steps = 0
        """Environment steps played, those of ended columns in their last block included."""

    def episodes(self, counter: Counter) -> Episodes:
        """One whole episode of every column of the environment, from fresh starts; T is the longest one's length."""
        assert self.limit is not None
        with torch.no_grad():
            obs = self.env.reset(self.noise, (*counter, 0)).obs  # [1, E, O]
            state, elapsed = self.env.state, self.env.elapsed
            alive = torch.ones_like(elapsed, dtype=torch.bool)  # [1, E]
            rows: list[tuple[Tensor, ...]] = []
            for at in range(0, self.limit, BLOCK):
                noise, uniform = self._noise((*counter, 1, at), min(BLOCK, self.limit - at), state.shape[1])
                for eps, u in zip(noise, uniform, strict=True):
                    action = self.agent.act(obs, None).sample(eps)
                    before = (state[0], self.agent.preprocessor.observations(obs), action, eps)
                    state, elapsed, obs, reward, ended = self._step(state, elapsed, action, u)
                    rows.append((*before, torch.where(alive, reward, 0.0)[0], alive[0]))
                    alive = alive & ~ended
                if not bool(alive.any()):
                    break
            found = Episodes(*(torch.stack(column) for column in zip(*rows, strict=True)))
            longest = int(found.alive.any(1).sum())
            return Episodes(*(x[:longest] for x in vars(found).values()))

    def draw(self, obs: Tensor, counter: Counter) -> tuple[Tensor, Tensor]:
        """The policy's actions at `obs` `[1, R, O]`, as the networks see them, and the noise that made them,
        `[1, R, *event]` each."""
        kind, shape = self.agent.event
        noise = self.noise.of_kind(kind, Purpose.ACTION, counter, (obs.shape[1], *shape))
        with torch.no_grad():
            return self.agent.policy.distribution(self.agent.policy_parameters, obs, None).sample(noise), noise

    def continued(self, state: Tensor, elapsed: Tensor, action: Tensor, discount: float, counter: Counter) -> Tensor:
        """Discounted rewards `[C]` from these states on: the given action first, then the policy's own draws to the end.

        Args:
            state: `[C, S]`.
            elapsed: `[C]`, the steps that the episode has had.
            action: `[C, *event]`, the first one, as the policy draws it.
            discount: per step, from 1 at the first reward.
            counter: of the noise.
        """
        assert self.limit is not None
        with torch.no_grad():
            state, elapsed = state.unsqueeze(0), elapsed.to(torch.int32).unsqueeze(0)
            total = state.new_zeros(state.shape[1])  # [C]
            alive, weight, block = torch.ones_like(elapsed, dtype=torch.bool), 1.0, 0
            left = self.limit - int(elapsed.min())
            who = torch.arange(len(total), device=total.device)  # which continuation each column still under way is
            first: Tensor | None = action.unsqueeze(0)
            obs = self.env.env.observe(state)
            while len(who):
                steps = min(BLOCK, left - block * BLOCK)
                noise, uniform = self._noise((*counter, block), steps, len(who))
                for eps, u in zip(noise, uniform, strict=True):
                    drawn = self.agent.act(obs, None).sample(eps) if first is None else first
                    state, elapsed, obs, reward, ended = self._step(state, elapsed, drawn, u)
                    total[who] += weight * torch.where(alive, reward, 0.0)[0]
                    alive, weight, first = alive & ~ended, weight * discount, None
                kept = alive[0].nonzero()[:, 0]  # waits for the device
                state, elapsed, obs, alive = (x[:, kept] for x in (state, elapsed, obs, alive))
                who, block = who[kept], block + 1
            return total

    def _noise(self, counter: Counter, steps: int, columns: int) -> tuple[Tensor, Tensor]:
        """Of the actions, `[steps, 1, C, *event]`, and of the transitions, `[steps, 1, C, step_noise_size]`."""
        kind, shape = self.agent.event
        size = self.env.env.step_noise_size
        actions = self.noise.of_kind(kind, Purpose.ACTION, (*counter, 0), (steps, columns, *shape), axis=1)
        if not size:
            return actions, actions.new_empty(steps, 1, columns, 0)
        return actions, self.noise.uniform(Purpose.RESET, (*counter, 1), (steps, columns, size), axis=1)

    def _step(
        self, state: Tensor, elapsed: Tensor, action: Tensor, uniform: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """State, steps so far, raw observation, reward as the agent learns from it, and whether the episode has ended."""
        executed = self.agent.policy.present(self.agent.policy.executed(action))
        # Who has ended stays where it was: no new start is drawn, and contents remain finite.
        start = torch.cat((state, uniform.to(state)), -1) if uniform.shape[-1] else state
        state, elapsed, step = self.env.dynamics(state, elapsed, executed, start)
        self.steps += state.shape[1]
        return state, elapsed, step.obs, self.agent.preprocessor.rewards(step.reward), step.ended


def scores(distribution: Distribution, action: Tensor, noise: Tensor) -> list[Tensor]:
    """grad log pi of the actions, at the distribution's parameters: the score function's estimate for the value 1."""
    ones = Signal(value=torch.ones(distribution.batch_shape, device=action.device))
    return cotangents(ESTIMATORS.build("score_function"), distribution, Draw(action, noise), ones)[0]


@dataclass(frozen=True)
class Branches:
    """What is known at the nested states: squared norms and product of the scores of both actions, and rewards-to-go."""

    where: tuple[np.ndarray, np.ndarray]  # [R] each: t and e
    products: np.ndarray  # [3, R]: |z_1|^2, |z_2|^2, z_1 . z_2
    values: np.ndarray  # [3, R]: Q_12, Q_21, Q_22

    def parts(self, weight: np.ndarray, value: np.ndarray, b: np.ndarray) -> Iterator[np.ndarray]:
        """Unbiased terms `[T, E]` of the trajectory's and the action's part, and of E |E[x_t | s_t]|^2; `weight` `[T, 1]`,
        `value` `[T, E]` the main episodes' Q_11, and `b` `[T, E]`."""
        first, second, both = self.products
        q = np.stack([value[self.where], *self.values]).reshape(2, 2, -1)  # [i, j, R]
        d = q - b[self.where]
        norms = np.stack([first, second])
        same_action = (norms * d[:, 0] * d[:, 1]).mean(0)
        same_state = both * d[0].mean(0) * d[1].mean(0)
        spread = (norms * (q[:, 0] - q[:, 1]) ** 2).mean(0) / 2
        for y in (spread, same_action - same_state, same_state):
            full = np.zeros_like(value)
            full[self.where] = weight[self.where[0], 0] ** 2 * y
            yield full


def branches_from(player: Player, main: Episodes, chosen: Tensor, discount: float) -> Branches:
    """Continue from every state of the main episodes that is `chosen` `[T, E]`."""
    agent = player.agent
    time, episode = chosen.nonzero(as_tuple=True)  # [R] each, in the order of time: columns of a chunk end together
    products, values = [], []
    few = COLUMNS // 3
    for chunk in range(-(-len(time) // few)):
        t, e = (x[chunk * few : (chunk + 1) * few] for x in (time, episode))
        obs, state = main.obs[t, 0, e].unsqueeze(0), main.state[t, e]  # [1, R, O], [R, S]
        first, noise = main.action[t, 0, e].unsqueeze(0), main.noise[t, 0, e].unsqueeze(0)  # [1, R, *event]
        second, fresh = player.draw(obs, (2, chunk, 0))
        jacobian = Jacobian(agent.policy, agent.policy_parameters, obs.unsqueeze(0))
        one, two = (
            scores(jacobian.distribution, a.unsqueeze(0), eps.unsqueeze(0))
            for a, eps in ((first, noise), (second, fresh))
        )
        products.append(jacobian.inner([one, two, one], [one, two, two])[:, 0, 0])  # [3, R]
        actions = torch.cat([first[0], second[0], second[0]])  # [3 R, *event]
        played = player.continued(state.repeat(3, 1), t.repeat(3), actions, discount, (2, chunk, 1))
        values.append(played.view(3, -1))
    where = (time.cpu().numpy(), episode.cpu().numpy())
    return Branches(where, _on_host(products), _on_host(values))


def _on_host(parts: Sequence[Tensor]) -> np.ndarray:
    return torch.cat(list(parts), 1).cpu().double().numpy()
