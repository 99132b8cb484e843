"""Training many variants side by side in worker processes, tuning each first where a grid is given."""

from __future__ import annotations

import contextlib
import math
import multiprocessing
import queue
import signal
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pglab.config import Config, override
from pglab.errors import PglabError
from pglab.lab.statistics import iqm
from pglab.population import size_of, swept_fields
from pglab.tracking.hparams import Field
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
    fields: tuple[Field, ...] = ()


Report = Callable[[tuple[Any, ...]], None]


def run_job(job: Job, report: Report, stop: Callable[[], bool] = lambda: False) -> str:
    """Train one variant (after tuning it, where a grid is given) and write its folder. Returns `done` or `stopped`."""
    from pglab.registry import load_installed_plugins, load_plugin
    from pglab.tracking.opening import Part
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
    group, _, variant = job.key.partition("/")
    part = Part(group, variant, job.fields) if job.fields else None
    trained = train(data, job.folder, job.command, watcher, tuned=tuned, part=part)
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


def expected(job: Job) -> tuple[int, int]:
    """The steps that a job reports, of all members and of its tuning too, and its number of seeds."""
    config = Config.read(job.data)
    steps = config.total_steps * size_of(config)
    settings = 0 if job.resume or not job.tune else math.prod(len(values) for values in job.tune.values())
    return steps * (1 + settings), len(config.seed_list)


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
            progress.end(key, rest[0])
            if rest[0] == "failed":
                progress.note(f"[{key}] failed: {rest[1].strip().splitlines()[-1]}")

    progress.expect({job.key: expected(job) for job in jobs})
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
                progress.refresh()
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
