"""Distributions: one file per family."""

from pglab.distributions.base import Distribution
from pglab.distributions.bernoulli import Bernoulli
from pglab.distributions.beta import Beta
from pglab.distributions.categorical import Categorical
from pglab.distributions.gaussian import Gaussian
from pglab.distributions.squashed_gaussian import SquashedGaussian

FAMILIES: tuple[type[Distribution], ...] = (Bernoulli, Beta, Categorical, Gaussian, SquashedGaussian)
"""All of them."""

__all__ = ["FAMILIES", "Bernoulli", "Beta", "Categorical", "Distribution", "Gaussian", "SquashedGaussian"]
