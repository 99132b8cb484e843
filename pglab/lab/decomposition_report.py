"""A decomposition of the variance, as a section of a page."""

from __future__ import annotations

from pglab.lab.decomposition import Decomposition, Interval
from pglab.lab.tables import Column, markdown_table
from pglab.lab.variance_report import with_interval

PARTS = {
    "tau": "continuations, Sigma_tau",
    "action": "actions, Sigma_a",
    "state": "states, Sigma_s",
    "cross": "between steps",
    "total": "all: trace Var(g)",
    "squared_mean": "for comparison: |E g|²",
}


def section(title: str, d: Decomposition) -> str:
    """A table of the parts, summed over time, with each baseline."""
    rows = []
    for key, label in PARTS.items():
        row = {"part": label}
        for name, parts in d.baselines.items():
            row[name] = _shown(parts.sums[key])
        rows.append(row)
    left: dict[str, str] = {"part": "removable by an action-dependent baseline, of sum_t Var(x_t)"}
    for name, parts in d.baselines.items():
        share = parts.removable_share_of_steps
        left[name] = f"{share.value:.1%} ({share.low:.1%} to {share.high:.1%})"
    rows.append(left)
    columns = [Column("part"), *(Column(name, f"baseline {name}") for name in d.baselines)]
    return (
        f"## The parts of the variance: {title}\n\n{d.definition} {d.episodes} episodes, {d.states_per_step} states per step, "
        f"{d.steps:,} environment steps.\n\n{markdown_table(rows, columns)}"
    )


def _shown(x: Interval) -> str:
    return with_interval((x.value, x.low, x.high, True))
