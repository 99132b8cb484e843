"""The tracker: what a population logs goes to `log.csv` (every number) and to TensorBoard (for looking)."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from pglab.errors import PglabError
from pglab.lab.statistics import iqm, pooled_nsr
from pglab.tracking import hparams
from pglab.tracking.events import EventRuns, event_files
from pglab.tracking.files import file_error
from pglab.tracking.histograms import histogram
from pglab.tracking.layout import MIDDLES, RETURN_TAGS, Layout, default_layout
from pglab.tracking.log import EVERYONE, LogFile
from pglab.tracking.run_folder import RunFolder, path_name

if TYPE_CHECKING:
    from torch import Tensor

AGGREGATE = "aggregate"
OVER_MEMBERS = ("gradient/norm",)  # of these the aggregate run has a histogram over members as well


@dataclass(frozen=True)
class MemberLabel:
    """What tells one member of the population from the others: its seed, and the values it has of swept settings."""

    seed: int
    overrides: Mapping[str, float] = field(default_factory=dict)

    @property
    def setting(self) -> str:
        """`learning_rate=0.001`: shared by the members that differ in the seed only. Empty without a sweep."""
        return "_".join(f"{key}={_short(value)}" for key, value in self.overrides.items())

    @property
    def name(self) -> str:
        """`seed3` or `seed3_learning_rate=0.001`."""
        return f"seed{self.seed}_{self.setting}" if self.overrides else f"seed{self.seed}"


def _short(value: float) -> str:
    short = f"{value:g}"
    return short if float(short) == value else repr(float(value))


class Tracker:
    """Logs one population into one run folder.

    TensorBoard sees a run per member, `tensorboard/<variant>/<member name>` (without a variant, `tensorboard/<member>`),
    and a run `<variant>/aggregate` beside them with what holds for all members together: the mean; for the return tags
    the interquartile mean (Agarwal et al. 2021), for the probe's noise-to-signal ratio the median, each under the tag itself
    and under `<tag>/iqm` or `<tag>/median`, between quartiles `<tag>/low` and `<tag>/high`; for a measured noise-to-signal
    ratio that of all seeds together and its bootstrap interval; and a histogram of the members' gradient norms. Where a
    setting is swept, members of different settings are never averaged: each setting has its own `aggregate_<setting>`.

    A folder holds one tracker's data: `positions` and `cut_back` speak of all of it.
    """

    def __init__(
        self, folder: RunFolder, members: Sequence[MemberLabel], variant: str = "", tensorboard: bool = True
    ) -> None:
        """Open the logs for appending. Raises PglabError where two members have one name, or the disk refuses."""
        self.folder = folder
        self.names = [path_name(member.name, "member name") for member in members]
        if len(set(self.names)) != len(self.names):
            raise PglabError(f"Two members of {variant!r} have the same seed and settings: {', '.join(self.names)}.")
        settings = [member.setting for member in members]
        only_one = len(set(settings)) == 1
        self._groups = {
            AGGREGATE if only_one else f"{AGGREGATE}_{setting}": [i for i, s in enumerate(settings) if s == setting]
            for setting in dict.fromkeys(settings)
        }
        self._log = LogFile(folder.log)
        runs = folder.tensorboard / path_name(variant, "variant name") if variant else folder.tensorboard
        self._events = EventRuns(runs) if tensorboard else None

    def log(
        self,
        step: int,
        values: Mapping[str, float | np.ndarray | Tensor],
        wall_time: float | None = None,
        histograms: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Record values of one step: a number for the whole population, or an array [P], one per member.

        Args:
            step: environment steps of each member so far.
            values: tag -> value. NaN means "not known yet" and is left out; infinities are kept.
            wall_time: seconds since the epoch, for TensorBoard alone (default: now).
            histograms: tag -> values [P, K] of which TensorBoard's aggregate run gets a histogram; NaN is left out.

        Raises:
            ValueError: for an array that is not [P].
            PglabError: where the disk refuses.
        """
        rows = {tag: self._row(tag, value) for tag, value in values.items()}
        everyone = {tag: float(row) for tag, row in rows.items() if row.ndim == 0}
        each = {tag: row for tag, row in rows.items() if row.ndim == 1}

        entries = [(EVERYONE, tag, value) for tag, value in everyone.items()]
        entries += [
            (name, tag, value)
            for tag, row in each.items()
            for name, value in zip(self.names, row.tolist(), strict=True)
        ]
        self._log.append(step, [entry for entry in entries if not math.isnan(entry[2])])

        if self._events is None:
            return
        now = time.time() if wall_time is None else wall_time
        for i, name in enumerate(self.names):
            self._step(name, step, {tag: float(row[i]) for tag, row in each.items()}, now)
        summaries = {run: _summary(each, members) for run, members in self._groups.items()}
        summaries[AGGREGATE] = {**everyone, **summaries.get(AGGREGATE, {})}
        spread = {f"{tag}/members": each[tag] for tag in OVER_MEMBERS if tag in each and len(self.names) > 1}
        spread |= {tag: _array(value) for tag, value in (histograms or {}).items()}
        for run, summary in summaries.items():
            members = self._groups.get(run, [])
            self._step(run, step, summary, now, {tag: histogram(x[members]) for tag, x in spread.items()})

    def text(self, tag: str, markdown: str) -> None:
        """Put a text on TensorBoard's Text page, in the aggregate run."""
        if self._events is not None:
            self._events.text(AGGREGATE, tag, markdown)

    def layout(self, layout: Layout | None = None) -> None:
        """Write the custom-scalars layout that overlays variants."""
        if self._events is not None:
            self._events.layout(AGGREGATE, default_layout() if layout is None else layout)

    def begin(
        self, trials: Sequence[Mapping[str, hparams.Value]], name: str, fields: Sequence[hparams.Field] = ()
    ) -> None:
        """Tell TensorBoard's HParams page what each member is trained with.

        Args:
            trials: column -> value for each member; the same for members that differ in the seed only.
            name: tells this population from others that may be looked at together with it.
            fields: the page's columns, where more than these members share it (default: those of `trials`).
        """
        if self._events is None:
            return
        fields = fields or hparams.fields_of(trials)
        self._events.add(AGGREGATE, hparams.experiment(fields))
        groups = {i: run for run, members in self._groups.items() for i in members}
        for i, (run, trial) in enumerate(zip(self.names, trials, strict=True)):
            group = name + groups[i].removeprefix(AGGREGATE)
            self._events.add(run, hparams.session_start(trial, fields, group))

    def end(self) -> None:
        """Tell the HParams page that every member has come to its end."""
        if self._events is not None:
            for run in self.names:
                self._events.add(run, hparams.session_end())

    def flush(self) -> None:
        """Hand everything logged so far to the operating system, so that other programs see it."""
        self._log.flush()
        if self._events is not None:
            self._events.flush()

    def positions(self) -> dict[str, int]:
        """Where the files end now, on disk: path relative to the folder ("/" between) -> bytes. For a checkpoint."""
        self._log.flush(sync=True)
        if self._events is not None:
            self._events.flush(sync=True)
        return {_relative(self.folder, path): path.stat().st_size for path in _files(self.folder)}

    @staticmethod
    def cut_back(folder: RunFolder, positions: Mapping[str, int]) -> list[str]:
        """Make the logs what they were when `positions` was taken: cut files back, delete those that came later.

        To be called before a Tracker opens the folder. Whatever `positions` names, only the folder's logs are touched.

        Returns:
            The paths of which something is missing (a file gone, or shorter than it was); they are left as they are.

        Raises:
            PglabError: where a file cannot be cut or deleted.
        """
        missing = set(positions)
        for path in _files(folder):
            name = _relative(folder, path)
            try:
                if name not in positions:
                    path.unlink()
                    continue
                size = path.stat().st_size
                if size > positions[name]:
                    os.truncate(path, positions[name])
                if size >= positions[name]:
                    missing.discard(name)
            except OSError as error:
                raise file_error(path, error) from error
        return sorted(missing)

    def close(self) -> None:
        """Flush and close the files."""
        try:
            self._log.close()
        finally:
            if self._events is not None:
                self._events.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _row(self, tag: str, value: float | np.ndarray | Tensor) -> np.ndarray:
        row = _array(value)
        if row.shape not in ((), (len(self.names),)):
            raise ValueError(
                f"{tag} has shape {row.shape}: a number or an array of shape ({len(self.names)},) is wanted"
            )
        return row

    def _step(
        self,
        run: str,
        step: int,
        values: Mapping[str, float],
        now: float,
        histograms: Mapping[str, Any] | None = None,
    ) -> None:
        """One event with everything that is known of a step."""
        known = {tag: value for tag, value in values.items() if not math.isnan(value)}
        drawn = {tag: proto for tag, proto in (histograms or {}).items() if proto is not None}
        if (known or drawn) and self._events is not None:
            self._events.step(run, step, known, now, drawn)


