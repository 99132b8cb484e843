"""Distributions: one file per family."""

from pglab.distributions.base import Distribution
from pglab.distributions.bernoulli import Bernoulli
from pglab.distributions.categorical import Categorical
from pglab.distributions.gaussian import Gaussian
from pglab.distributions.squashed_gaussian import SquashedGaussian

__all__ = ["Bernoulli", "Categorical", "Distribution", "Gaussian", "SquashedGaussian"]
