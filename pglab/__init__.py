"""pglab: a policy-gradient lab. Names are loaded when they are first used, so that importing it costs nothing."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOME = {
    "Baseline": "pglab.baselines",
    "Batch": "pglab.baselines",
    "Bernoulli": "pglab.distributions",
    "Beta": "pglab.distributions",
    "Categorical": "pglab.distributions",
    "Config": "pglab.config",
    "Distribution": "pglab.distributions",
    "Draw": "pglab.estimators",
    "Estimator": "pglab.estimators",
    "Gaussian": "pglab.distributions",
    "GradientQuality": "pglab.integrations.gradient_quality",
    "PglabError": "pglab.errors",
    "Signal": "pglab.estimators",
    "SquashedGaussian": "pglab.distributions",
    "compare": "pglab.comparing",
    "cotangents": "pglab.gradients",
    "estimate_gradient": "pglab.objectives",
    "exact_gradient": "pglab.lab.oracles",
    "load_agent": "pglab.agent",
    "measure": "pglab.lab.measuring",
    "register_baseline": "pglab.baselines",
    "register_estimator": "pglab.estimators",
    "resume": "pglab.training",
    "train": "pglab.training",
}

if TYPE_CHECKING:
    from pglab.agent import load_agent
    from pglab.baselines import Baseline, Batch, register_baseline
    from pglab.comparing import compare
    from pglab.config import Config
    from pglab.distributions import Bernoulli, Beta, Categorical, Distribution, Gaussian, SquashedGaussian
    from pglab.errors import PglabError
    from pglab.estimators import Draw, Estimator, Signal, register_estimator
    from pglab.gradients import cotangents
    from pglab.integrations.gradient_quality import GradientQuality
    from pglab.lab.measuring import measure
    from pglab.lab.oracles import exact_gradient
    from pglab.objectives import estimate_gradient
    from pglab.training import resume, train

__all__ = [
    "Baseline",
    "Batch",
    "Bernoulli",
    "Beta",
    "Categorical",
    "Config",
    "Distribution",
    "Draw",
    "Estimator",
    "Gaussian",
    "GradientQuality",
    "PglabError",
    "Signal",
    "SquashedGaussian",
    "compare",
    "cotangents",
    "estimate_gradient",
    "exact_gradient",
    "load_agent",
    "measure",
    "register_baseline",
    "register_estimator",
    "resume",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'pglab' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)