def _array(value: Any) -> np.ndarray:
    if hasattr(value, "detach"):
        value = value.detach().cpu().double().numpy()
    return np.asarray(value, dtype=np.float64)


def _summary(each: Mapping[str, np.ndarray], members: list[int]) -> dict[str, float]:
    """What a group of members has in common: the middle and quartiles of what is drawn as a band, means of the rest."""
    found: dict[str, float] = {}
    for tag, row in each.items():
        known = row[members]
        known = known[~np.isnan(known)]
        if not known.size:
            continue
        with np.errstate(invalid="ignore"):  # inf - inf is NaN, and left out with the others
            if tag in MIDDLES:
                # Between two values one of which is infinite nothing can be interpolated: there, one of them is taken.
                returns = tag in RETURN_TAGS
                low, middle, high = np.quantile(known, [0.25, 0.5, 0.75], method="linear" if returns else "nearest")
                middle = float(iqm(known) if returns else middle)
                found |= {tag: middle, f"{tag}/{MIDDLES[tag]}": middle}
                found |= {f"{tag}/low": float(low), f"{tag}/high": float(high)}
            else:
                found[tag] = float(known.mean())
    if {"gradient/nsr", "gradient/trace_variance", "gradient/squared_norm"} <= each.keys():
        pooled = pooled_nsr({name: each[f"gradient/{name}"][members] for name in ("trace_variance", "squared_norm")})
        found |= {
            f"gradient/{tag}": pooled[key] for tag, key in (("nsr", "nsr"), ("nsr_low", "low"), ("nsr_high", "high"))
        }
    return found


def _files(folder: RunFolder) -> list[Path]:
    return [path for path in [folder.log, *event_files(folder.tensorboard)] if path.is_file()]


def _relative(folder: RunFolder, path: Path) -> str:
    return path.relative_to(folder.path).as_posix()
