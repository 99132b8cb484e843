"""Bayesian logistic regression on the breast-cancer data: gradients of a diagonal Gaussian posterior.

f(z) is the log-likelihood of all I = 569 observations at weights z of D = 31 dimensions (30 standardised features and
a 1); the divergence from the prior N(0, 1) is in closed form and adds no variance. A pathwise run is followed, and at
some of its iterates every estimator gives single-draw gradients of E[f].

Source: Mohamed, Rosca, Figurnov & Mnih (2020), section 8.3; settings from the authors' code,
google-deepmind/mc_gradients (`config.py`, `main.py`).
"""

from __future__ import annotations

import math
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

import pglab
from pglab.distributions import Gaussian
from pglab.estimators import ESTIMATORS, Draw, Signal
from pglab.gradients import cotangents
from published.variances import best_coefficient, trace

TITLE = "Bayesian logistic regression (Mohamed et al.)"
BATCH, DRAWS, RATE = 32, 50, 1e-3
PARAMETERS = ("mean", "log_std")
Estimates = dict[str, Tensor]


def breast_cancer() -> Tensor:
    """Features standardised and with a 1 appended, times the label's sign, `[569, 31]`."""
    try:
        from sklearn.datasets import load_breast_cancer
    except ImportError:
        raise SystemExit(
            "The breast-cancer data come with scikit-learn: pip install -c constraints.txt '.[reproduce]'"
        ) from None
    x, y = load_breast_cancer(return_X_y=True)
    return signed((x - x.mean(0)) / x.std(0), y)


def signed(x: np.ndarray, y: np.ndarray) -> Tensor:
    """Features `[I, D - 1]` with a 1 appended, times +1 or -1 for labels `[I]` of 1 and 0: `[I, D]`."""
    x = np.concatenate([x, np.ones((len(x), 1))], 1)
    return torch.from_numpy(x * (2.0 * y[:, None] - 1))


def log_likelihood(x: Tensor, z: Tensor, total: int) -> Tensor:
    """Of `total` observations estimated from signed ones `[I, D]`, at weights `[..., D]`: `[...]`."""
    return F.logsigmoid(z @ x.T).sum(-1) * (total / len(x))


def train(x: Tensor, steps: int, kept: tuple[int, ...], seed: int = 0) -> dict[int, tuple[Tensor, Tensor]]:
    """Mean and log_std `[D]` after the steps that are to be kept: pathwise, minibatches of 32, 50 draws a step, SGD
    with learning rate .001 cos(pi step / (2 steps))."""
    rng = np.random.default_rng(seed)
    total, d = x.shape
    mean, log_std = x.new_zeros(d), x.new_zeros(d)
    pathwise, found = ESTIMATORS.build("pathwise"), {}
    for k in range(steps + 1):
        if k in kept:
            found[k] = mean.clone(), log_std.clone()
        part = x[torch.from_numpy(rng.choice(total, min(BATCH, total), replace=False))]
        noise = torch.from_numpy(rng.standard_normal((1, 1, DRAWS, d)))
        q = Gaussian(mean.expand(noise.shape), log_std.expand(noise.shape))
        critic = lambda z, part=part: log_likelihood(part, z, total)  # noqa: E731
        draw = Draw(q.sample(noise), noise)
        (by_mean, by_log_std), _ = cotangents(pathwise, q, draw, Signal(critic=critic))
        rate = RATE * math.cos(math.pi / 2 * k / steps)
        mean = mean + rate * (by_mean.mean((0, 1, 2)) - mean)
        log_std = log_std + rate * (by_log_std.mean((0, 1, 2)) + 1 - (2 * log_std).exp())
    return found


def uncoupled(q: Gaussian, f: Any, n: int, seed: int) -> Estimates:
    """Measure-valued estimates whose positive and negative draws are independent, single ones, `[n, D]` each."""
    rng = np.random.default_rng(seed)
    d, std = len(q.mean), q.log_std.exp()
    weibull = torch.from_numpy(rng.weibull(2.0, (2, n, d)) * math.sqrt(2))
    maxwell = torch.from_numpy(rng.chisquare(3, (n, d)) ** 0.5 * rng.choice([-1.0, 1.0], (n, d)))
    normal = torch.from_numpy(rng.standard_normal((n, d)))
    z = q.mean + std * torch.from_numpy(rng.standard_normal((n, d)))
    found = {p: torch.empty(n, d, dtype=torch.float64) for p in PARAMETERS}

    def at(i: int, value: Tensor) -> Tensor:
        changed = z.clone()
        changed[:, i] = q.mean[i] + std[i] * value
        return f(changed)

    for i in range(d):
        up, down = at(i, weibull[0, :, i]), at(i, -weibull[1, :, i])
        found["mean"][:, i] = (up - down) / (math.sqrt(2 * math.pi) * std[i])
        found["log_std"][:, i] = at(i, maxwell[:, i]) - at(i, normal[:, i])
    return found


