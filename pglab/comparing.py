"""Running a comparison: every variant's training, side by side in worker processes, and what is made of the results."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import queue
import shlex
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pglab.capabilities import check_fit
from pglab.config import ActorCriticConfig, Config, override, read_yaml
from pglab.environments import make_environment
from pglab.environments.contract import EnvironmentSpec
from pglab.errors import PglabError, unknown
from pglab.lab.comparison import (
    CAPTION,
    ComparisonConfig,
    Row,
    Variant,
    cells,
    columns_of,
    curve_of,
    pooled_nsr,
    summarise,
    variants_of,
)
from pglab.lab.statistics import iqm
from pglab.population import swept_fields
from pglab.shipped import comparison_file
from pglab.tracking import RunFolder, unique_run_path
from pglab.tracking.files import write_json, write_text, write_yaml
from pglab.tracking.terminal import MultiProgress

TUNING_SEEDS = 10_000  # tuning takes seeds from here on, so that no reported seed was tuned on


@dataclass
class Job:
    """One variant's training, in a form that another process can take."""

    key: str
    data: dict[str, Any]
    folder: str
    command: str
    plugins: list[str]
    resume: bool = False
    tune: dict[str, list[float]] = field(default_factory=dict)


Report = Callable[[tuple[Any, ...]], None]


def run_job(job: Job, report: Report, stop: Callable[[], bool] = lambda: False) -> str:
    """Train one variant (after tuning it, where a grid is given) and write its folder. Returns `done` or `stopped`."""
    from pglab.registry import load_installed_plugins, load_plugin
    from pglab.training import resume, train
    from pglab.watching import Watcher

    load_installed_plugins()
    for plugin in job.plugins:
        load_plugin(plugin)
    watcher = Watcher(
        progress=lambda *state: report(("progress", job.key, *state)),
        note=lambda text: report(("note", job.key, text)),
        stop=stop,
    )
    if job.resume:
        trained = resume(job.folder, watcher)
        return "done" if trained.finished else "stopped"
    data, tuned = job.data, {}
    if job.tune:
        found = tune(job, watcher)
        if found is None:
            return "stopped"
        data, chosen = found
        tuned = {"chosen": chosen, "grid": job.tune}
    trained = train(data, job.folder, job.command, watcher, tuned=tuned)
    return "done" if trained.finished else "stopped"


def with_values(data: dict[str, Any], path: str, values: Sequence[float]) -> dict[str, Any]:
    """`data` with a swept field set to these values: where it has a schedule, the schedule starting from each of them."""
    (schedule,) = swept_fields(Config.read(data))[path]
    laid = [v if schedule.kind == "constant" else {**schedule.model_dump(), "start": v} for v in values]
    return override(data, path, laid)


def tune(job: Job, watcher: Any) -> tuple[dict[str, Any], dict[str, float]] | None:
    """The config with the grid's best combination, and that combination: by IQM over tuning seeds (as many as are
    reported, but others) at the end of training. None if it was interrupted."""
    from pglab.training import train

    seeds = [TUNING_SEEDS + i for i in range(len(Config.read(job.data).seed_list))]
    data = override(override(job.data, "seeds", seeds), "measurement.at", [])
    for path, values in job.tune.items():
        data = with_values(data, path, values)
    trained = train(data, watcher=watcher)
    if not trained.finished:
        return None
    final = np.mean(trained.evaluations[-1]["returns"], axis=1)  # [P]
    single = {path: values[0] for path, values in job.tune.items() if len(values) == 1}
    scores: dict[tuple[float, ...], list[float]] = {}
    for member, score in zip(trained.members, final.tolist(), strict=True):
        setting = tuple(float(member[path] if path in member else single[path]) for path in job.tune)
        scores.setdefault(setting, []).append(score)
    ranked = {setting: float(np.nan_to_num(iqm(np.array(found)), nan=-np.inf)) for setting, found in scores.items()}
    best = max(ranked, key=lambda setting: ranked[setting])
    chosen = dict(zip(job.tune, best, strict=True))
    watcher.note(f"tuned: {', '.join(f'{k}={v:g}' for k, v in chosen.items())} (IQM {ranked[best]:.1f})")
    data = job.data
    for path, value in chosen.items():
        data = with_values(data, path, [value])
    return data, chosen


def work(jobs: Any, reports: Any, stop: Any) -> None:
    """A worker process: takes jobs until there are none (or it is asked to stop), and reports how each went."""
    # Ctrl-C reaches every process of the terminal; between jobs the parent alone decides, and asks through `stop`.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    while not stop.is_set():
        job = jobs.get()
        if job is None:
            return
        try:
            reports.put(("ended", job.key, run_job(job, reports.put, stop.is_set), ""))
        except PglabError as error:
            reports.put(("ended", job.key, "failed", str(error)))
        except Exception:
            reports.put(("ended", job.key, "failed", traceback.format_exc()))


Ended = dict[str, tuple[str, str]]
"""Key -> (`done`, `stopped` or `failed`, message)."""


