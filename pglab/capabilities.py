"""What fits what, checked when a config is read: an impossible pair is refused with the list of what is possible."""

from __future__ import annotations

from pglab.baselines import BASELINES
from pglab.config import ActorCriticConfig, BpttConfig, Config, EvolutionConfig, OnPolicyConfig
from pglab.distributions import Distribution
from pglab.distributions.categorical import MAX_OUTCOMES
from pglab.environments.contract import ActionSpec, EnvironmentSpec
from pglab.errors import PglabError
from pglab.estimators import ESTIMATORS, Estimator
from pglab.policy import CLASSES
from pglab.policy import FAMILIES as POLICY_FAMILIES

MOST_PARTS = 16
"""Parts of a minibatch that the gradient probe compares, at most."""


def family_of(config: Config, action: ActionSpec) -> type[Distribution]:
    """The family of distributions that the policy has for these actions; where the config names one that does not fit
    them, which the policy refuses, the one it would have by itself."""
    name = config.policy.distribution
    if name not in POLICY_FAMILIES[action.kind]:
        squashed = isinstance(config.agent, ActorCriticConfig | BpttConfig)
        continuous = "squashed_gaussian" if squashed else "gaussian"
        name = {"discrete": "categorical", "binary": "bernoulli"}.get(action.kind, continuous)  # type: ignore[assignment]
    return CLASSES[name]


def fitting(family: type[Distribution]) -> list[str]:
    """Names of the estimators that serve this family. Every agent has all that an estimator may need of f."""
    return [n for n in ESTIMATORS.names() if ESTIMATORS.get(n).serves(family)]


def outcomes(action: ActionSpec) -> int:
    """Joint outcomes that an enumeration goes through (padded categories included)."""
    return (2 if action.kind == "binary" else action.categories) ** action.factors


def check_fit(config: Config, spec: EnvironmentSpec) -> None:
    """PglabError when estimator, baseline, agent and environment do not fit, naming what would."""
    if isinstance(config.agent, EvolutionConfig | BpttConfig):
        _check_own(config)
    if isinstance(config.agent, EvolutionConfig):
        _check_evolution(config, config.agent)
    if isinstance(config.agent, BpttConfig):
        _check_bptt(config.agent, spec)
    if config.probe.every is not None:
        _check_probe(config)
    family = family_of(config, spec.action)
    kind = family.kind
    estimator: Estimator = config.estimator
    possible = ", ".join(fitting(family))
    if not estimator.serves(family):
        raise PglabError(
            f"Estimator {estimator.name!r} does not serve {spec.id}'s {kind} actions as {family.__name__} "
            f"(only {estimator.served()}): with agent {config.agent.name!r} choose one of {possible}."
        )
    if spec.has_action_mask and config.policy.distribution == "bernoulli":
        raise PglabError(
            f"policy.distribution 'bernoulli' cannot keep to {spec.id}'s action masks: choose categorical or auto."
        )
    enumerates = config.estimator.name == "enumeration" or config.baseline.name == "critic_mean"
    if isinstance(config.agent, ActorCriticConfig):
        enumerates |= config.agent.critic.target_action == "expectation"
    if enumerates and kind != "continuous" and outcomes(spec.action) > MAX_OUTCOMES:
        raise PglabError(
            f"{spec.id} has {outcomes(spec.action):,} joint actions, too many to enumerate (at most {MAX_OUTCOMES:,}): "
            "choose another estimator and baseline, and agent.critic.target_action sample."
        )
    if isinstance(config.agent, OnPolicyConfig) and not estimator.reweights:
        steps = config.agent.epochs * config.agent.minibatches
        if steps > 1:
            users = ", ".join(n for n in fitting(family) if ESTIMATORS.get(n).reweights)
            raise PglabError(
                f"Estimator {estimator.name!r} takes one step on a batch: set agent.epochs and agent.minibatches to 1 (now "
                f"{config.agent.epochs} and {config.agent.minibatches}), or choose one of {users}."
            )
    baseline = config.baseline
    has = {"distribution", "critic", "critic_gradient", "action"}
    if not isinstance(config.agent, ActorCriticConfig):
        has |= {"v", "scores", "time"}
    if not baseline.needs <= has:
        fits = [n for n in BASELINES.names() if BASELINES.get(n).needs <= has]
        raise PglabError(
            f"Baseline {baseline.name!r} needs {', '.join(sorted(baseline.needs - has))}, which agent "
            f"{config.agent.name!r} does not have: choose one of {', '.join(fits)}."
        )
    if baseline.name != "none" and not estimator.uses_baseline:
        users = ", ".join(n for n in ESTIMATORS.names() if ESTIMATORS.get(n).uses_baseline)
        raise PglabError(
            f"Estimator {estimator.name!r} uses no baseline, but {baseline.name!r} is set: choose none, or {users}."
        )
    if "scores" in baseline.needs and not estimator.linear:
        linear = ", ".join(n for n in fitting(family) if ESTIMATORS.get(n).linear)
        raise PglabError(
            f"Baseline {baseline.name!r} needs an estimate that is linear in the value, which {estimator.name!r} is not: "
            f"choose one of {linear}."
        )
    whitens = isinstance(config.agent, OnPolicyConfig) and config.agent.normalize_advantages
    if whitens and (baseline.per_parameter or baseline.per_factor):
        what = "parameter" if baseline.per_parameter else "action factor"
        raise PglabError(
            f"agent.normalize_advantages whitens one advantage per row, but baseline {baseline.name!r} gives one number per "
            f"{what}: set it to false."
        )
    scale = config.preprocessing.observation_scale
    if scale is not None and len(scale) != spec.observation_size:
        raise PglabError(
            f"preprocessing.observation_scale has {len(scale)} factors; {spec.id} has {spec.observation_size} components."
        )
    agent, continuous = config.agent, spec.action.kind == "continuous"
    if isinstance(agent, ActorCriticConfig) and continuous and agent.critic.target_action == "expectation":
        raise PglabError(
            "agent.critic.target_action 'expectation' needs actions that can be enumerated: choose sample or mode."
        )
    if isinstance(agent, ActorCriticConfig | OnPolicyConfig) and continuous and agent.critic.blend:
        raise PglabError("agent.critic.blend is for discrete actions: set it to 0.")