WAYS: dict[str, tuple[dict[str, Any], str]] = {
    "pathwise": ({"name": "pathwise"}, "none"),
    "measure_valued": ({"name": "measure_valued"}, "none"),
    "score_function": ({"name": "score_function"}, "none"),
    "score_function + moving_average": ({"name": "score_function"}, "moving_average"),
    "delta_method": ({"name": "delta_method"}, "none"),
}
DELTA, UNCOUPLED, EQUAL = (
    "delta_method, best coefficient",
    "measure_valued, uncoupled",
    "score_function + moving_average, N = 4D",
)


def estimates(q: Gaussian, f: Any, n: int, few: int) -> dict[str, Estimates]:
    """Single estimates of E[f]'s gradient by every estimator; `few` of those that evaluate f often."""
    found = {}
    for way, (part, baseline) in WAYS.items():
        samples = n if way in ("pathwise", "score_function", "score_function + moving_average") else few
        found[way] = pglab.estimate_gradient(part, q, f, samples, baseline=baseline)
    plain, one = pglab.estimate_gradient("score_function", q, f, few), found["delta_method"]
    # The delta method is g - c (its control variate), and these are its g: the same seed gives the same draws.
    controls = {p: plain[p] - one[p] for p in PARAMETERS}
    found[DELTA] = {p: plain[p] - best_coefficient(plain[p], controls[p]) * controls[p] for p in PARAMETERS}
    found[UNCOUPLED] = uncoupled(q, f, few, seed=1)
    return found


def measure(q: Gaussian, f: Any, n: int, few: int) -> dict[str, Any]:
    """Variances, mean over the dimensions, by estimator and parameter, with standard errors."""
    d = len(q.mean)
    ways: dict[str, Any] = {}
    for way, g in estimates(q, f, n, few).items():
        traces = {p: trace(g[p]) for p in PARAMETERS}
        ways[way] = {p: {"variance": v / d, "error": e / d} for p, (v, e) in traces.items()}
    based = ways["score_function + moving_average"]
    ways[EQUAL] = {p: {k: x / (4 * d) for k, x in based[p].items()} for p in PARAMETERS}
    return {"f at the mean": float(f(q.mean[None])[0]), "std": float(q.log_std.exp().mean()), "ways": ways}


