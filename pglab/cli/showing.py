"""What is printed when a run or a comparison has come to its end."""

from __future__ import annotations

import sys
import textwrap
from pathlib import Path

import numpy as np

from pglab.comparing import Compared
from pglab.config import BpttConfig, Config, EvolutionConfig
from pglab.lab.comparison import CAPTION, cells, columns_of
from pglab.lab.statistics import iqm, stratified_bootstrap_interval
from pglab.lab.tables import Column, rich_table
from pglab.population import size_of
from pglab.tracking import MultiProgress
from pglab.tracking.text import visible
from pglab.training import Trained
from pglab.watching import Watcher


def watcher_on(progress: MultiProgress, title: str) -> Watcher:
    """A watcher that shows one run as the row `title`."""
    return Watcher(
        progress=lambda step, total, value, rate: progress.update(title, step, total, value, rate), note=progress.note
    )


def expect(progress: MultiProgress, title: str, config: Config) -> None:
    """Announce the run of a config, to be shown as the row `title`."""
    progress.expect({title: (config.total_steps * size_of(config), len(config.seed_list))})


def opening(config: Config) -> str:
    """What will be trained, in a line for whoever starts it."""
    e = config.env
    return (
        f"{e.id}: {size_of(config)} members x {e.num_envs} environments, {config.total_steps:,} steps each; "
        f"agent {config.agent.name}, estimator {estimator_of(config)}, baseline {config.baseline.name}."
    )


def estimator_of(config: Config) -> str:
    """The estimator's name; some agents are one of their own."""
    agent = config.agent
    return agent.estimator if isinstance(agent, EvolutionConfig | BpttConfig) else config.estimator.name


def show_trained(trained: Trained, folder: Path) -> None:
    """Each swept setting's return over its seeds, and where the run is."""
    from rich.console import Console

    console = Console(highlight=False)
    if not trained.finished:
        saved = any((folder / "checkpoints").glob("*.pt"))
        said = (
            f"Stopped and saved. Go on with: pglab resume {folder}" if saved else "Stopped before anything was saved."
        )
        console.print(said, markup=False, soft_wrap=True)
        return
    final = np.mean(trained.evaluations[-1]["returns"], axis=1)  # [P]
    settings: dict[str, list[float]] = {}
    for member, score in zip(trained.members, final.tolist(), strict=True):
        name = ", ".join(f"{k}={v:g}" for k, v in member.items() if k != "seed") or "all"
        settings.setdefault(name, []).append(score)
    rows = [
        {
            "setting": name,
            "seeds": len(scores),
            "iqm": float(iqm(np.array(scores))),
            "interval": stratified_bootstrap_interval(np.array(scores)),
            "worst": min(scores),
        }
        for name, scores in settings.items()
    ]
    columns = [
        Column("setting"),
        Column("seeds"),
        Column("iqm", "IQM return", ".1f"),
        Column("interval", "95 % interval", ".1f"),
        Column("worst", "worst seed", ".1f"),
    ]
    console.print(rich_table(rows, columns))
    seconds = trained.seconds
    steps = float(np.sum(trained.evaluations[-1]["steps"]))
    console.print(
        f"{steps:,.0f} steps in {seconds['training']:.1f} s of training ({steps / max(seconds['training'], 1e-9):,.0f} "
        f"steps/s), {seconds['evaluation']:.1f} s of evaluation.\nRun folder: {folder}",
        markup=False,
        soft_wrap=True,
    )


def show_compared(compared: Compared, quiet: bool) -> int:
    """A table per group, what failed, and where everything is. Returns the exit status."""
    from rich.console import Console

    console = Console(highlight=False)
    if not quiet:
        for name, group in compared.comparison.groups.items():
            rows = [row for row in compared.rows if row.group == name]
            if rows:
                shown = [cells(row) for row in rows]
                console.print(rich_table(shown, columns_of(rows), title=visible(group.title or name)))
        if compared.rows:
            console.print(
                f"{textwrap.fill(CAPTION, 79)}\n\n"
                f"Tables, figures and runs: {compared.folder}\n"
                f"Look at the curves:       pglab board {compared.folder}",
                markup=False,
                soft_wrap=True,
            )
    for key, message in compared.failed.items():
        said = visible(message.strip(), keep="\n")
        print(f"pglab: error: variant {key}: {said}", file=sys.stderr)
    if compared.stopped:
        print(f"Stopped. Go on with: pglab resume {compared.folder}", file=sys.stderr)
        return 130
    return 1 if compared.failed else 0
