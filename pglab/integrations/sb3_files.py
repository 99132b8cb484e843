"""Files of stable-baselines3 read as data: no pickle in them is ever opened, and nothing is written to disk.

A model's zip file has pickled Python objects in its `data` entry, and unpickling runs whatever code a file asks for. What is
wanted of a model is there without it: `data` holds numbers and booleans as plain JSON, and a description of every pickled
object in plain text beside it; the weights are tensors, which `torch.load` reads with `weights_only`.
"""

from __future__ import annotations

import io
import json
import re
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pglab.errors import PglabError

LARGEST = 2**30
"""Bytes that tensors may take."""
LARGEST_TEXT = 2**26
"""Bytes that `data`, or a file of statistics, may take."""
PICKLED = ":serialized:"
"""The key under which stable-baselines3 keeps a pickle within `data`."""
STATISTICS = ("mean", "var", "count", "clip_obs", "epsilon", "return_var", "return_count", "clip_reward")
"""What a file of VecNormalize's statistics may hold: those of the observations, `mean` and `var` `[O]`, those of the
discounted return, `return_var` (both optional), and numbers."""


@dataclass(frozen=True)
class Stored:
    """A model as data, whether it comes from a file or from memory."""

    source: str
    """What messages call it."""
    fields: dict[str, Any]
    """Attributes of the algorithm that are plain JSON."""
    described: dict[str, dict[str, Any]]
    """For every other attribute what its text says: `:type:` and the attributes of the object itself."""
    weights: dict[str, Tensor]
    """The policy's state_dict, float32 on the CPU."""
    variables: dict[str, Tensor]
    """Tensors of the algorithm (log_ent_coef)."""
    transitions: int = 0
    """How many its replay buffer holds."""


def read_stored(path: Path) -> Stored:
    """The model in a zip file written by stable-baselines3's `save`.

    Raises:
        PglabError: there is no such file, it is no zip file or lacks an entry, an entry is larger than 1 GiB, or the
            weights are anything but finite tensors.
    """
    found = entries(path, {"data": LARGEST_TEXT, "policy.pth": LARGEST, "pytorch_variables.pth": LARGEST_TEXT})
    for name in ("data", "policy.pth"):
        if name not in found:
            raise PglabError(f"{path} has no entry {name!r}, so it is not a model saved by stable-baselines3.")
    try:
        data = json.loads(found["data"])
    except (ValueError, RecursionError):
        raise PglabError(f"{path}: its entry 'data' is not JSON, so it is not a model of stable-baselines3.") from None
    if not isinstance(data, dict):
        raise PglabError(f"{path}: its entry 'data' holds {type(data).__name__}, where a mapping is wanted.")
    pickled = {name for name, value in data.items() if isinstance(value, dict) and PICKLED in value}
    variables = found.get("pytorch_variables.pth")
    return Stored(
        str(path),
        {name: value for name, value in data.items() if name not in pickled},
        {name: {key: x for key, x in data[name].items() if key != PICKLED} for name in pickled},
        tensors(found["policy.pth"], f"{path}: policy.pth"),
        {} if variables is None else tensors(variables, f"{path}: pytorch_variables.pth"),
    )


def entries(path: Path, largest: Mapping[str, int]) -> dict[str, bytes]:
    """Those entries of a zip file that `largest` names with the bytes each may take; missing ones are left out.

    Raises:
        PglabError: the file cannot be read, is no zip file, or an entry is larger, or compressed in an unusual way.
    """
    found = {}
    try:
        with zipfile.ZipFile(path) as file:
            for name, limit in largest.items():
                if name not in file.namelist():
                    continue
                info = file.getinfo(name)
                # Others are unpacked without a limit, whatever is asked for.
                if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                    raise PglabError(f"{path}: its entry {name!r} is compressed by a method other than deflate.")
                with file.open(info) as entry:
                    content = b"" if info.file_size > limit else entry.read(limit + 1)
                if info.file_size > limit or len(content) > limit:
                    raise PglabError(
                        f"{path}: its entry {name!r} takes {info.file_size:,} bytes unpacked; at most {limit:,} are read."
                    )
                found[name] = content
    except FileNotFoundError:
        raise PglabError(f"There is no file {path}.") from None
    except zipfile.BadZipFile:
        raise PglabError(f"{path} is not a zip file, or a damaged one.") from None
    except (OSError, EOFError, RuntimeError, NotImplementedError, ValueError, zlib.error) as error:
        raise PglabError(f"{path} cannot be read: {error}.") from None
    return found


