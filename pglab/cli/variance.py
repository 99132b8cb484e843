"""`pglab variance`."""

from __future__ import annotations

import shlex
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pglab.cli.app import OVERRIDES, Parser, load_plugins, parser, split, write_json_file

if TYPE_CHECKING:
    from pglab.lab.measuring import Measurement
    from pglab.lab.subject import Subject

DESCRIPTION = """\
Measure how noisy, how biased and how costly every estimator's gradient is at
frozen policies: at the snapshots of a run, at a config's initialisation, or at
a stable-baselines3 model. Writes a report, figures and TensorBoard events.

  pglab variance runs/CartPole-v1-20260101-120000
  pglab variance runs/CartPole-v1-20260101-120000 --at 0 1 --replicates 128
  pglab variance cartpole/value --pairs score_function score_function/value
  pglab variance --sb3 model.zip --env CartPole-v1
  pglab variance RUN --decompose 64
"""


def main(arguments: list[str]) -> int:
    p = _parser()
    options, settings = split(p, arguments)
    load_plugins(options.plugin)

    from pglab.errors import PglabError
    from pglab.lab.continuations import decomposable
    from pglab.lab.measuring import measure

    if (options.source is None) == (options.sb3 is None):
        raise PglabError("Give a run folder or config to measure, or a stable-baselines3 model with --sb3 MODEL.zip.")
    command = shlex.join(["pglab", "variance", *arguments])
    subjects, name, out = _subjects(options, settings)
    if options.decompose is not None and options.decompose < 8:
        raise PglabError(f"--decompose needs at least 8 episodes, not {options.decompose}.")
    if options.decompose is not None:
        for subject in subjects:
            decomposable(subject)
    folder, new = _folder(options.out, out, name)

    def say(text: str) -> None:
        if not options.quiet:
            print(f"Measuring {text} ...", flush=True)

    try:
        measurement = measure(
            subjects,
            pairs=options.pairs,
            replicates=options.replicates,
            reference=options.reference,
            fit=options.fit,
            progress=say,
        )
        decompositions = _decomposed(subjects, options, say) if options.decompose is not None else {}
    except BaseException:
        if new:  # a mistake leaves no empty folder
            with suppress(OSError):
                folder.rmdir()
        raise
    files = _write(measurement, decompositions, folder, name, command)
    write_json_file(options.json, files["data"])
    if not options.quiet:
        _show(measurement, decompositions, folder, files["figures"])
    return 0


def _parser() -> Parser:
    p = parser("variance", DESCRIPTION, OVERRIDES)
    p.add_argument("source", nargs="?", help="a run folder, a config file, or a shipped config such as cartpole/value")
    p.add_argument(
        "--pairs",
        nargs="+",
        metavar="NAME",
        help="estimators or estimator/baseline pairs, or all (default: every estimator, and every baseline with score_function)",
    )
    p.add_argument(
        "--at", nargs="+", type=float, metavar="X", help="fractions of training to measure (default: all kept)"
    )
    p.add_argument(
        "--members", nargs="+", default=["0"], metavar="N", help="members of the population, or all (default: 0)"
    )
    p.add_argument(
        "--replicates", type=int, default=64, metavar="R", help="training-size gradients per pair (default: 64)"
    )
    p.add_argument(
        "--reference",
        type=int,
        default=4096,
        metavar="M",
        help="episodes or states that grad J is estimated from where it is not exact (default: 4096)",
    )
    p.add_argument(
        "--fit",
        type=int,
        default=64,
        metavar="B",
        help="batches that what pairs learn is fitted on before (default: 64)",
    )
    p.add_argument(
        "--decompose", type=int, metavar="E", help="also split the variance into its parts, from E episodes per policy"
    )
    p.add_argument("--sb3", metavar="MODEL.zip", help="a stable-baselines3 A2C, PPO or SAC model")
    p.add_argument("--env", metavar="ID", help="with --sb3: the environment it was trained on")
    p.add_argument("--activation", help="with --sb3: tanh, relu, elu or silu, where the file does not tell")
    p.add_argument("--algorithm", help="with --sb3: A2C, PPO or SAC, where the file does not tell")
    p.add_argument(
        "--normalize", metavar="FILE", help="with --sb3: exported VecNormalize statistics (.npz, .safetensors)"
    )
    p.add_argument(
        "--out", metavar="FOLDER", help="where to write (default: variance/ in the run, else a new folder in runs/)"
    )
    p.add_argument(
        "--plugin", action="append", default=[], metavar="FILE.py", help="registers more names; may be repeated"
    )
    p.add_argument("--json", metavar="FILE", help="also write the results as JSON there")
    p.add_argument("--quiet", action="store_true", help="print nothing but errors")
    return p


