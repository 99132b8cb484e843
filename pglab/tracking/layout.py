"""The custom-scalars page of TensorBoard: which charts stand together when variants are overlaid."""

from __future__ import annotations

import re

RETURN_TAGS = ("charts/episodic_return", "eval/return")  # aggregated by IQM, with a band

# section -> chart -> ["Multiline", [tag patterns]] or ["Margin", [value, low, high]]
Layout = dict[str, dict[str, list]]


def lines(*tags: str) -> list:
    """A chart of these tags, one line per selected run. TensorBoard reads a tag here as a pattern for its beginning."""
    return ["Multiline", [f"^{re.escape(tag)}$" for tag in tags]]


def band(tag: str) -> list:
    """A chart of `tag` between `tag/low` and `tag/high`: drawn for aggregate runs, which alone hold all three."""
    return ["Margin", [tag, f"{tag}/low", f"{tag}/high"]]


def default_layout() -> Layout:
    """The sections Learning, Gradient, Losses and Speed."""
    return {
        "Learning": {
            "Return, IQM and interquartile range over seeds": band("charts/episodic_return"),
            "Evaluation return, IQM and interquartile range over seeds": band("eval/return"),
            "Return": lines("charts/episodic_return"),
            "Evaluation return": lines("eval/return"),
        },
        "Gradient": {
            "Noise-to-signal ratio": lines("gradient/nsr"),
            "Trace of the covariance": lines("gradient/trace_variance"),
            "Norm": lines("gradient/norm"),
        },
        "Losses": {"Losses": ["Multiline", ["^losses/"]]},
        "Speed": {"Steps per second": ["Multiline", ["^charts/SPS$", "^speed/"]]},
    }
