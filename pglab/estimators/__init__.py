"""Estimators: one file each (a family that shares its relaxation shares a file)."""

from pglab.estimators.base import ESTIMATORS, Critic, Draw, Estimator, Signal, register_estimator
from pglab.estimators.enumeration import Enumeration
from pglab.estimators.gumbel_softmax import GumbelSoftmax, StraightThroughGumbelSoftmax
from pglab.estimators.pathwise import Pathwise
from pglab.estimators.score_function import ScoreFunction

__all__ = [
    "ESTIMATORS",
    "Critic",
    "Draw",
    "Enumeration",
    "Estimator",
    "GumbelSoftmax",
    "Pathwise",
    "ScoreFunction",
    "Signal",
    "StraightThroughGumbelSoftmax",
    "register_estimator",
]