def _subjects(options: Any, settings: list[tuple[str, object]]) -> tuple[list[Subject], str, Path | None]:
    """What is measured, what to call it, and where a run keeps it."""
    from pglab.config import Config, override
    from pglab.errors import PglabError
    from pglab.lab.subject import of_config, of_run
    from pglab.shipped import config_data

    if options.sb3 is not None:
        from pglab.integrations.sb3_subjects import of_sb3

        if settings:
            raise PglabError(f"--{settings[0][0]} is a setting of a config, and a model has its own: leave it out.")
        if options.at is not None or options.members != ["0"]:
            raise PglabError("--at and --members choose from a run or a config; a model is one policy: leave them out.")
        if options.env is None:
            raise PglabError("--sb3 needs the environment it was trained on: --env ID, such as --env CartPole-v1.")
        found = of_sb3(
            options.sb3, options.env, options.activation, algorithm=options.algorithm, normalize=options.normalize
        )
        return found, Path(options.sb3).stem, None
    for name in ("env", "activation", "algorithm", "normalize"):
        if getattr(options, name) is not None:
            raise PglabError(f"--{name} goes with --sb3 MODEL.zip; {options.source} is none.")
    members = _members(options.members)
    if Path(options.source).is_dir():
        if settings:
            raise PglabError(f"--{settings[0][0]} is a setting of a config, and a run has its own: leave it out.")
        return of_run(options.source, options.at, members), Path(options.source).name, Path(options.source) / "variance"
    if options.at is not None:
        raise PglabError("--at chooses snapshots of a run; a config is measured at its initialisation.")
    data = config_data(options.source)
    for path, value in settings:
        data = override(data, path, value)
    if options.plugin:
        data["plugins"] = options.plugin
    config = Config.read(data)
    return of_config(config, members), config.env.id.replace("/", "-"), None


def _members(words: list[str]) -> list[int] | None:
    from pglab.errors import PglabError

    if words == ["all"]:
        return None
    try:
        return [int(w) for w in words]
    except ValueError:
        raise PglabError(f"--members takes numbers, or all, not {' '.join(words)}.") from None


def _folder(asked: str | None, of_run: Path | None, name: str) -> tuple[Path, bool]:
    """Where to write, and whether it was made for that."""
    from pglab.errors import PglabError
    from pglab.tracking import unique_run_path
    from pglab.tracking.files import file_error

    if asked is None and of_run is None:
        return unique_run_path("runs", f"{name}-variance"), True
    folder = Path(asked) if asked is not None else of_run
    assert folder is not None
    if (folder / "tensorboard").exists() and not (folder / "report.json").exists():
        raise PglabError(
            f"{folder} has TensorBoard files that are no measurement's and would be replaced: give another folder, such as "
            f"--out {folder / 'variance'}."
        )
    new = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise file_error(folder, error) from error
    return folder, new


def _decomposed(subjects: list[Subject], options: Any, say: Any) -> dict[str, Any]:
    from pglab.lab.decomposition import decompose

    found = {}
    for s in subjects:
        say(f"the parts of the variance, {s.stage}")
        has_v = getattr(s.agent, "value_parameters", None) is not None
        name = f"{s.config.env.id}, {s.member}, {s.stage}"
        found[name] = decompose(s, options.decompose, ("none", "value") if has_v else ("none",))
    return found


def _write(
    measurement: Measurement, decompositions: dict[str, Any], folder: Path, name: str, command: str
) -> dict[str, Any]:
    from pglab.lab.decomposition_report import section
    from pglab.lab.variance_events import write_events
    from pglab.lab.variance_figures import write_all
    from pglab.lab.variance_report import markdown, plain
    from pglab.tracking.files import write_json, write_text
    from pglab.tracking.provenance import described, versions

    parts = {title: d.plain() for title, d in decompositions.items()}
    figures = write_all(measurement, folder, parts)
    data = {
        "command": command,
        "versions": versions(),
        **plain(measurement),
        "decompositions": parts,
    }
    page = markdown(measurement, f"What each estimator's gradient is worth: {name}", command, described())
    page += "".join(f"\n{section(title, d)}" for title, d in decompositions.items())
    page += "".join(f"\n![{figure}]({figure})\n" for figure in figures)
    write_json(folder / "report.json", data)
    write_text(folder / "report.md", page)
    write_events(measurement, folder, figures)
    return {"data": data, "figures": figures}


def _show(measurement: Measurement, decompositions: dict[str, Any], folder: Path, figures: list[str]) -> None:
    import textwrap

    from rich.console import Console

    from pglab.lab.decomposition_report import section
    from pglab.lab.measuring import DEFINITION
    from pglab.lab.tables import rich_table
    from pglab.lab.variance_report import brief_columns, references, rows_of, title

    console = Console(highlight=False)
    for m in measurement:
        rows = rows_of(m)
        console.print(title(m), style="italic", markup=False)
        console.print(rich_table(rows, brief_columns(m, rows), None, console.width))
        for line in [*references(m), *m.notes]:
            console.print(textwrap.fill(line, console.width - 1, initial_indent="- "), markup=False)
        console.print()
    for name, d in decompositions.items():
        console.print(section(name, d), markup=False)
    console.print(
        f"{textwrap.fill(DEFINITION, console.width - 1)}\nIntervals marked ? are not to be relied on: too few replicates for "
        f"tails this heavy.\n\n{measurement.seconds:.0f} s. Report: {folder / 'report.md'} (and report.json, "
        f"{', '.join(figures)})\nTensorBoard: pglab board {folder}",
        markup=False,
        soft_wrap=True,
    )
