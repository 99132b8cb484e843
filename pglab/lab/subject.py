"""What is measured: one member of a population at one frozen policy, and where it acts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from pglab import snapshots
from pglab.agents import ActorCriticAgent, OnPolicyAgent, make_agent
from pglab.capabilities import check_fit
from pglab.config import BpttConfig, Config, EvolutionConfig, override
from pglab.devices import pick_device
from pglab.environments import make_environment
from pglab.environments.contract import Environment
from pglab.errors import PglabError
from pglab.networks import Parameters
from pglab.population import Population, PopulationMember
from pglab.replay import Replay
from pglab.tracking import MemberLabel, RunFolder
from pglab.trees import take_member

STAGES = {0.0: "start", 0.5: "middle", 1.0: "end"}


@dataclass(frozen=True)
class Subject:
    """One frozen agent of one member."""

    config: Config
    """With one seed and nothing swept."""
    agent: OnPolicyAgent | ActorCriticAgent
    """Its population has this one member."""
    stage: str
    """When in training this is, in a word."""
    at: float
    """The fraction of training done."""
    steps: int
    """Environment steps it had been trained for."""
    number: int
    """Keeps the noise of different snapshots apart."""
    notes: list[str] = field(default_factory=list)
    """What a reader of its measurements should know."""
    setting: str = ""
    """The values it has of swept settings, which tell it from other members of its seed."""

    @property
    def member(self) -> str:
        seed = f"seed {self.config.seed_list[0]}"
        return f"{seed}, {self.setting}" if self.setting else seed

    def environment(
        self, members: int, num_envs: int | None = None, max_episode_steps: int | None = None
    ) -> Environment:
        """`members` x `num_envs` (the config's) environments in this process, with the config's time limit or another."""
        e = self.config.env
        return make_environment(
            e.id,
            members,
            e.num_envs if num_envs is None else num_envs,
            e.backend,
            "sync",
            "disabled",
            e.kwargs,
            e.max_episode_steps if max_episode_steps is None else max_episode_steps,
            self.agent.noise.device,
        )


def measurable(config: Config) -> None:
    """PglabError where the agent's estimates are not cotangents at actions, which is what is compared here."""
    if isinstance(config.agent, EvolutionConfig | BpttConfig):
        raise PglabError(
            f"Agent {config.agent.name!r} has an estimator of its own, which is not taken at actions: its gradient's noise is "
            "measured while training (measurement.at); estimators are compared at agents on_policy and actor_critic."
        )


def of_config(config: Config, members: Sequence[int] | None = None) -> list[Subject]:
    """The members of a config as they are before training. Where an actor-critic agent learns from replay, its first
    `warmup` transitions are played. Raises PglabError for an agent that cannot be measured and a member there is not."""
    measurable(config)
    found = []
    for member in _members(config, members):
        single = of_member(config, member)
        agent, env = _agent(single)
        notes = []
        if isinstance(agent, ActorCriticAgent):
            fill(agent, env)
            notes.append(f"The buffer holds {agent.replay.size:,} transitions of the initial policy.")
        env.close()
        found.append(Subject(single, agent, "start", 0.0, 0, 0, notes, _setting(member)))
    return found


def of_run(path: str | Path, at: Sequence[float] | None = None, members: Sequence[int] | None = None) -> list[Subject]:
    """Members of a run at the snapshots that were kept of it (`snapshots.at`), in the order of training.

    Raises PglabError where the folder is no run, has no snapshot, or not the ones or members asked for.
    """
    run = RunFolder.open(path)
    config = Config.read(run.config(), where=str(run.config_path))
    measurable(config)
    kept = snapshots.files(run.snapshots)
    if not kept:
        raise PglabError(
            f"{run.path} has no snapshots to measure at: train it with snapshots.at (now {config.snapshots.at}), such as "
            "[0, 0.5, 1]."
        )
    device = pick_device(config.device)
    loaded = [(int(f.stem), snapshots.load(f, device)) for f in kept]
    if at is not None:
        known = [s.at for _, s in loaded]
        for wanted in at:
            if wanted not in known:
                shown = ", ".join(f"{x:g}" for x in known)
                raise PglabError(f"{run.path} has no snapshot at {wanted:g} of training: it has {shown}.")
        loaded = [(n, s) for n, s in loaded if s.at in at]
    found = []
    for index, member in zip(_indices(config, members), _members(config, members), strict=True):
        single = of_member(config, member)
        for number, snapshot in loaded:
            agent, env = _agent(single)
            env.close()
            found.append(replace(_restored(single, agent, snapshot, number, index), setting=_setting(member)))
    return found


def _restored(
    config: Config, agent: OnPolicyAgent | ActorCriticAgent, snapshot: snapshots.Snapshot, number: int, index: int
) -> Subject:
    tree = take_member(snapshot.agent, index)
    for name, p in agent.networks().items():
        saved = tree["networks"].get(name)
        if saved is None or saved.shape != p.flat.shape:
            raise PglabError(f"A snapshot does not fit the run's config: its {name} network is another.")
    steps, notes = snapshot.steps[index], []
    frozen = agent.frozen(tree).at_progress([min(1.0, steps / config.total_steps)])
    if isinstance(frozen, ActorCriticAgent):
        rows = snapshot.transitions
        if rows is None or rows.shape[1] == 0:
            raise PglabError("The run's snapshots hold no transitions: train it with snapshots.transitions above 0.")
        frozen.replay = _holding(frozen, rows[index : index + 1])
        frozen.newest = None
        notes.append(f"States are redrawn from {rows.shape[1]:,} transitions of the frozen buffer.")
    stage = STAGES.get(snapshot.at, f"{snapshot.at:g}")
    return Subject(config, frozen, stage, snapshot.at, steps, number, notes)


def _holding(agent: ActorCriticAgent, rows: torch.Tensor) -> Replay:
    """A replay that holds just these packed rows `[1, C, F]`."""
    spec = agent.spec
    actions = math.prod(spec.action.event_shape)
    filled = Replay(1, rows.shape[1], spec.observation_size, actions, spec.has_action_mask, rows.device)
    filled.write(rows, 0)
    filled.count = rows.shape[1]
    return filled


def fill(agent: ActorCriticAgent, env: Environment, least: int = 0) -> None:
    """Play until the buffer has its warm-up (and a batch, and at least so many rows)."""
    wanted = max(agent.settings.replay.warmup, agent.settings.replay.batch_size, least)
    while agent.replay.count < min(wanted, agent.replay.capacity):
        agent.collect(env)


def _indices(config: Config, members: Sequence[int] | None) -> list[int]:
    count = len(Population.of(config, torch.device("cpu")))
    for member in members or []:
        if not 0 <= member < count:
            raise PglabError(f"There are members 0 to {count - 1}, not {member}.")
    return list(range(count)) if members is None else list(members)


def _members(config: Config, members: Sequence[int] | None) -> list[PopulationMember]:
    everyone = Population.of(config, torch.device("cpu")).members
    return [everyone[i] for i in _indices(config, members)]


def _setting(member: PopulationMember) -> str:
    return MemberLabel(member.seed, member.overrides).setting


def of_member(config: Config, member: PopulationMember) -> Config:
    """The config that trains this one member alone."""
    data: dict[str, Any] = config.plain() | {"seeds": [member.seed]}
    for path, schedule in member.schedules.items():
        data = override(data, path, schedule.start if schedule.kind == "constant" else schedule.model_dump())
    return Config.read(data)


def _agent(config: Config) -> tuple[OnPolicyAgent | ActorCriticAgent, Environment]:
    """A fresh agent of a config with one member, and its environments."""
    device = pick_device(config.device)
    population = Population.of(config, device)
    e = config.env
    env = make_environment(e.id, 1, e.num_envs, e.backend, "sync", "disabled", e.kwargs, e.max_episode_steps, device)
    check_fit(config, env.spec)
    agent = make_agent(config, env.spec, population, e.num_envs)
    assert isinstance(agent, OnPolicyAgent | ActorCriticAgent)
    return agent, env


def with_pair(subject: Subject, config: Config, own: bool) -> OnPolicyAgent | ActorCriticAgent:
    """An agent of `config`, which differs in estimator and baseline, with the subject's policy, normaliser and those of its
    other networks that both have; where the pair is the subject's `own`, with what the two had learned."""
    host = subject.agent
    agent = make_agent(config, host.spec, Population.of(config, host.noise.device), host.num_envs)
    assert isinstance(agent, OnPolicyAgent | ActorCriticAgent)
    have: dict[str, Parameters] = host.networks()
    agent.take_networks({name: have.get(name, mine) for name, mine in agent.networks().items()})
    agent.preprocessor = host.preprocessor
    agent.progress = list(host.progress)
    if isinstance(agent, ActorCriticAgent) and isinstance(host, ActorCriticAgent):
        agent.log_alpha, agent.replay, agent.newest = host.log_alpha, host.replay, host.newest
    if own:
        agent.baseline_state, agent.estimator_learned = host.baseline_state, host.estimator_learned
    return agent
