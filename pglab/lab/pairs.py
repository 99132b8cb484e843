"""Which estimator and baseline pairs fit what is measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pglab.baselines import BASELINES
from pglab.capabilities import check_fit, family_of
from pglab.config import Config, OnPolicyConfig
from pglab.environments.contract import EnvironmentSpec
from pglab.errors import PglabError
from pglab.estimators import ESTIMATORS


@dataclass(frozen=True)
class Pair:
    """An estimator with a baseline, as the config that trains with them."""

    config: Config
    own: bool
    """Whether it is what the subject trains with."""

    @property
    def name(self) -> str:
        e, b = self.config.estimator, self.config.baseline
        return e.name if b.name == "none" else f"{e.name} / {b.name}"

    @property
    def couples(self) -> bool:
        """Whether a column's share of the gradient reads other columns: then a replicate is a whole batch."""
        agent = self.config.agent
        if not isinstance(agent, OnPolicyConfig):
            return True
        ratio = agent.reduction == "mean_over_steps" and (agent.collect == "episodes" or agent.minibatches > 1)
        fakes = self.config.env.autoreset_mode == "next_step"
        return ratio or fakes or agent.normalize_advantages or self.config.baseline.couples or agent.minibatches > 1

    @property
    def declared(self) -> str:
        """Why it is biased by its own declaration, empty where it is not."""
        e, b = self.config.estimator, self.config.baseline
        found = [e.declared_bias, "" if b.unbiased else b.bias or "biased"]
        if isinstance(self.config.agent, OnPolicyConfig) and self.config.agent.normalize_advantages:
            found.append("advantages are whitened")
        return "; ".join(x for x in found if x)


def pair_of(config: Config, estimator: str, baseline: str, spec: EnvironmentSpec) -> Pair:
    """The pair of these names; the config's own keeps its options. Raises PglabError where they do not fit, saying what
    would."""
    own_estimator, own_baseline = config.estimator.name == estimator, config.baseline.name == baseline
    data = config.plain()
    if not own_estimator:
        ESTIMATORS.get(estimator)
        data["estimator"] = estimator
    if not own_baseline:
        BASELINES.get(baseline)
        data["baseline"] = baseline
    changed = Config.read(data)
    check_fit(changed, spec)
    return Pair(changed, own_estimator and own_baseline)


def pairs_of(config: Config, spec: EnvironmentSpec, wanted: Sequence[str] | None = None) -> list[Pair]:
    """The pairs to measure, the config's own first.

    Without `wanted`, every estimator that fits (with the config's baseline where it uses one, else with none), and
    score_function with every baseline that fits; but not what is the same as another by definition: estimators that only
    reweigh, at ratios of 1, and a baseline per factor of one factor. Else those named, each as `estimator` or `estimator/baseline`, or `all`
    for every combination that fits.

    Raises PglabError for a name that is unknown or a pair that does not fit, naming what would.
    """
    own = config.baseline.name
    found: dict[str, Pair] = {}

    def add(estimator: str, baseline: str, strict: bool) -> None:
        try:
            pair = pair_of(config, estimator, baseline, spec)
        except PglabError:
            if strict:
                raise
            return
        found.setdefault(pair.name, pair)

    if wanted and list(wanted) != ["all"]:
        for name in wanted:
            estimator, slash, baseline = (part.strip() for part in name.partition("/"))
            add(estimator, baseline if slash else "none", strict=True)
        return list(found.values())
    add(config.estimator.name, own, strict=True)
    fits = [n for n in ESTIMATORS.names() if ESTIMATORS.get(n).serves(family_of(config, spec.action))]
    first = "score_function" if "score_function" in fits else fits[0]
    everything = bool(wanted)
    for baseline in BASELINES.names():
        if everything or not (BASELINES.get(baseline).per_factor and spec.action.factors == 1):
            add(first, baseline, strict=False)
    for estimator in fits:
        if not everything and ESTIMATORS.get(estimator).reweights and estimator != first:
            continue
        uses = ESTIMATORS.get(estimator).uses_baseline
        for baseline in BASELINES.names() if uses and everything else [own if uses else "none"]:
            add(estimator, baseline, strict=False)
    return list(found.values())
