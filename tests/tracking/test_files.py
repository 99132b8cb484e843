"""Atomic files under real refusals of the operating system."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pglab.errors import PglabError
from pglab.tracking.files import atomic_write, read_json, write_json, write_yaml

# A limit on file size makes write() fail with EFBIG, as a full disk makes it fail with ENOSPC.
LIMITED = """
import resource, signal, sys
from pathlib import Path
from pglab.errors import PglabError
from pglab.tracking.files import atomic_write
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
target = Path(sys.argv[1])
if sys.argv[2] == "torch":
    import torch
    writer = lambda file: torch.save({"weights": torch.zeros(100_000)}, file)
else:
    writer = lambda file: file.write(b"x" * 200_000)
try:
    atomic_write(target, writer)
except PglabError as error:
    print(error)
"""


@pytest.mark.parametrize("kind", ["bytes", "torch"])
def test_a_failed_write_leaves_the_old_file_and_names_the_reason(tmp_path: Path, kind: str) -> None:
    resource = pytest.importorskip("resource")
    assert resource is not None
    target = tmp_path / "state.pt"
    target.write_bytes(b"old")
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(target), kind], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == f"Cannot write {target}: File too large."
    assert target.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["state.pt"]


def test_an_error_of_the_writer_passes_through_and_leaves_nothing(tmp_path: Path) -> None:
    def writer(file: object) -> None:
        raise KeyError("mine")

    with pytest.raises(KeyError):
        atomic_write(tmp_path / "new", writer)
    assert os.listdir(tmp_path) == []


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(PglabError, match=r"Cannot write .*nowhere.*No such file or directory"):
        atomic_write(tmp_path / "nowhere" / "file", lambda file: file.write(b""))


def test_a_new_file_has_ordinary_permissions(tmp_path: Path) -> None:
    (tmp_path / "plain").write_bytes(b"")
    atomic_write(tmp_path / "atomic", lambda file: file.write(b"new"))
    assert (tmp_path / "atomic").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_json_is_strict_and_keeps_infinities(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    write_json(path, {"nsr": float("inf"), "low": -np.inf, "none": np.nan, "iqm": np.float32(0.5), "all": np.arange(3)})
    assert '"inf"' in path.read_text()
    assert "NaN" not in path.read_text()
    assert read_json(path) == {"nsr": np.inf, "low": -np.inf, "none": None, "iqm": 0.5, "all": [0, 1, 2]}
    path.write_text("{")
    with pytest.raises(PglabError, match="not JSON"):
        read_json(path)


def test_yaml_refuses_what_has_no_plain_form(tmp_path: Path) -> None:
    with pytest.raises(PglabError, match=r"Cannot write .*config.yaml: cannot represent an object"):
        write_yaml(tmp_path / "config.yaml", {"function": print})
    assert os.listdir(tmp_path) == []
