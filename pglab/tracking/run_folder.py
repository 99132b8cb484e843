"""A run folder: everything that is kept of one run, in files that other tools can read.

config.yaml    the configuration that makes the run again
command.txt    the command line that started it
versions.json  python, platform and package versions
git.json       commit and state of the checkout; git.diff holds its uncommitted changes
log.csv        every number that was logged: step,member,tag,value
results.json   the summary, written at the end
checkpoints/   tensorboard/
snapshots/     networks kept along training, for measuring gradients at them
"""

from __future__ import annotations

import os
import shlex
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from pglab.errors import PglabError
from pglab.tracking.files import atomic_write, file_error, read_json, write_json, write_text, write_yaml
from pglab.tracking.provenance import git_state, versions

_FILES = (
    "config.yaml",
    "command.txt",
    "versions.json",
    "git.json",
    "git.diff",
    "log.csv",
    "results.json",
    "tuned.json",
    "agent.safetensors",
)
_FOLDERS = ("checkpoints", "tensorboard", "snapshots")


class RunFolder:
    """The paths of one run folder. `create` makes one, `open` checks that there is one."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)

    @classmethod
    def create(
        cls,
        path: str | os.PathLike[str],
        config: Mapping[str, Any],
        command: str | Sequence[str],
        overwrite: bool = False,
    ) -> RunFolder:
        """Make the folder, with its parents, and write the files that say where the run comes from.

        An empty folder is taken as it is. With `overwrite`, an earlier run's files are removed first; a folder that
        holds something else is never touched.

        Raises:
            PglabError: where the folder holds anything, or cannot be written.
        """
        folder = cls(path)
        try:
            folder.path.mkdir(parents=True, exist_ok=True)
            if any(folder.path.iterdir()):
                if not overwrite:
                    raise PglabError(f"The folder {folder.path} is not empty: choose another, or empty it first.")
                cls.open(path)._clear()
            for name in _FOLDERS:
                (folder.path / name).mkdir()
        except OSError as error:
            raise file_error(folder.path, error) from error
        record, diff = git_state()
        write_text(folder.path / "command.txt", (command if isinstance(command, str) else shlex.join(command)) + "\n")
        write_json(folder.path / "versions.json", versions())
        write_json(folder.path / "git.json", record)
        atomic_write(folder.path / "git.diff", lambda file: file.write(diff))
        write_yaml(folder.config_path, config)  # last: a folder with a config.yaml is a whole run folder
        return folder

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> RunFolder:
        """The run folder at `path`. Raises PglabError where there is none."""
        folder = cls(path)
        if not folder.path.is_dir():
            raise PglabError(f"There is no run folder at {folder.path}.")
        if not folder.config_path.is_file():
            raise no_run(folder.path)
        return folder

    @classmethod
    def discard(cls, path: str | os.PathLike[str]) -> None:
        """Remove a run folder's own files, whole or begun. Raises PglabError where the system refuses."""
        try:
            cls(path)._clear()
        except OSError as error:
            raise file_error(path, error) from error

    @property
    def config_path(self) -> Path:
        return self.path / "config.yaml"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def snapshots(self) -> Path:
        return self.path / "snapshots"

    @property
    def tensorboard(self) -> Path:
        return self.path / "tensorboard"

    @property
    def log(self) -> Path:
        return self.path / "log.csv"

    @property
    def results_path(self) -> Path:
        return self.path / "results.json"

    def config(self) -> dict[str, Any]:
        """`config.yaml` as plain data. Raises PglabError where it cannot be read or is not a mapping."""
        try:
            value = yaml.safe_load(self.config_path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            reason = " ".join(str(error).split())
            raise PglabError(f"Cannot read {self.config_path}: {reason}.") from error
        if not isinstance(value, dict):
            raise PglabError(f"Cannot read {self.config_path}: it is not a mapping of names to values.")
        return value

    def write_results(self, results: Mapping[str, Any]) -> None:
        """Write `results.json` (arrays as lists, NaN as null). Raises PglabError where it cannot be written."""
        write_json(self.results_path, results)

    def results(self) -> dict[str, Any] | None:
        """`results.json`, or None where the run has not come to its end. Raises PglabError where it is damaged."""
        return read_json(self.results_path) if self.results_path.exists() else None

    def tuned(self) -> dict[str, Any]:
        """`chosen` and `grid` of a run whose settings were tuned first; empty for others."""
        path = self.path / "tuned.json"
        return read_json(path) if path.exists() else {}

    def _clear(self) -> None:
        self.config_path.unlink(missing_ok=True)  # first: half a removal must not look like a run folder
        for name in _FILES:
            (self.path / name).unlink(missing_ok=True)
        for half in self.path.glob(".*.tmp"):  # of a process that was killed while writing
            half.unlink(missing_ok=True)
        for name in _FOLDERS:
            if (self.path / name).exists():
                shutil.rmtree(self.path / name)


def no_run(path: Path) -> PglabError:
    """What is said of a folder that has no config.yaml: of a comparison's, which of its runs could be meant."""
    if (path / "comparison.yaml").is_file():
        runs = sorted(found.parent for found in path.glob("*/*/config.yaml"))
        such = f", such as {runs[0]}" if runs else ""
        return PglabError(f"{path} is a comparison's folder: give one of its runs{such}.")
    return PglabError(f"{path} is not a run folder: it has no config.yaml.")


def path_name(name: str, what: str = "name") -> str:
    """`name`, if it can be the name of one folder everywhere. Raises PglabError where it holds a slash or the like."""
    if not name or name.strip(". ") != name or any(c in '/\\:*?"<>|' or not c.isprintable() for c in name):
        raise PglabError(
            f'The {what} {name!r} cannot name a folder: no slashes, none of :*?"<>|, no dots or spaces at its ends.'
        )
    return name


def unique_run_path(root: str | os.PathLike[str], name: str) -> Path:
    """Reserve `root/name-YYYYmmdd-HHMMSS`, with -2, -3 ... where it exists, by making it as an empty folder.

    Two processes that ask in the same second get different folders. Raises PglabError where it cannot be made.
    """
    stem = f"{path_name(name, 'run name')}-{time.strftime('%Y%m%d-%H%M%S')}"
    count = 1
    while True:
        path = Path(root) / (stem if count == 1 else f"{stem}-{count}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.mkdir()
            return path
        except FileExistsError:
            if path.parent.is_dir():
                count += 1
                continue
            raise PglabError(f"Cannot make a run folder in {root}: it is not a folder.") from None
        except OSError as error:
            raise file_error(path, error) from error
