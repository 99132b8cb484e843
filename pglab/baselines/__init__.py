"""Baselines: one file each."""

from pglab.baselines.action_dependent import ActionDependent
from pglab.baselines.base import BASELINES, Baseline, Batch, Scores, baselined, register_baseline
from pglab.baselines.critic_mean import CriticMean
from pglab.baselines.group_normalised import GroupNormalised
from pglab.baselines.leave_one_out import LeaveOneOut
from pglab.baselines.linear_features import LinearFeatures
from pglab.baselines.moving_average import MovingAverage
from pglab.baselines.none import NoBaseline
from pglab.baselines.optimal import Optimal, OptimalPerParameter, OptimalPerTime
from pglab.baselines.time_dependent import TimeDependent
from pglab.baselines.value import Value
from pglab.baselines.whitened import Whitened

__all__ = [
    "BASELINES",
    "ActionDependent",
    "Baseline",
    "Batch",
    "CriticMean",
    "GroupNormalised",
    "LeaveOneOut",
    "LinearFeatures",
    "MovingAverage",
    "NoBaseline",
    "Optimal",
    "OptimalPerParameter",
    "OptimalPerTime",
    "Scores",
    "TimeDependent",
    "Value",
    "Whitened",
    "baselined",
    "register_baseline",
]
