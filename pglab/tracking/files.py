"""Files that are either the old ones or the new ones, never half of one."""

from __future__ import annotations

import contextlib
import json
import math
import os
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import yaml

from pglab.errors import PglabError


def file_error(path: str | os.PathLike[str], error: OSError) -> PglabError:
    """`cannot write <path>: No space left on device`, as the one-sentence error that a user reads."""
    return PglabError(f"Cannot write {os.fspath(path)}: {error.strerror or error}.")


def atomic_write(path: str | os.PathLike[str], writer: Callable[[BinaryIO], object]) -> None:
    """Call `writer` with a binary file and put what it wrote at `path`, whole and synced, or leave `path` as it was.

    The bytes go to a temporary name in the same folder, are synced and renamed over `path`, so a reader (or a machine
    that loses power) sees the old file or the new one. On failure the temporary file is removed.

    Raises:
        PglabError: where the operating system refuses (disk full, no permission); names the path and the reason. Other
            errors of `writer` pass through unchanged.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.tmp")
    try:
        # "x" and the process's umask, so that the file gets ordinary permissions (tempfile's are the owner's only).
        with open(temporary, "xb") as file:
            writer(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_folder(path.parent)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        reason = _refusal(error)
        if reason is not None:
            raise file_error(path, reason) from error
        raise


def _refusal(error: BaseException | None) -> OSError | None:
    """The OSError behind `error`: torch.save raises a RuntimeError about a position, with the OSError as context."""
    while error is not None and isinstance(error, Exception):
        if isinstance(error, OSError):
            return error
        error = error.__cause__ or error.__context__
    return None


def sync_folder(folder: Path) -> None:
    """Make a rename in `folder` durable, where the system can (Windows cannot, and needs no such step)."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


class _PlainDumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        """A value used twice is written twice: `&id001` anchors are hard to edit by hand."""
        return True


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write UTF-8 text atomically. Raises PglabError as `atomic_write` does."""
    atomic_write(path, lambda file: file.write(text.encode()))


def write_yaml(path: str | os.PathLike[str], value: Mapping[str, Any]) -> None:
    """Write plain data as safe YAML, keys in their order. Raises PglabError for values that have no plain form."""
    try:
        text = yaml.dump(dict(value), Dumper=_PlainDumper, sort_keys=False, allow_unicode=True, width=120)
    except yaml.YAMLError as error:
        raise PglabError(f"Cannot write {os.fspath(path)}: {error.args[0]}: {error.args[-1]!r}.") from error
    write_text(path, text)


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write strict JSON. Arrays become lists; NaN becomes null, infinities the strings "inf" and "-inf"."""
    write_text(path, json.dumps(_plain(value), indent=2, allow_nan=False) + "\n")


def read_json(path: str | os.PathLike[str]) -> Any:
    """Read what `write_json` wrote: "inf" and "-inf" are numbers again, what was NaN is None.

    Raises:
        PglabError: where the file cannot be read or is not JSON.
    """
    try:
        return _numbers(json.loads(Path(path).read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else f"it is not JSON ({error})"
        raise PglabError(f"Cannot read {os.fspath(path)}: {reason}.") from error


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, np.ndarray | np.generic):
        return _plain(value.tolist())
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    return value


def _numbers(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _numbers(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_numbers(item) for item in value]
    return float(value) if value in ("inf", "-inf") else value
