"""What a run's event files begin with: the layout, the resolved config, command and versions, and the HParams sessions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pglab.population import Population, PopulationMember, swept_fields
from pglab.schedules import Schedule
from pglab.tracking.hparams import Field, Value, fields_of
from pglab.tracking.layout import default_layout
from pglab.tracking.markdown import fenced
from pglab.tracking.run_folder import RunFolder
from pglab.tracking.tracker import Tracker

if TYPE_CHECKING:
    from pglab.config import Config


@dataclass(frozen=True)
class Part:
    """What a run is of a comparison."""

    group: str
    variant: str
    fields: tuple[Field, ...]
    """The HParams page's columns over all variants."""


def begin(tracker: Tracker, config: Config, population: Population, part: Part | None = None) -> None:
    """Write it. To be called once, before the first log line."""
    tracker.layout(default_layout(config.probe.every is not None, bool(config.measurement.at)))
    for tag, (text, language) in texts(tracker.folder).items():
        tracker.text(tag, fenced(text, language))
    members = population.members
    trials = [trial(config, member, part.group if part else "", part.variant if part else "") for member in members]
    # The page cuts names off, so what tells a row from the others stands first. A comparison's folder is named by the
    # second: two comparisons of one name are not averaged.
    names = tracker.folder.path.absolute().parts[-3 if part else -1 :]
    tracker.begin(trials, ", ".join(reversed(names)), part.fields if part else ())


def texts(folder: RunFolder) -> dict[str, tuple[str, str]]:
    """Tag -> the text of a run folder's file and its language; of files that are there."""
    files = {"config": ("config.yaml", "yaml"), "command": ("command.txt", ""), "versions": ("versions.json", "json")}
    paths = {tag: (folder.path / name, language) for tag, (name, language) in files.items()}
    return {tag: (path.read_text("utf-8"), language) for tag, (path, language) in paths.items() if path.is_file()}


def columns(configs: Mapping[tuple[str, str], Config], tuned: Sequence[str] = ()) -> tuple[Field, ...]:
    """The HParams page's columns for variants, (group, name) -> config; each will have a value of its own of `tuned` fields."""
    trials = []
    for (group, variant), config in configs.items():
        schedules = {path: values[0] for path, values in swept_fields(config).items()}
        trials.append(trial(config, PopulationMember(0, schedules, tuple(tuned)), group, variant))
    return tuple(fields_of(trials, tuned))


def trial(config: Config, member: PopulationMember, group: str = "", variant: str = "") -> dict[str, Value]:
    """Column -> value. The same for all seeds: the page shows one row for them, and a session's own name says its seed."""
    found: dict[str, Value] = {"group": group, "variant": variant} if variant else {}
    agent: Any = config.agent
    found |= {
        "environment": config.env.id,
        "agent": agent.name,
        "estimator": getattr(agent, "estimator", None) or config.estimator.name,
        "baseline": config.baseline.name,
        "learning_rate": _value(member.schedules["learning_rate"]),
    }
    found |= {path: _value(member.schedules[path]) for path in member.swept}
    seeds = config.seed_list
    steady = seeds == list(range(seeds[0], seeds[0] + len(seeds))) and len(seeds) > 2
    found["seeds"] = f"{seeds[0]} to {seeds[-1]}" if steady else ", ".join(map(str, seeds))
    return found


def _value(schedule: Schedule) -> Value:
    if schedule.kind == "constant" or schedule.end is None:
        return schedule.start
    return f"{schedule.kind} {schedule.start:g} to {schedule.end:g}"