def run_jobs(jobs: Sequence[Job], workers: int, progress: MultiProgress) -> Ended:
    """Run all jobs, `workers` at a time."""
    ended: Ended = {}

    def report(message: tuple[Any, ...]) -> None:
        kind, key, *rest = message
        if kind == "progress":
            step, total, value, rate = rest
            progress.update(key, step, total, value, rate)
        elif kind == "note":
            progress.note(f"[{key}] {rest[0]}")
        else:
            ended[key] = (rest[0], rest[1])
            if rest[0] == "failed":
                progress.note(f"[{key}] failed: {rest[1].strip().splitlines()[-1]}")

    if workers <= 1 or len(jobs) <= 1:
        _one_by_one(jobs, report, ended)
    else:
        _side_by_side(jobs, workers, report, ended, progress)
    for job in jobs:
        ended.setdefault(job.key, ("stopped", ""))
    return ended


def _one_by_one(jobs: Sequence[Job], report: Report, ended: Ended) -> None:
    for job in jobs:
        try:
            report(("ended", job.key, run_job(job, report), ""))
        except PglabError as error:
            report(("ended", job.key, "failed", str(error)))
        except Exception:
            report(("ended", job.key, "failed", traceback.format_exc()))
        if ended[job.key][0] == "stopped":
            return


def _side_by_side(jobs: Sequence[Job], workers: int, report: Report, ended: Ended, progress: MultiProgress) -> None:
    from pglab.watching import DeferredInterrupt

    context = multiprocessing.get_context("spawn")
    todo, reports, stop = context.Queue(), context.Queue(), context.Event()
    for job in jobs:
        todo.put(job)
    count = min(workers, len(jobs))
    processes = [context.Process(target=work, args=(todo, reports, stop)) for _ in range(count)]
    for _ in processes:
        todo.put(None)
    try:
        with DeferredInterrupt() as interrupt:
            for process in processes:
                process.start()
            while any(p.is_alive() for p in processes):
                if interrupt.asked and not stop.is_set():
                    stop.set()
                    progress.note("Interrupted: the running variants save and stop (Ctrl-C again to give up).")
                with contextlib.suppress(queue.Empty):
                    report(reports.get(timeout=0.2))
        with contextlib.suppress(queue.Empty):
            while True:
                report(reports.get(timeout=0.05))
    except KeyboardInterrupt:
        progress.note("Given up: what was saved before can be resumed.")
    finally:
        # Workers are no daemons (asynchronous environments have processes of their own), so none may outlive this.
        todo.cancel_join_thread()
        for process in processes:
            if process.is_alive():
                process.kill()
            process.join()
    if not interrupt.asked:
        for job in jobs:
            ended.setdefault(job.key, ("failed", "its worker process died before it came to an end"))


@dataclass
class Compared:
    """What a comparison gives back."""

    folder: Path
    rows: list[Row]
    """One per finished variant, in the file's order."""
    failed: dict[str, str]
    """Key -> message of variants that ended with an error."""
    stopped: list[str]
    """Keys of variants that were interrupted."""
    comparison: ComparisonConfig

    def results(self) -> dict[str, Any]:
        """As JSON holds it."""
        return {
            "name": self.comparison.name,
            "threshold": self.comparison.threshold,
            "rows": [asdict(row) for row in self.rows],
            "failed": self.failed,
            "stopped": self.stopped,
        }


def read_comparison(source: str | Path | dict[str, Any]) -> ComparisonConfig:
    """A comparison from a mapping, a YAML file, or the name of one that is shipped."""
    if isinstance(source, dict):
        return ComparisonConfig.read(source, "comparison")
    source = comparison_file(str(source))
    return ComparisonConfig.read(read_yaml(Path(source)), str(source))


def compare(
    source: str | Path | dict[str, Any],
    root: str | Path = "runs",
    workers: int = 1,
    overrides: Sequence[tuple[str, Any]] = (),
    only: Sequence[str] = (),
    tune: dict[str, list[float]] | None = None,
    command: str | None = None,
    plugins: Sequence[str] = (),
    quiet: bool = False,
) -> Compared:
    """Train every variant of a comparison and write its table and figures.

    Args:
        source: a comparison file, the mapping it holds, or the name of one that is shipped, such as cartpole.
        root: folder in which a new folder `name-date-time` is made.
        workers: processes that train at the same time (each with the config's number of threads).
        overrides: (dotted path, value) laid on every variant.
        only: names of variants or groups to keep; empty keeps all.
        tune: field -> grid; every variant is trained on the whole grid with seeds of its own first, and reported on the
            comparison's seeds with the best.
        command: recorded in the folders.
        plugins: plug-ins that the worker processes load.
        quiet: print nothing.

    Raises:
        PglabError: for any mistake in the comparison, before anything is trained.
    """
    comparison = read_comparison(source)
    variants = variants_of(comparison, list(overrides), list(only))
    grid = comparison.tune if tune is None else tune
    check(variants, grid)
    said = command if command is not None else shlex.join(sys.argv)
    folder = unique_run_path(root, comparison.name)
    groups = {
        name: {**group.model_dump(exclude={"base"}), "variants": {v.name: v.data for v in variants if v.group == name}}
        for name, group in comparison.groups.items()
    }
    kept = {name: group for name, group in groups.items() if group["variants"]}
    resolved = {**comparison.model_dump(), "groups": kept, "tune": grid}
    write_yaml(folder / "comparison.yaml", resolved)
    jobs = [Job(v.key, v.data, str(folder / v.group / v.name), said, list(plugins), tune=dict(grid)) for v in variants]
    return _finish(folder, ComparisonConfig.read(resolved, "comparison"), variants, jobs, workers, quiet)


