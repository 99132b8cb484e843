"""Estimators: one file each (a family that shares its relaxation shares a file)."""

from pglab.estimators.antithetic import Antithetic
from pglab.estimators.arm import ARM
from pglab.estimators.arsm import ARSM
from pglab.estimators.base import ESTIMATORS, Critic, Draw, Estimator, Signal, register_estimator
from pglab.estimators.darn import DARN
from pglab.estimators.decoupled_straight_through_gumbel_softmax import DecoupledStraightThroughGumbelSoftmax
from pglab.estimators.delta_method import DeltaMethod, DeltaMethodPathwise
from pglab.estimators.disarm import DisARM
from pglab.estimators.double_cv import DoubleCV
from pglab.estimators.enumeration import Enumeration
from pglab.estimators.gapped_straight_through import GappedStraightThrough
from pglab.estimators.gumbel_rao import GumbelRao
from pglab.estimators.gumbel_softmax import GumbelSoftmax, StraightThroughGumbelSoftmax
from pglab.estimators.implicit import Implicit
from pglab.estimators.importance_weighted import ImportanceWeighted
from pglab.estimators.lax import LAX
from pglab.estimators.local_expectation import LocalExpectation
from pglab.estimators.measure_valued import MeasureValued
from pglab.estimators.muprop import MuProp
from pglab.estimators.nvil import NVIL
from pglab.estimators.pathwise import Pathwise
from pglab.estimators.ppo_clip import PPOClip
from pglab.estimators.q_prop import QProp
from pglab.estimators.rebar import REBAR
from pglab.estimators.reinmax import ReinMax
from pglab.estimators.reinmax_rao import ReinMaxCV, ReinMaxRao
from pglab.estimators.relax import RELAX
from pglab.estimators.rodeo import RODEO
from pglab.estimators.score_function import ScoreFunction
from pglab.estimators.slope_annealed_straight_through import SlopeAnnealedStraightThrough
from pglab.estimators.stein_control_variate import SteinControlVariate
from pglab.estimators.straight_through import StraightThrough
from pglab.estimators.sum_and_sample import SumAndSample
from pglab.estimators.unordered_set import UnorderedSet

__all__ = [
    "ARM",
    "ARSM",
    "DARN",
    "ESTIMATORS",
    "LAX",
    "NVIL",
    "REBAR",
    "RELAX",
    "RODEO",
    "Antithetic",
    "Critic",
    "DecoupledStraightThroughGumbelSoftmax",
    "DeltaMethod",
    "DeltaMethodPathwise",
    "DisARM",
    "DoubleCV",
    "Draw",
    "Enumeration",
    "Estimator",
    "GappedStraightThrough",
    "GumbelRao",
    "GumbelSoftmax",
    "Implicit",
    "ImportanceWeighted",
    "LocalExpectation",
    "MeasureValued",
    "MuProp",
    "PPOClip",
    "Pathwise",
    "QProp",
    "ReinMax",
    "ReinMaxCV",
    "ReinMaxRao",
    "ScoreFunction",
    "Signal",
    "SlopeAnnealedStraightThrough",
    "SteinControlVariate",
    "StraightThrough",
    "StraightThroughGumbelSoftmax",
    "SumAndSample",
    "UnorderedSet",
    "register_estimator",
]
