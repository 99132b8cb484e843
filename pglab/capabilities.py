"""What fits what, checked when a config is read: an impossible pair is refused with the list of what is possible."""

from __future__ import annotations

from pglab.baselines import BASELINES
from pglab.config import ActorCriticConfig, Config
from pglab.distributions.categorical import MAX_OUTCOMES
from pglab.environments.contract import ActionSpec, EnvironmentSpec
from pglab.errors import PglabError
from pglab.estimators import ESTIMATORS, Estimator


def signal_of(config: Config) -> frozenset[str]:
    """What the agent's signal offers: values of drawn actions, a critic, its gradient and its values at relaxed actions."""
    return frozenset({"value", "critic", "critic_gradient", "critic_relaxed"})


def kind_of(config: Config, action: ActionSpec) -> str:
    """The kind of distribution the policy has: discrete, binary or continuous."""
    return "binary" if config.policy.distribution == "bernoulli" else action.kind


def fitting(config: Config, kind: str) -> list[str]:
    """Names of the estimators that this agent and kind of action can use."""
    offered = signal_of(config)
    return [n for n in ESTIMATORS.names() if kind in ESTIMATORS.get(n).kinds and ESTIMATORS.get(n).needs <= offered]


def outcomes(action: ActionSpec) -> int:
    """Joint outcomes that an enumeration goes through (padded categories included)."""
    return (2 if action.kind == "binary" else action.categories) ** action.factors


def check_fit(config: Config, spec: EnvironmentSpec) -> None:
    """PglabError when estimator, baseline, agent and environment do not fit, naming what would."""
    kind = kind_of(config, spec.action)
    estimator: Estimator = config.estimator
    possible = ", ".join(fitting(config, kind))
    if kind not in estimator.kinds:
        raise PglabError(
            f"Estimator {estimator.name!r} does not serve {spec.id}'s {kind} actions "
            f"(only {', '.join(sorted(estimator.kinds))}): with agent {config.agent.name!r} choose one of {possible}."
        )
    missing = estimator.needs - signal_of(config)
    if missing:
        raise PglabError(
            f"Estimator {estimator.name!r} needs {', '.join(sorted(missing))}, which agent {config.agent.name!r} does not "
            f"have: choose agent actor_critic, or one of {possible}."
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
    if not isinstance(config.agent, ActorCriticConfig) and not estimator.reweights:
        steps = config.agent.epochs * config.agent.minibatches
        if steps > 1:
            users = ", ".join(n for n in fitting(config, kind) if ESTIMATORS.get(n).reweights)
            raise PglabError(
                f"Estimator {estimator.name!r} takes one step on a batch: set agent.epochs and agent.minibatches to 1 (now "
                f"{config.agent.epochs} and {config.agent.minibatches}), or choose one of {users}."
            )
    baseline = config.baseline
    has = {"distribution", "critic", "critic_gradient", "action"}
    if not isinstance(config.agent, ActorCriticConfig):
        has.add("v")
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
    scale = config.preprocessing.observation_scale
    if scale is not None and len(scale) != spec.observation_size:
        raise PglabError(
            f"preprocessing.observation_scale has {len(scale)} factors; {spec.id} has {spec.observation_size} components."
        )
    if isinstance(config.agent, ActorCriticConfig):
        if config.agent.critic.target_action == "expectation" and spec.action.kind == "continuous":
            raise PglabError(
                "agent.critic.target_action 'expectation' needs actions that can be enumerated: choose sample or mode."
            )
        if config.agent.critic.blend and spec.action.kind == "continuous":
            raise PglabError("agent.critic.blend is for discrete actions: set it to 0.")
