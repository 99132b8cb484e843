"""Baselines: one file each."""

from pglab.baselines.base import BASELINES, Baseline, Batch, Scores, baselined, register_baseline
from pglab.baselines.critic_mean import CriticMean
from pglab.baselines.leave_one_out import LeaveOneOut
from pglab.baselines.moving_average import MovingAverage
from pglab.baselines.none import NoBaseline
from pglab.baselines.value import Value

__all__ = [
    "BASELINES",
    "Baseline",
    "Batch",
    "CriticMean",
    "LeaveOneOut",
    "MovingAverage",
    "NoBaseline",
    "Scores",
    "Value",
    "baselined",
    "register_baseline",
]
