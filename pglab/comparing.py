"""Running a comparison: what is checked first, which jobs it makes, and what is made of their results."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pglab.capabilities import check_fit
from pglab.config import ActorCriticConfig, Config, read_yaml
from pglab.environments import make_environment
from pglab.environments.contract import EnvironmentSpec
from pglab.errors import PglabError, unknown
from pglab.jobs import Job, run_jobs, with_values
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
from pglab.population import swept_fields
from pglab.shipped import comparison_file
from pglab.tracking import RunFolder, opening, unique_run_path
from pglab.tracking.comparison_events import write_comparison
from pglab.tracking.files import write_json, write_text, write_yaml
from pglab.tracking.layout import default_layout
from pglab.tracking.markdown import fenced
from pglab.tracking.terminal import MultiProgress


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

    def to_pandas(self) -> Any:
        """The table, a row per finished variant; PglabError where pandas is not installed."""
        from pglab.reporting.notebook import compared_rows, frame

        return frame(compared_rows(self))

    def _repr_html_(self) -> str:
        from pglab.reporting.notebook import compared_html

        return compared_html(self)


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
    for variant in variants:
        # Variants train side by side, a core each; set here, so that results do not depend on how many do.
        variant.data.setdefault("threads", 1)
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
    fields = opening.columns({(v.group, v.name): v.config() for v in variants}, tuple(grid))
    jobs = [
        Job(v.key, v.data, str(folder / v.group / v.name), said, list(plugins), tune=dict(grid), fields=fields)
        for v in variants
    ]
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
    fields = opening.columns({(v.group, v.name): v.config() for v in variants}, tuple(comparison.tune))
    jobs = []
    for v in variants:
        path = folder / v.group / v.name
        if (path / "results.json").is_file():
            continue
        started = (path / "config.yaml").is_file() and any((path / "checkpoints").glob("*.pt"))
        command = f"pglab resume {shlex.quote(str(folder))}"
        if not started and path.is_dir():
            RunFolder.discard(path)
        jobs.append(Job(v.key, v.data, str(path), command, list(plugins), started, dict(comparison.tune), fields))
    return _finish(folder, comparison, variants, jobs, workers, quiet)


def _finish(
    folder: Path, comparison: ComparisonConfig, variants: list[Variant], jobs: list[Job], workers: int, quiet: bool
) -> Compared:
    _show_on_tensorboard(folder, variants)
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
        table = markdown(compared)
        write_text(folder / "table.md", table)
        drawn = figures(compared, variants, results)
        _show_on_tensorboard(folder, variants, {"table": table}, drawn)
    return compared


def _show_on_tensorboard(
    folder: Path, variants: Sequence[Variant], texts: dict[str, str] | None = None, drawn: Sequence[Path] = ()
) -> None:
    """Write the comparison's own TensorBoard run: first without its results, then with them."""
    configs = [variant.config() for variant in variants]
    probed, measured = any(c.probe.every for c in configs), any(c.measurement.at for c in configs)
    said = {"comparison": fenced((folder / "comparison.yaml").read_text("utf-8"), "yaml"), **(texts or {})}
    write_comparison(folder, default_layout(probed, measured), said, drawn)


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


def figures(compared: Compared, variants: Sequence[Variant], results: dict[str, dict[str, Any]]) -> list[Path]:
    """Write `learning_curves.png` and, where noise was measured, `gradient_variance.png` into the folder; the paths."""
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
    paths = [compared.folder / "learning_curves.png"]
    learning_curves(curves, paths[0], compared.comparison.threshold)
    if noise:
        paths.append(compared.folder / "gradient_variance.png")
        gradient_variance(noise, paths[1])
    return paths
