"""Reports on runs: one page with curves, scores, gradient noise and settings of any number of run folders."""

from pglab.reporting.model import Report
from pglab.reporting.writing import report

__all__ = ["Report", "report"]
