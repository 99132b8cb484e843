"""A trained member as one agent: predicts like a stable-baselines3 model, saves to one safetensors file."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from torch import Tensor

from pglab.agents.base import Agent
from pglab.config import Config
from pglab.environments.contract import ActionSpec
from pglab.environments.spaces import action_spec, observation_encoder, to_env_actions
from pglab.errors import PglabError
from pglab.networks import Parameters
from pglab.noise import Noise, Purpose
from pglab.policy import Policy
from pglab.preprocessing import Preprocessor
from pglab.tracking.files import atomic_write
from pglab.tracking.run_folder import no_run

FORMAT = "1"


def export(agent: Agent, config: Config, path: Path) -> None:
    """Write a population's policies to one safetensors file: weights and normaliser of every member, with the config in
    its header. Raises PglabError where the disk refuses."""
    tensors = {"policy": agent.policy_parameters.flat}
    if "obs" in agent.preprocessor.state:
        tensors |= {f"obs_{name}": agent.preprocessor.state["obs"][name] for name in ("mean", "var")}
    members = [{"seed": m.seed, **m.overrides} for m in agent.population.members]
    _write(path, tensors, config, members, agent.policy.family)


def _write(
    path: Path, tensors: Mapping[str, Tensor], config: Config, members: list[dict[str, Any]], family: str
) -> None:
    from safetensors.torch import save

    header = {
        "pglab": FORMAT,
        "config": json.dumps(config.plain()),
        "members": json.dumps(members),
        "family": family,
    }
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    atomic_write(path, lambda file: file.write(save(plain, metadata=header)))


class LoadedAgent:
    """One member of a population, ready to act. Made by `load_agent`."""

    def __init__(
        self, config: Config, member: Mapping[str, Any], tensors: Mapping[str, Tensor], policy: Policy, space: gymnasium.Space,
        action_space: gymnasium.Space,
    ) -> None:  # fmt: skip
        self.config, self.member, self.policy = config, dict(member), policy
        self.observation_space, self.action_space = space, action_space
        self._tensors = dict(tensors)
        self._encoder = observation_encoder(space)
        self._spec: ActionSpec = policy.action
        self._noise = Noise.of_seeds([int(member["seed"])])
        self._parameters = Parameters(_shapes(policy), tensors["policy"].clone(), trainable=False)
        self._preprocessor = Preprocessor(config.preprocessing, 1, 1, self._encoder.size, torch.device("cpu"))
        if "obs" in self._preprocessor.state:
            for name in ("mean", "var"):
                self._preprocessor.state["obs"][name] = tensors[f"obs_{name}"].clone()
        self._calls = 0

    def predict(
        self,
        observation: Any,
        state: Any = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
        action_masks: np.ndarray | None = None,
    ) -> tuple[np.ndarray, Any]:
        """Actions for one observation or a batch, as stable-baselines3's `predict` gives them.

        Args:
            observation: one observation of `observation_space`, or a batch with a leading axis.
            state, episode_start: taken for compatibility; the policy has no memory.
            deterministic: the distribution's mode, else a draw (from the member's own noise, anew at each call).
            action_masks: `[n, D, K]` or `[n, K]` bool, True where allowed.

        Returns:
            (actions in the action space's own dtype, shape and units, state).
        """
        batched, single = self._batch(observation)
        n = _length(batched)
        obs = torch.from_numpy(np.ascontiguousarray(self._encoder.encode(batched, n))).unsqueeze(0)  # [1, n, O]
        mask = None
        if action_masks is not None:
            mask = torch.as_tensor(np.asarray(action_masks, dtype=bool)).reshape(1, n, *self._spec.event_shape)
        with torch.inference_mode():
            distribution = self.policy.distribution(self._parameters, self._preprocessor.observations(obs), mask)
            if deterministic:
                action = distribution.mode()
            else:
                shape = tuple(distribution.noise_shape[1:])
                noise = self._noise.apart(Purpose.EVALUATION, 1)
                action = distribution.sample(
                    noise.of_kind(distribution.noise_kind, Purpose.ACTION, (self._calls,), shape)
                )
                self._calls += 1
            encoded = self.policy.present(distribution.executed(action))[0]
        actions = to_env_actions(self._spec, encoded)
        return (actions[0] if single else actions), state

    def _batch(self, observation: Any) -> tuple[Any, bool]:
        """The observation with a leading axis, and whether it had none."""
        space = self.observation_space
        if isinstance(space, gymnasium.spaces.Dict):
            first = next(iter(space.spaces))
            single = np.ndim(observation[first]) == len(space[first].shape or ())
            return ({k: np.asarray(v)[None] for k, v in observation.items()} if single else observation), single
        if isinstance(space, gymnasium.spaces.Tuple):
            single = np.ndim(observation[0]) == len(space[0].shape or ())
            return (tuple(np.asarray(v)[None] for v in observation) if single else observation), single
        array = np.asarray(observation)
        single = array.ndim == len(space.shape or ())
        if not single and array.ndim != len(space.shape or ()) + 1:
            raise PglabError(f"An observation of shape {array.shape} does not fit {space}.")
        return (array[None] if single else array), single

    def save(self, path: str | Path) -> Path:
        """Write this one member to a safetensors file (the ending is added if missing); `load_agent` reads it."""
        target = Path(path)
        if target.suffix != ".safetensors":
            target = target.with_name(target.name + ".safetensors")
        target.parent.mkdir(parents=True, exist_ok=True)
        _write(target, self._tensors, self.config, [self.member], self.policy.family)
        return target


def _length(batched: Any) -> int:
    if isinstance(batched, Mapping):
        batched = next(iter(batched.values()))
    return len(batched[0]) if isinstance(batched, tuple) else len(batched)


def _shapes(policy: Policy) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = dict(policy.network.shapes)
    if policy.gaussian and not policy.std_from_network:
        shapes["log_std"] = (1, policy.action.factors)
    return shapes


def agent_file(path: str | Path) -> Path:
    """The agent file of a run folder, or the file itself. Raises PglabError where there is none."""
    given = Path(path)
    if given.is_dir():
        if not (given / "config.yaml").is_file():
            raise no_run(given)
        given = given / "agent.safetensors"
        if not given.is_file():
            raise PglabError(f"{given.parent} has no agent yet: the run has not come to a stop.")
    if not given.is_file():
        raise PglabError(f"There is no run folder or agent file at {given}.")
    return given


def _read(file: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Header and tensors of an agent file. Raises PglabError for any other file."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(file), framework="pt") as opened:
            header = opened.metadata() or {}
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise PglabError(f"{file} is not an agent file: {error}.") from None
    if header.get("pglab") != FORMAT:
        raise PglabError(f"{file} is not an agent file of this version of pglab (format {FORMAT}).")
    return header, tensors


def member_count(path: str | Path) -> int:
    """How many members a run folder or agent file holds. Raises PglabError where there is no agent."""
    return len(json.loads(_read(agent_file(path))[0]["members"]))


def load_agent(path: str | Path, member: int = 0) -> LoadedAgent:
    """One member of a run folder or of an agent file.

    Args:
        path: a run folder, or a `.safetensors` file written by `LoadedAgent.save`.
        member: index in the population (seeds run fastest, then swept values).

    Raises:
        PglabError: there is no agent at `path`, it has no such member, or its file does not fit its environment.
    """
    file = agent_file(path)
    header, tensors = _read(file)
    members = json.loads(header["members"])
    if not 0 <= member < len(members):
        raise PglabError(f"{file} has members 0 to {len(members) - 1}, not {member}.")
    config = Config.read(json.loads(header["config"]), where=f"{file}'s config")
    space, action_space = spaces_of(config)
    settings = config.policy.model_copy(update={"distribution": header["family"]})
    policy = Policy(settings, observation_encoder(space).size, action_spec(action_space), "gaussian")
    wanted = sum(math.prod(shape) for shape in _shapes(policy).values())
    if tensors["policy"].shape != (len(members), wanted):
        raise PglabError(
            f"{file} holds weights of shape {list(tensors['policy'].shape)}; {config.env.id} and this config want "
            f"{[len(members), wanted]}."
        )
    return LoadedAgent(
        config, members[member], {k: v[member : member + 1] for k, v in tensors.items()}, policy, space, action_space
    )


def spaces_of(config: Config) -> tuple[gymnasium.Space, gymnasium.Space]:
    """Observation and action space of one environment of the config. Raises PglabError where it cannot be made."""
    from pglab.environments.factory import torch_class

    if (env_class := torch_class(config.env.id, kwargs=config.env.kwargs)) is not None:
        from pglab.environments.torch_native import make_torch

        known = make_torch(env_class, config.env.kwargs)
        return known.single_observation_space, known.single_action_space
    from pglab.environments.gymnasium_make import make_vector

    vector = make_vector(config.env.id, 1, "sync", "disabled", config.env.kwargs, config.env.max_episode_steps)
    try:
        return vector.single_observation_space, vector.single_action_space
    finally:
        vector.close()