def run(quick: bool = False, x: Tensor | None = None) -> dict[str, Any]:
    """`x`: signed observations `[I, D]`; the breast-cancer data where there are none."""
    data = "given"
    if x is None:
        x, data = breast_cancer(), f"breast cancer, scikit-learn {version('scikit-learn')}"
    steps, n, few = (100, 500, 100) if quick else (5000, 8000, 1500)
    kept = (0, steps) if quick else (0, steps // 50, steps // 5, steps)
    found: dict[str, Any] = {
        "data": data,
        "observations": len(x),
        "dimensions": x.shape[1],
        "n": n,
        "few": few,
        "iterates": {},
    }
    for k, (mean, log_std) in train(x, steps, kept).items():
        f = lambda z: log_likelihood(x, z, len(x))  # noqa: E731
        found["iterates"][str(k)] = measure(Gaussian(mean, log_std), f, n, few)
    return found


def page(record: dict[str, Any]) -> str:
    from reporting import table

    d = record["dimensions"]
    iterates = record["iterates"]
    rows = []
    costs = {
        "pathwise": "1, with its gradient", "measure_valued": f"{3 * d + 1}", UNCOUPLED: f"{4 * d}", EQUAL: f"{4 * d}",
        "delta_method": "1, and a Hessian", DELTA: "1, and a Hessian",
    }  # fmt: skip
    first = next(iter(iterates.values()))["ways"]
    for way in first:
        cells = [f"{m['ways'][way][p]['variance']:.3g}" for p in PARAMETERS for m in iterates.values()]
        rows.append([way, costs.get(way, "1"), *cells])
    worst = max(x["error"] / x["variance"] for m in iterates.values() for w in m["ways"].values() for x in w.values())
    header = ["", "evaluations of f", *(f"{p}, step {int(k):,}" for p in PARAMETERS for k in iterates)]
    return "\n\n".join(
        [
            f"Data: {record['data']}. I = {record['observations']}, D = {d}; a diagonal Gaussian q with mean 0 and "
            f"standard deviation 1 at first, trained pathwise (minibatches of {BATCH}, N = {DRAWS}, SGD, cosine from "
            f"{RATE:g}). Variance of one estimate (N = 1, unless said otherwise) of the gradient of E[f], f the "
            f"log-likelihood of all observations, mean over the dimensions, from {record['n']:,} estimates "
            f"({record['few']:,} of delta_method and measure_valued); the largest standard error is {worst:.0%}.",
            table(header, rows),
            "Published: figures only, not read off here; the claims are compared. Differences from the paper's "
            "runs: the baseline is a moving average at the frozen iterate (theirs lags behind training, and "
            "contains the batch); the coefficient of *best coefficient* is fitted to the same estimates, one number "
            "for each of mean and log_std (theirs: to 25 draws); pglab's measure-valued estimator for log_std "
            f"shares f at the draw between dimensions, {3 * d + 1} evaluations for the paper's 4 D = {4 * d}.",
            "\n".join(claims(record)),
            "Of (v): where f is nearly linear in one dimension, the pair's difference is f' std (W + W'), and its "
            "variance is twice as large with one W as with two independent ones; a factor below 2 is not much on "
            f"the axis of a figure. For log_std coupling pays: {coupled(record)}.",
        ]
    )


def coupled(record: dict[str, Any]) -> str:
    """The range of the uncoupled variance over the coupled one, gradients by log_std."""
    ways = [m["ways"] for m in record["iterates"].values()]
    found = [w[UNCOUPLED]["log_std"]["variance"] / w["measure_valued"]["log_std"]["variance"] for w in ways]
    return f"uncoupled over coupled is {min(found):.3g} to {max(found):.3g}"


def claims(record: dict[str, Any]) -> list[str]:
    """The paper's claims with the ratios found, over iterates and parameters."""

    def ratios(a: str, b: str, parameters: tuple[str, ...] = PARAMETERS) -> list[float]:
        ways = [m["ways"] for m in record["iterates"].values()]
        return [w[a][p]["variance"] / w[b][p]["variance"] for w in ways for p in parameters]

    def line(claim: str, a: str, b: str, holds: Any, parameters: tuple[str, ...] = PARAMETERS) -> str:
        found = ratios(a, b, parameters)
        held = sum(bool(holds(r)) for r in found)
        word = (
            "Reproduced"
            if held == len(found)
            else "Not reproduced"
            if held == 0
            else f"In {held} of {len(found)} cells"
        )
        return f"- {claim}: {word}. {a} over {b}: {min(found):.3g} to {max(found):.3g}."

    plain, moving, pair = "score_function", "score_function + moving_average", "measure_valued"
    return [
        line("(i) pathwise far below the score function (a tenth at most)", "pathwise", plain, lambda r: r < 0.1),
        line("(ii) the delta method better than the moving average", DELTA, moving, lambda r: r < 1),
        line("(ii) with the coefficient at 1", "delta_method", moving, lambda r: r < 1),
        line("(iii) measure-valued matches pathwise (within a factor of 2)", pair, "pathwise", lambda r: 0.5 < r < 2),
        line("(iv) score function and moving average best at equal evaluations", EQUAL, pair, lambda r: r < 1),
        line(
            "(v) coupling makes no difference for the mean (a tenth at most)",
            pair, UNCOUPLED, lambda r: 0.9 < r < 1.1, ("mean",),
        ),
    ]  # fmt: skip


def draw(axes: list[Any], record: dict[str, Any]) -> None:
    """One panel: variances of the gradient by the mean at the iterates."""
    from pglab.lab.figures import DASHES, MARKERS, PALETTE

    (panel,) = axes
    steps = [int(k) for k in record["iterates"]]
    for k, way in enumerate(next(iter(record["iterates"].values()))["ways"]):
        panel.plot(
            range(len(steps)), [m["ways"][way]["mean"]["variance"] for m in record["iterates"].values()],
            color=PALETTE[k] if k < len(PALETTE) else "0.5", linestyle=DASHES[k % 4], linewidth=1.2,
            marker=MARKERS[k % 7], markersize=3, label=way,
        )  # fmt: skip
    panel.set_xticks(range(len(steps)), [f"{s:,}" for s in steps])
    panel.set(
        yscale="log", xlabel="step of the run", ylabel="variance, mean of q", title="Bayesian logistic regression"
    )
    panel.legend(fontsize=5)
