"""Checkpoints: the tree of all training state, written whole or not at all; replay beside it in append-only segments.

A checkpoint file holds tensors, numbers, strings, lists and mappings only, and is read with `weights_only`: loading one
never runs code.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pglab.errors import PglabError
from pglab.replay import Replay
from pglab.tracking.files import atomic_write

SEGMENT = re.compile(r"replay-(\d{12})-(\d{12})\.safetensors$")
FORMAT = 1


def save(folder: Path, update: int, tree: dict[str, Any], replay: Replay | None, keep: int) -> Path:
    """Write the checkpoint of `update` into `folder` and drop all but the newest `keep`.

    New replay rows go to a segment of their own first; the checkpoint names the segments it needs. Whatever fails,
    earlier checkpoints stay readable. Raises PglabError where the disk refuses.
    """
    segments: list[str] = []
    if replay is not None:
        segments = _save_segments(folder, replay)
    path = folder / f"{update:012d}.pt"
    whole = {"format": FORMAT, "segments": segments, **tree}
    atomic_write(path, lambda file: torch.save(plain(whole), file))
    old = checkpoints(folder)[:-keep]
    for stale in old:
        stale.unlink(missing_ok=True)
    if replay is not None:
        _drop_segments(folder, replay)
    return path


def plain(tree: Any) -> Any:
    """A tree of what `weights_only` reads, with tensors on the CPU that own no more memory than they show."""
    if isinstance(tree, Tensor):
        return tree.detach().cpu().clone()
    if isinstance(tree, dict):
        return {key: plain(value) for key, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        return [plain(value) for value in tree]
    return tree


def checkpoints(folder: Path) -> list[Path]:
    """Checkpoint files, oldest first."""
    return sorted(p for p in folder.glob("*.pt") if p.stem.isdigit())


def load(path: Path, device: torch.device, replay: Replay | None) -> dict[str, Any]:
    """The tree of a checkpoint; rows of its replay segments are put into `replay`. PglabError if it cannot be read."""
    tree = read_tree(path, device, "Checkpoint", FORMAT)
    if replay is not None:
        from safetensors.torch import load_file

        for name in tree["segments"]:
            match = SEGMENT.match(name)
            if match is None or not (path.parent / name).is_file():
                raise PglabError(f"Checkpoint {path} needs the replay segment {name!r}, which is missing.")
            replay.write(load_file(path.parent / name)["rows"].to(device), int(match[1]))
    return tree


def read_tree(path: Path, device: torch.device, what: str, version: int) -> dict[str, Any]:
    """A file's tree, read with `weights_only`. PglabError, calling the file `what`, if it cannot be read or has another format
    than `version`."""
    try:
        tree = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # torch raises whatever the damage leads to
        raise PglabError(f"{what} {path} cannot be read: {type(error).__name__}.") from error
    if not isinstance(tree, dict) or tree.get("format") != version:
        raise PglabError(f"{what} {path} is not one that this version of pglab reads (format {version}).")
    return tree


def drop_newer(path: Path, replay: Replay | None) -> None:
    """Remove checkpoints newer than the one that is gone on from, and replay segments of the future they had."""
    for later in checkpoints(path.parent):
        if later.name > path.name:
            later.unlink(missing_ok=True)
    if replay is not None:
        for start, _, segment in _segments(path.parent):
            if start >= replay.count:
                segment.unlink(missing_ok=True)


def _segments(folder: Path) -> list[tuple[int, int, Path]]:
    found = []
    for path in folder.glob("replay-*.safetensors"):
        match = SEGMENT.match(path.name)
        if match:
            found.append((int(match[1]), int(match[2]), path))
    return sorted(found)


def _save_segments(folder: Path, replay: Replay) -> list[str]:
    """Write rows that no segment holds yet; returns the names that hold all rows still in the ring, oldest first."""
    from safetensors.torch import save as to_bytes

    oldest = replay.count - replay.size
    chain: list[tuple[int, int, Path]] = []
    reached = None
    for start, stop, path in _segments(folder):
        if stop <= replay.count and (reached is None or start == reached):
            chain.append((start, stop, path))
            reached = stop
    at = oldest if reached is None or reached < oldest else reached
    if at < replay.count:
        path = folder / f"replay-{at:012d}-{replay.count:012d}.safetensors"
        rows = replay.rows(at, replay.count).cpu().contiguous()
        atomic_write(path, lambda file: file.write(to_bytes({"rows": rows})))
        chain.append((at, replay.count, path))
    return [path.name for start, stop, path in chain if stop > oldest]


def _drop_segments(folder: Path, replay: Replay) -> None:
    """Delete segments that no kept checkpoint names."""
    needed: set[str] = set()
    for path in checkpoints(folder):
        try:
            needed |= set(torch.load(path, map_location="cpu", weights_only=True).get("segments", []))
        except Exception:  # an unreadable checkpoint needs nothing that could still be found out
            return
    for _, _, path in _segments(folder):
        if path.name not in needed:
            path.unlink(missing_ok=True)