def _check_probe(config: Config) -> None:
    """PglabError where a batch does not have gradients of parts of it that could be compared."""
    agent = config.agent
    if isinstance(agent, EvolutionConfig | BpttConfig):
        raise PglabError(
            f"probe.every compares the gradients of parts of a batch, which agent {agent.name!r} does not have: leave it "
            "unset, or choose agent on_policy or actor_critic."
        )
    if isinstance(agent, OnPolicyConfig) and config.env.num_envs < 2:
        raise PglabError(
            "probe.every compares the gradients of a member's environments: set env.num_envs to 2 or more."
        )
    if isinstance(agent, ActorCriticConfig) and equal_parts(agent.replay.batch_size) < 2:
        raise PglabError(
            f"probe.every compares the gradients of equal parts of a minibatch (at most {MOST_PARTS}), and "
            f"{agent.replay.batch_size} rows have none: choose another agent.replay.batch_size, such as a multiple of "
            f"{MOST_PARTS}."
        )


def equal_parts(rows: int) -> int:
    """The most parts, `MOST_PARTS` or fewer, that so many rows can be split into equally."""
    return max(k for k in range(1, MOST_PARTS + 1) if rows % k == 0)


def _check_own(config: Config) -> None:
    """PglabError where settings would do nothing because the agent has an estimator of its own."""
    agent = config.agent
    default = Config.model_fields["estimator"].default
    if config.estimator != default:
        raise PglabError(
            f"Agent {agent.name!r} has an estimator of its own, so estimator {config.estimator.name!r} would not be used: "
            f"leave it at {default.name}, or choose agent actor_critic or on_policy."
        )
    if any(s.bounds != (0.0, 0.0) for s in config.entropy_weight):
        raise PglabError(f"Agent {agent.name!r} has no entropy term: set entropy_weight to 0.")
    if config.executor in ("program", "compile", "cudagraph"):
        raise PglabError(f"Agent {agent.name!r} plays its own rollouts, eagerly: choose executor auto or eager.")
    if isinstance(agent, BpttConfig) and config.baseline.name != "none":
        raise PglabError(f"Agent 'bptt' uses no baseline, but {config.baseline.name!r} is set: choose none.")


def _check_evolution(config: Config, agent: EvolutionConfig) -> None:
    """PglabError where perturbed networks, environments and baseline do not fit together."""
    n, baseline = config.env.num_envs, config.baseline.name
    m = agent.perturbations or n
    if n % m:
        raise PglabError(f"env.num_envs ({n}) must be a multiple of agent.perturbations ({m}).")
    if agent.mirrored and m % 2:
        raise PglabError(
            f"agent.mirrored tries pairs, but {m} networks are perturbed: set agent.perturbations (or env.num_envs) to an "
            "even number."
        )
    if agent.shaping != "returns" and m < 2:
        raise PglabError(f"agent.shaping {agent.shaping!r} compares 2 or more networks: raise env.num_envs.")
    if baseline == "none":
        return
    if baseline != "leave_one_out":
        raise PglabError(
            f"Baseline {baseline!r} is one of states, which agent 'evolution' has none for: choose none or leave_one_out."
        )
    if agent.shaping != "returns":
        raise PglabError(
            f"agent.shaping {agent.shaping!r} has the mean subtracted already, but baseline {baseline!r} is set: choose none."
        )
    if agent.mirrored and not agent.learn_sigma:
        raise PglabError(
            f"A baseline cancels in mirrored pairs, but {baseline!r} is set: choose none, or agent.mirrored false."
        )
    if m < (4 if agent.mirrored else 2):
        raise PglabError("Baseline 'leave_one_out' needs 2 or more draws of the perturbation: raise env.num_envs.")


def _check_bptt(agent: BpttConfig, spec: EnvironmentSpec) -> None:
    """PglabError where the environment cannot be differentiated."""
    if spec.action.kind != "continuous":
        raise PglabError(
            f"Agent 'bptt' differentiates in the action, and {spec.id}'s actions are {spec.action.kind}: choose an "
            "environment with continuous actions, or agent on_policy."
        )
    if not spec.differentiable:
        raise PglabError(
            f"Agent 'bptt' differentiates through the environment, and this is not differentiable: {spec.description}. "
            "Choose a torch-native environment such as Pendulum-v1, or agent on_policy."
        )
    if spec.terminates and not agent.allow_termination:
        raise PglabError(
            f"{spec.id}'s episodes may terminate, and agent 'bptt' does not see how that depends on the actions: choose "
            "another environment, or agent.allow_termination true (declared biased)."
        )
