"""Experiments of the literature run with pglab's estimators, beside what their papers report.

    python benchmarks/literature.py --figure docs/figures/literature.png --out benchmarks/literature

- bernoulli: one Bernoulli variable, REBAR and RELAX trained by themselves (Tucker et al. 2017, Grathwohl et al. 2018)
- logistic_regression: Bayesian logistic regression (Mohamed et al. 2020, section 8.3); wants scikit-learn for its data:
  `pip install -c constraints.txt ".[reproduce]"`
- polynomial: polynomial programming (Liu et al. 2023, ReinMax)
- norm_bandit: the m-dimensional one-step task (Wu et al. 2018, action-dependent baselines)
- simplex: the quadratic program of Gumbel-Rao (Paulus et al. 2021)

Every table stands beside the paper's setting and claim, with what does and what does not reproduce. The modules are in
`published/`.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import reporting
import torch
from published import bernoulli, logistic_regression, norm_bandit, polynomial, simplex

EXPERIMENTS: dict[str, ModuleType] = {
    "bernoulli": bernoulli,
    "logistic_regression": logistic_regression,
    "polynomial": polynomial,
    "norm_bandit": norm_bandit,
    "simplex": simplex,
}
PANELS = {"bernoulli": 2}
"""Panels of an experiment's figure, where it is not one."""

CONTEXT = (
    "Log-variances that REBAR's authors print (tensorflow/models, `research/rebar/README.md`): natural logarithms, "
    "two layers of 200 Bernoulli variables on Omniglot, learning rate .0003, batches of 24, every estimator at the "
    "iterates of one run. Not run here; the order is the one to expect of estimators with and without a relaxed "
    "control variate."
)
PRINTED = {
    "step 959": {"NVIL": 2.764, "MuProp": -0.034, "SimpleMuProp": -0.041, "REBAR": -3.539, "DynamicREBAR": -3.725},
    "step 1918": {"NVIL": 2.267, "MuProp": -0.718, "SimpleMuProp": -0.707, "REBAR": -3.662, "DynamicREBAR": -3.864},
}


def page(record: dict[str, Any]) -> str:
    """The whole page in Markdown."""
    parts = [reporting.origin(record)]
    if record["quick"]:
        parts.append("**Made with `--quick`: too short and too few to judge a claim by.**")
    for name, found in record["experiments"].items():
        parts += [f"## {EXPERIMENTS[name].TITLE}", EXPERIMENTS[name].page(found)]
    rows = [[step, *(f"{x:.3f}" for x in printed.values())] for step, printed in PRINTED.items()]
    parts += ["## For context: REBAR's printed log-variances", CONTEXT]
    parts.append(reporting.table(["quoted, not measured", *PRINTED["step 959"]], rows))
    return "\n\n".join(parts)


def draw(record: dict[str, Any], path: Path) -> None:
    """Small multiples, one panel or two for each experiment."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    counts = {name: PANELS.get(name, 1) for name in record["experiments"]}
    total = sum(counts.values())
    columns = min(3, total)
    figure, grid = plt.subplots(
        -(-total // columns), columns, figsize=(4.4 * columns, 3.5 * -(-total // columns)), squeeze=False
    )
    axes = list(grid.flat)
    for spare in axes[total:]:
        spare.axis("off")
    for name, count in counts.items():
        EXPERIMENTS[name].draw(axes[:count], record["experiments"][name])
        axes = axes[count:]
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(EXPERIMENTS), help="these experiments (default: all)")
    parser.add_argument("--quick", action="store_true", help="in seconds, with numbers that mean little")
    parser.add_argument("--figure", type=Path, help="write the figure as a PNG")
    parser.add_argument("--out", type=Path, help="write OUT.md and OUT.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    record: dict[str, Any] = reporting.provenance() | {"quick": options.quick, "seconds": {}, "experiments": {}}
    for name in options.only or EXPERIMENTS:
        began = time.process_time()
        record["experiments"][name] = EXPERIMENTS[name].run(options.quick)
        record["seconds"][name] = time.process_time() - began
        print(f"{name}: {record['seconds'][name]:.0f} s of processor time", file=sys.stderr)
    if options.figure:
        draw(record, options.figure)
    reporting.write(options.out, "Experiments of the literature", page(record), record)


if __name__ == "__main__":
    main()
