"""The laboratory: statistics of comparisons and measurements. Tables and figures are modules of their own."""

from pglab.lab.gradient_statistics import noise_to_signal, trace_variance
from pglab.lab.statistics import iqm, steps_to_threshold, stratified_bootstrap_interval

__all__ = ["iqm", "noise_to_signal", "steps_to_threshold", "stratified_bootstrap_interval", "trace_variance"]