def tensors(content: bytes, where: str) -> dict[str, Tensor]:
    """The tensors of a file that `torch.save` wrote, float32 on the CPU; `where` is what messages call it.

    Raises:
        PglabError: it holds anything but tensors by name, all finite, of at most 1 GiB.
    """
    try:
        # torch writes its own zip file, uncompressed; a compressed one could unpack to any size.
        with zipfile.ZipFile(io.BytesIO(content)) as inner:
            usual = all(info.compress_type == zipfile.ZIP_STORED for info in inner.infolist())
        if not usual:
            raise ValueError("compressed entries")
        loaded = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a damaged or malicious file makes of the reader
        asked = re.search(r"GLOBAL ([\w.]+)", str(error))
        what = f"asks for {asked[1]}" if asked else "is not a file of tensors as torch.save writes it"
        raise PglabError(
            f"{where} {what}, and was not loaded: only tensors are read, so that no file can run code."
        ) from None
    return checked({} if loaded is None else loaded, where)


def checked(found: Any, where: str) -> dict[str, Tensor]:
    """`found` as tensors by name, float32 copies on the CPU. Raises PglabError where it is anything else, or not finite."""
    if not isinstance(found, Mapping):
        raise PglabError(f"{where} holds {type(found).__name__}, where tensors by name are wanted.")
    total = 0
    for name, tensor in found.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise PglabError(f"{where} holds {type(tensor).__name__} {name!r}, where tensors by name are wanted.")
        if tensor.layout != torch.strided or not tensor.is_floating_point():
            raise PglabError(
                f"{where}: {name!r} is a tensor of {tensor.dtype}, {tensor.layout}; dense numbers are wanted."
            )
        total += 4 * tensor.numel()  # strides can make one number look like any size
        if total > LARGEST:
            raise PglabError(f"{where} holds tensors of more than {LARGEST:,} bytes, which is the most that is read.")
    copies = {name: tensor.detach().cpu().float().clone() for name, tensor in found.items()}
    for name, tensor in copies.items():
        if not bool(torch.isfinite(tensor).all()):
            raise PglabError(
                f"{where}: {name!r} holds numbers that are not finite, so nothing can be computed with it."
            )
    return copies


def read_statistics(path: Path) -> dict[str, np.ndarray]:
    """VecNormalize's statistics from a `.npz` or `.safetensors` file with names in `STATISTICS`, float64 each.

    Raises:
        PglabError: the file is a pickle (the message says how to export it), or not one of these, or cannot be read.
    """
    if not path.is_file():
        raise PglabError(f"There is no file {path}.")
    if path.suffix not in (".npz", ".safetensors"):
        to = str(path.with_suffix(".npz"))
        raise PglabError(
            f"{path}: VecNormalize saves a pickle, which can run code and is never opened here: give normalize={to!r}, "
            "written in a Python process in which you trust the file, by\n"
            "    import pickle, numpy\n"
            f"    v = pickle.load(open({str(path)!r}, 'rb')); o = getattr(v, 'obs_rms', None); r = v.ret_rms\n"
            f"    numpy.savez({to!r}, **(dict(mean=o.mean, var=o.var, count=o.count) if v.norm_obs else {{}}), "
            "clip_obs=v.clip_obs, epsilon=v.epsilon, "
            "**(dict(return_var=r.var, return_count=r.count, clip_reward=v.clip_reward) if v.norm_reward else {}))"
        )
    try:
        if path.suffix == ".npz":
            content = entries(path, {f"{name}.npy": LARGEST_TEXT for name in STATISTICS})
            arrays = {k[:-4]: np.load(io.BytesIO(v), allow_pickle=False) for k, v in content.items()}
        else:
            from safetensors.numpy import load_file

            arrays = {name: x for name, x in load_file(path).items() if name in STATISTICS}
        found = {name: np.asarray(x, dtype=np.float64) for name, x in arrays.items()}
    except PglabError:
        raise
    except Exception as error:  # whatever a damaged file makes of the readers
        raise PglabError(f"{path} is not a file of arrays: {error}.") from None
    return found
