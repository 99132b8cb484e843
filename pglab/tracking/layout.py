"""The custom-scalars page of TensorBoard: which charts stand together when variants are overlaid."""

from __future__ import annotations

import re

RETURN_TAGS = ("charts/episodic_return", "eval/return")  # aggregated by IQM, with a band
PROBE_TAGS = ("probe/nsr",)  # infinite where no signal is seen, so aggregated by the median, with a band
INTERVALS = ("variance/trace", "variance/nsr")  # of measurements at frozen policies, with an interval
MIDDLES = dict.fromkeys(RETURN_TAGS, "iqm") | dict.fromkeys(PROBE_TAGS, "median")

# section -> chart -> ["Multiline", [tag patterns]] or ["Margin", [value, low, high]]
Layout = dict[str, dict[str, list]]


def lines(*tags: str) -> list:
    """A chart of these tags, one line per selected run. TensorBoard reads a tag here as a pattern for its beginning."""
    return ["Multiline", [f"^{re.escape(tag)}$" for tag in tags]]


def band(tag: str) -> list:
    """A chart of the middle of `tag` over members between its quartiles: drawn for aggregate runs.

    The middle has a tag of its own, which members do not have: of a run that holds one of a band's three tags and not the
    others, TensorBoard says on the chart that its data are missing.
    """
    return ["Margin", [f"{tag}/{MIDDLES[tag]}", f"{tag}/low", f"{tag}/high"]]


def default_layout(probe: bool = False, measured: bool = True) -> Layout:
    """The sections of a run, or of runs overlaid. Bands have sections of their own, since TensorBoard draws a section's
    bands after its lines.

    Args:
        probe: with the charts of the gradient probe.
        measured: with the charts of measurements along training.
    """
    noise: dict[str, list] = {}
    gradient: dict[str, list] = {}
    if probe:
        noise["Noise-to-signal ratio, probed: median, quartiles"] = band("probe/nsr")
        gradient |= {
            "Noise-to-signal ratio, probed": lines("probe/nsr"),
            "Trace of the covariance, probed": lines("probe/trace"),
            "Cosine between the halves of a batch": lines("probe/cosine_halves"),
            "Gain by the baseline (trace without it / with it)": lines("probe/baseline_gain"),
        }
    if measured:
        interval = ["gradient/nsr", "gradient/nsr_low", "gradient/nsr_high"]
        noise["Noise-to-signal ratio, measured: 95 % interval"] = ["Margin", interval]
        gradient["Trace of the covariance, measured"] = lines("gradient/trace_variance")
    gradient["Norm"] = lines("gradient/norm")
    # The page shows the bands of a section from the last to the first.
    over_seeds = {
        **noise,
        "Evaluation return: IQM, quartiles": band("eval/return"),
        "Return: IQM, quartiles": band("charts/episodic_return"),
    }
    return {
        "Over seeds: return and gradient noise": over_seeds,
        "Learning": {"Return": lines("charts/episodic_return"), "Evaluation return": lines("eval/return")},
        "Gradient": gradient,
        "Losses": {
            "Policy loss": lines("losses/policy_loss"),
            "Losses of V and of the critic": lines("losses/value_loss", "losses/critic_loss"),
            "Entropy of the policy": lines("policy/entropy"),
        },
        "Speed": {"Steps per second": lines("charts/SPS"), "Learning rate": lines("charts/learning_rate")},
    }


def variance_layout() -> Layout:
    """What `pglab variance` found, of all pairs side by side: first one chart of each kind, then the rest of them."""
    return {
        "Pairs side by side: variance, noise, bias, efficiency": {
            "Variance (trace of the covariance)": lines("variance/trace"),
            "Noise-to-signal ratio": lines("variance/nsr"),
            "Squared bias to grad J / |grad J|²": lines("variance/bias_squared"),
            "Efficiency: 1 / (mean squared error x environment steps)": lines("variance/per_steps"),
        },
        "95 % intervals": {
            "Noise-to-signal ratio: 95 % interval": _interval("variance/nsr"),
            "Variance: 95 % interval": _interval("variance/trace"),
        },
        "Error": {
            "Mean squared error to grad J / |grad J|²": lines("variance/mse"),
            "Cosine to grad J": lines("variance/cosine"),
            "Mean squared error to the critic's gradient": lines("variance/critic_mse"),
            "Squared bias to the critic's gradient": lines("variance/critic_bias_squared"),
            "Cosine to the critic's gradient": lines("variance/critic_cosine"),
            "Cosine between two gradients": lines("variance/pairwise_cosine"),
        },
        "Cost and efficiency": {
            "Noise-to-signal ratio x environment steps": lines("variance/nsr_times_steps"),
            "1 / (mean squared error x evaluations of f)": lines("variance/per_evaluations"),
            "1 / (mean squared error x seconds)": lines("variance/per_seconds"),
            "Milliseconds for a gradient": lines("variance/milliseconds"),
        },
    }


def _interval(tag: str) -> list:
    """A chart of the values that have a finite interval, as a band."""
    return ["Margin", [f"{tag}/{end}" for end in ("value", "low", "high")]]
