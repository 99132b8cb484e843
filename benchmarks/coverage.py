"""How often the 95 % intervals of the variance laboratory (`pglab.lab.quality`) contain the truth.

Units of known law, 20 parameters with unequal variances, in repetitions that know nothing of one another:

- light: Gaussian units, R = 32, 64, 256; every statistic whose true value is known or can be had from many draws;
- heavy: units of kurtosis above 20 (Gaussian with a common random scale, lognormal or that of Student's t), R = 16 to
  4096, the interval of the trace beside a plain t and a percentile bootstrap of the same groups, and how often it was
  marked unreliable;
- merged: the light problem with many units in few groups, an incomplete last group, and two streams made one.

A coverage from 1,000 repetitions has a standard error of 0.7 percentage points at 95 %.

    python benchmarks/coverage.py --out benchmarks/coverage

writes OUT.md and OUT.json.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import stats

from pglab.lab.intervals import CONFIDENCE, Estimate, left_out
from pglab.lab.quality import FLOOR, TAIL, quality
from pglab.lab.replicates import Replicates, merged

N = 20
SCALE = np.linspace(0.5, 1.5, N)
MEAN = np.full(N, 0.3)
SHIFT = 0.2 * (-1.0) ** np.arange(N)
"""Where the reference is not the mean, it is the mean less this."""
SIZES = {"light": (32, 64, 256), "heavy": tuple(2**k for k in range(4, 13))}
BLOCK = 1 << 23
"""Numbers [J, R, n] drawn at a time."""
NU = 4.3
TAU = 0.5**0.5

Draw = Callable[[np.random.Generator, int, int], np.ndarray]
"""(generator, J, R) to units [J, R, n]."""


def gaussian(rng: np.random.Generator, j: int, r: int) -> np.ndarray:
    return MEAN + SCALE * rng.standard_normal((j, r, N))


def lognormal(rng: np.random.Generator, j: int, r: int) -> np.ndarray:
    """A common lognormal scale of mean square 1; kurtosis 3 exp(4 TAU^2) = 22.2."""
    return MEAN + np.exp(TAU * rng.standard_normal((j, r, 1)) - TAU**2) * SCALE * rng.standard_normal((j, r, N))


def student(rng: np.random.Generator, j: int, r: int) -> np.ndarray:
    """Multivariate t of NU degrees, scaled to variance SCALE^2; kurtosis 3 + 6 / (NU - 4) = 23. The squared deviation
    has infinite skewness, and a finite variance only just."""
    return MEAN + np.sqrt((NU - 2) / rng.chisquare(NU, (j, r, 1))) * SCALE * rng.standard_normal((j, r, N))


LAWS: dict[str, Draw] = {"lognormal scale, kurtosis 22": lognormal, "Student's t, kurtosis 23": student}


def truth(p: int, reference: np.ndarray, draws: int = 1_000_000) -> dict[str, float]:
    """True values for Gaussian units; directions of single gradients from independent draws."""
    trace, square = float((SCALE**2).sum()) / p, float(MEAN @ MEAN)
    rng = np.random.default_rng(1)
    g = MEAN + SCALE / np.sqrt(p) * rng.standard_normal((draws, N))
    g /= np.linalg.norm(g, axis=1, keepdims=True)
    bias, length = float(((MEAN - reference) ** 2).sum()), float(np.linalg.norm(reference))
    return {
        "trace": trace,
        "mean_log_variance": float(np.log(SCALE**2 / p + FLOOR).mean()),
        "squared_norm": square,
        "nsr": trace / square,
        "snr": float((MEAN / SCALE).mean() * np.sqrt(p)),
        "pairwise_cosine": float((g.mean(0) ** 2).sum()),
        "bias_squared": bias,
        "mse": bias + trace,
        "cosine": float(g.mean(0) @ reference / length),
        "mean_cosine": float(MEAN @ reference / (np.sqrt(square) * length)),
    }


def hit(estimate: Estimate, true: float) -> np.ndarray:
    return (estimate.low <= true + 1e-12) & (true - 1e-12 <= estimate.high)  # a cosine of 1 has its rounding


def filled(x: np.ndarray, p: int = 1, groups: int = 256) -> Replicates:
    found = Replicates(x.shape[0], x.shape[2], p, groups=groups)
    found.add(torch.from_numpy(np.ascontiguousarray(x, dtype=np.float32)))
    return found


def light(repetitions: int, r: int, p: int, biased: bool, ref_units: int = 0) -> dict[str, dict[str, float]]:
    """Coverage of every statistic, and the share marked unreliable; with `ref_units` the reference is the mean of as
    many draws, of other, equal variances that together are those of SCALE."""
    rng = np.random.default_rng((r, p, biased, ref_units))
    exact = MEAN - SHIFT if biased else MEAN
    reference, noise = exact, None
    if ref_units:
        sd = np.sqrt((SCALE**2).mean() / ref_units)
        reference = exact + sd * rng.standard_normal((repetitions, N))
        noise = {"total": N * sd**2}
    found = quality(filled(gaussian(rng, repetitions, r), p), {}, reference, noise).estimates["total"]
    values = truth(p, exact)
    names = ("bias_squared", "mse", "mean_cosine") if ref_units else values
    return {
        name: {
            "covered": float(hit(found[name], values[name]).mean()),
            "unreliable": float((~found[name].reliable).mean()),
        }
        for name in names
    }


def paired(repetitions: int, r: int) -> dict[str, dict[str, float]]:
    """Ratios of two correlated pairs, and the width of their intervals against that with other draws for the second."""
    rng = np.random.default_rng((r, 7))
    covered: dict[str, list[bool]] = {"trace_ratio": [], "mse_ratio": []}
    widths: dict[str, list[float]] = {name: [] for name in covered}
    trace = float((SCALE**2).sum())
    shift = float(SHIFT @ SHIFT)
    true = {"trace_ratio": 1.3, "mse_ratio": (1.3 * trace + shift) / (trace + shift)}
    for _ in range(repetitions):
        a, b = rng.standard_normal((2, 1, r, N)) * SCALE
        second = a + np.sqrt(0.3) * b
        c = rng.standard_normal((1, r, N)) * SCALE * np.sqrt(1.3)
        found = quality(filled(MEAN + np.concatenate([a, second, c])), {}, MEAN - SHIFT).ratios(0)["total"]
        for name, values in found.items():
            _, low, high, _ = values[1]
            covered[name].append(low <= true[name] <= high)
            _, apart_low, apart_high, _ = values[2]
            widths[name].append((high - low) / (apart_high - apart_low))
    return {n: {"covered": float(np.mean(c)), "width": float(np.median(widths[n]))} for n, c in covered.items()}


def heavy(repetitions: int, r: int, draw: Draw, seed: int) -> dict[str, float]:
    """Coverage of the trace, nsr and mse; of the trace by other methods too, and apart by the mark."""
    true, rng = truth(1, MEAN, 10), np.random.default_rng((r, seed))
    kept: dict[str, list[np.ndarray]] = {}
    at_once = max(1, min(repetitions, BLOCK // (r * N)))
    for start in range(0, repetitions, at_once):
        replicates = filled(draw(rng, min(at_once, repetitions - start), r))
        found = quality(replicates, {}, MEAN).estimates["total"]
        t, percentile = others(replicates, true["trace"])
        new = {name: hit(found[name], true[name]) for name in ("trace", "nsr", "mse", "squared_norm")}
        new |= {"t": t, "percentile": percentile, "reliable": found["trace"].reliable}
        for name, values in new.items():
            kept.setdefault(name, []).append(values)
    every = {name: np.concatenate(values) for name, values in kept.items()}
    ok = every.pop("reliable")
    return {name: float(x.mean()) for name, x in every.items()} | {
        "unreliable": float((~ok).mean()),
        "trace_if_reliable": float(every["trace"][ok].mean()) if ok.any() else float("nan"),
        "trace_if_unreliable": float(every["trace"][~ok].mean()) if (~ok).any() else float("nan"),
    }


def others(replicates: Replicates, true: float, resamples: int = 1000) -> tuple[np.ndarray, np.ndarray]:
    """Whether a plain jackknife t interval of the trace covers, and a percentile bootstrap of groups (Efron 1979)."""
    counts = replicates.counts.numpy().astype(np.float64)
    r, b, offset = counts.sum(), len(counts), replicates.offset.numpy()
    sums, squares = replicates.sums.numpy(), replicates.squares.double().numpy().sum(-1)
    total, norms = sums.sum(1), squares.sum(1)
    rest = r - counts
    without = (norms[:, None] - squares - ((total[:, None] - sums) ** 2).sum(-1) / rest) / (rest - 1)
    value = (norms - r * (offset**2).sum(-1)) / (r - 1)
    error = np.sqrt(left_out(value, without, counts)[0].variance)
    half = stats.t.ppf((1 + CONFIDENCE) / 2, b - 1) * error
    weights = np.random.default_rng(0).multinomial(b, np.full(b, 1 / b), resamples).astype(np.float64)  # [W, B]
    drawn = np.empty((len(value), resamples))
    size = weights @ counts
    for j in range(len(value)):
        # Two units of a resample may be one: the expectation of its trace is (1 - 1 / R) of the sample's.
        drawn[j] = (weights @ squares[j] - ((weights @ sums[j]) ** 2).sum(-1) / size) / size * r / (r - 1)
    low, high = np.quantile(drawn, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2], axis=1)
    return np.abs(value - true) <= half, (low <= true) & (true <= high)


def streamed(repetitions: int, r: int, groups: int, chunks: tuple[int, ...], joined: bool) -> dict[str, float]:
    """The light problem, in chunks of the given sizes in turn, into `groups`; `joined`: as two streams, merged."""
    rng = np.random.default_rng((r, groups, joined))
    parts = []
    for units in (r * 3 // 8, r - r * 3 // 8) if joined else (r,):
        found = Replicates(repetitions, N, groups=groups)
        while found.units < units:
            for size in chunks:
                u = min(size, units - found.units)
                found.add(torch.from_numpy(gaussian(rng, repetitions, u).astype(np.float32)))
        parts.append(found)
    one = merged(*parts) if joined else parts[0]
    estimates, values = quality(one, {}, MEAN - SHIFT).estimates["total"], truth(1, MEAN - SHIFT, 10)
    names = ("trace", "squared_norm", "nsr", "mse", "bias_squared", "mean_log_variance")
    covered = {name: float(hit(estimates[name], values[name]).mean()) for name in names}
    return {"groups": float(len(one.counts)), "per_group": float(one.per_group)} | covered


def percent(x: float) -> str:
    return "" if np.isnan(x) else f"{100 * x:.1f}"


def page(record: dict[str, Any]) -> str:
    from reporting import origin, table

    names = list(record["light"][0]["result"])
    lines = [
        origin(record),
        f"{record['repetitions']} repetitions of each, so a coverage of 95 % has a standard error of "
        f"{100 * (0.95 * 0.05 / record['repetitions']) ** 0.5:.1f} points; took {record['seconds']:.0f} s.",
        "## Light tails",
        "Gaussian units, 20 parameters, standard deviations 0.5 to 1.5, means 0.3 (|mu|^2 = 1.8, noise-to-signal ratio of a "
        "unit 12.0). p units make one training-size gradient. Squared bias 0 or 0.8. Coverage in per cent; in parentheses the "
        "share of intervals marked unreliable, where that is not 0. A noise-to-signal ratio that cannot be told from infinite "
        "covers by its infinite end.",
        table(
            ["statistic", *(f"R {c['r']}, p {c['p']}, bias^2 {c['bias']}" for c in record["light"])],
            [
                [
                    f"`{name}`",
                    *(
                        percent(c["result"][name]["covered"])
                        + (f" ({percent(c['result'][name]['unreliable'])})" if c["result"][name]["unreliable"] else "")
                        for c in record["light"]
                    ),
                ]
                for name in names
            ],
        ),
        "The reference is itself the mean of M draws, with variances all equal, not those of the units:",
        table(
            ["statistic", *(f"R {c['r']}, M {c['m']}, bias^2 {c['bias']}" for c in record["noisy_reference"])],
            [
                [f"`{name}`", *(percent(c["result"][name]["covered"]) for c in record["noisy_reference"])]
                for name in ("bias_squared", "mse", "mean_cosine")
            ],
        ),
        "Ratios of two pairs on the same draws (true ratio of traces 1.3), and the width of their intervals as a share of that "
        "with a second pair on draws of its own:",
        table(
            ["R", "trace_ratio", "mse_ratio", "width, trace", "width, mse"],
            [
                [
                    str(c["r"]),
                    *(percent(c["result"][n]["covered"]) for n in ("trace_ratio", "mse_ratio")),
                    *(f"{c['result'][n]['width']:.2f}" for n in ("trace_ratio", "mse_ratio")),
                ]
                for c in record["paired"]
            ],
        ),
        "## Heavy tails",
        f"Marked unreliable: the trace's standard error above {TAIL} of it, or fewer than 8 groups. From R = 512 on, "
        "groups are merged. The last columns are the trace by other methods: Student's t with the jackknife's variance, "
        "and the percentile bootstrap of the same groups.",
    ]
    for law, cases in record["heavy"].items():
        above = reached(cases)
        few = [c["result"]["unreliable"] for c in cases if c["r"] < above]
        many = [c["result"]["unreliable"] for c in cases if c["r"] >= above]
        lines += [
            f"**{law}.** The coverage of the trace exceeds 90 % from R = {above:.0f}; marked unreliable below that: "
            f"{percent(float(np.mean(few))) if few else '-'} %, from there: {percent(float(np.mean(many))) if many else '-'} %.",
            table(
                [
                    "R",
                    "trace",
                    "nsr",
                    "mse",
                    "unreliable",
                    "trace, if reliable",
                    "trace, if unreliable",
                    "t",
                    "percentile",
                ],
                [
                    [
                        str(c["r"]),
                        *(
                            percent(c["result"][k])
                            for k in ("trace", "nsr", "mse", "unreliable", "trace_if_reliable", "trace_if_unreliable")
                        ),
                        *(percent(c["result"][k]) for k in ("t", "percentile")),
                    ]
                    for c in cases
                ],
            ),
        ]
    shown = [k for k in record["merged"][0]["result"] if k not in ("groups", "per_group")]
    lines += [
        "## Merged groups",
        "The light problem, squared bias 0.8.",
        table(
            ["stream", "groups", "units in a full group", *(f"`{k}`" for k in shown)],
            [
                [
                    c["case"],
                    *(f"{c['result'][k]:.0f}" for k in ("groups", "per_group")),
                    *(percent(c["result"][k]) for k in shown),
                ]
                for c in record["merged"]
            ],
        ),
    ]
    return "\n\n".join(lines)


def reached(cases: list[dict[str, Any]]) -> float:
    """The smallest R from which the trace's coverage stays above 90 %."""
    least = float("inf")
    for case in reversed(cases):
        if case["result"]["trace"] <= 0.9:
            break
        least = case["r"]
    return least


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=1000)
    parser.add_argument("--out", type=Path, help="write OUT.md and OUT.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    from reporting import provenance, write

    m, start = options.repetitions, time.perf_counter()
    record: dict[str, Any] = {**provenance(), "repetitions": m}

    def say(what: str) -> None:
        print(f"{time.perf_counter() - start:6.1f} s  {what}", file=sys.stderr, flush=True)

    say("light")
    record["light"] = [
        {"r": r, "p": p, "bias": bias, "result": light(m, r, p, bias > 0)}
        for p, bias in ((1, 0.0), (1, 0.8), (4, 0.8))
        for r in SIZES["light"]
    ]
    record["noisy_reference"] = [
        {"r": 64, "m": units, "bias": bias, "result": light(m, 64, 1, bias > 0, units)}
        for bias in (0.0, 0.8)
        for units in (16, 64, 256)
    ]
    say("paired")
    record["paired"] = [{"r": r, "result": paired(m, r)} for r in SIZES["light"]]
    record["heavy"] = {}
    for k, (law, draw) in enumerate(LAWS.items()):
        say(law)
        record["heavy"][law] = [{"r": r, "result": heavy(m, r, draw, k)} for r in SIZES["heavy"]]
    say("merged")
    record["merged"] = [
        {"case": case, "result": streamed(m, r, groups, chunks, joined)}
        for case, r, groups, chunks, joined in (
            ("256 units, not merged", 256, 256, (64,), False),
            ("256 units, 16 groups", 256, 16, (64,), False),
            ("1,000 units, 64 groups, uneven chunks", 1000, 64, (7, 50, 1), False),
            ("4,096 units, 256 groups", 4096, 256, (256,), False),
            ("4,100 units, 32 groups, uneven chunks", 4100, 32, (100, 9), False),
            ("512 units in two streams, 64 groups", 512, 64, (10, 31), True),
        )
    ]
    record["seconds"] = time.perf_counter() - start
    write(options.out, "Coverage of the 95 % intervals", page(record), record)


if __name__ == "__main__":
    main()