def check(variants: Sequence[Variant], grid: dict[str, list[float]]) -> None:
    """PglabError when a variant does not fit its environment, or the grid does not fit a variant."""
    specs: dict[str, EnvironmentSpec] = {}
    for variant in variants:
        config = variant.config()
        e = config.env
        key = e.model_dump_json()
        if key not in specs:
            env = make_environment(e.id, 1, 1, e.backend, "sync", "disabled", e.kwargs, e.max_episode_steps)
            specs[key] = env.spec
            env.close()
        try:
            check_fit(config, specs[key])
        except PglabError as error:
            raise PglabError(f"variant {variant.key}: {error}") from None
        for path, values in grid.items():
            if path not in swept_fields(config):
                raise unknown(f"field to tune (variant {variant.key})", path, swept_fields(config))
            Config.read(with_values(variant.data, path, values), where=f"--tune {path}, variant {variant.key}")


def resume_comparison(folder: Path, workers: int = 1, quiet: bool = False, plugins: Sequence[str] = ()) -> Compared:
    """Go on with the variants of a comparison folder that have not come to their end."""
    comparison = read_comparison(folder / "comparison.yaml")
    variants = variants_of(comparison, [], [])
    jobs = []
    for v in variants:
        path = folder / v.group / v.name
        if (path / "results.json").is_file():
            continue
        started = (path / "config.yaml").is_file() and any((path / "checkpoints").glob("*.pt"))
        command = f"pglab resume {shlex.quote(str(folder))}"
        if not started and path.is_dir():
            RunFolder.discard(path)
        jobs.append(Job(v.key, v.data, str(path), command, list(plugins), started, dict(comparison.tune)))
    return _finish(folder, comparison, variants, jobs, workers, quiet)


def _finish(
    folder: Path, comparison: ComparisonConfig, variants: list[Variant], jobs: list[Job], workers: int, quiet: bool
) -> Compared:
    # The longest first, so that no worker is left alone with one at the end.
    ordered = sorted(jobs, key=lambda job: -_work(Config.read(job.data)))
    with MultiProgress(quiet=quiet) as progress:
        ended = run_jobs(ordered, workers, progress)
    rows, results = [], {}
    for variant in variants:
        path = folder / variant.group / variant.name
        if (path / "results.json").is_file():
            found = RunFolder.open(path).results()
            assert found is not None
            results[variant.key] = found
            rows.append(summarise(variant, found, comparison.threshold))
    failed = {key: message for key, (state, message) in ended.items() if state == "failed"}
    stopped = [v.key for v in variants if v.key not in results and v.key not in failed]
    compared = Compared(folder, rows, failed, stopped, comparison)
    write_json(folder / "results.json", compared.results())
    if rows:
        write_text(folder / "table.md", markdown(compared))
        figures(compared, variants, results)
    return compared


def _work(config: Config) -> float:
    """Roughly how long a variant takes, for ordering."""
    return config.total_steps * (10.0 if isinstance(config.agent, ActorCriticConfig) else 1.0)


def markdown(compared: Compared) -> str:
    """The tables, one per group, as Markdown."""
    from pglab.lab.tables import markdown_table

    parts = []
    for name, group in compared.comparison.groups.items():
        rows = [row for row in compared.rows if row.group == name]
        if rows:
            parts.append(f"**{group.title or name}**\n\n{markdown_table([cells(r) for r in rows], columns_of(rows))}")
    return "\n".join([*parts, f"{CAPTION}\n"])


def figures(compared: Compared, variants: Sequence[Variant], results: dict[str, dict[str, Any]]) -> None:
    """Write `learning_curves.png` and, where noise was measured, `gradient_variance.png` into the folder."""
    from pglab.lab.figures import gradient_variance, learning_curves

    curves: dict[str, dict[str, Any]] = {}
    noise: dict[str, dict[str, Any]] = {}
    for v in variants:
        if v.key not in results:
            continue
        title = compared.comparison.groups[v.group].title or v.group
        if sum((g.title or n) == title for n, g in compared.comparison.groups.items()) > 1:
            title = f"{title} ({v.group})"  # two groups of one title stay two panels
        curves.setdefault(title, {})[v.name] = curve_of(results[v.key])
        records = [{"stage": m["stage"], "step": m["step"], **pooled_nsr(m)} for m in results[v.key]["measurements"]]
        if records:
            noise.setdefault(title, {})[v.name] = records
    learning_curves(curves, compared.folder / "learning_curves.png", compared.comparison.threshold)
    if noise:
        gradient_variance(noise, compared.folder / "gradient_variance.png")


def default_workers() -> int:
    """As many processes as there are cores to run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
