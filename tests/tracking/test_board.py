"""`pglab board`: where it listens, what it prints, what it shows, how it ends."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from board_server import ask

from pglab.__main__ import main
from pglab.cli.board import logdir, page
from pglab.errors import PglabError
from pglab.tracking.run_folder import RunFolder
from pglab.tracking.tracker import MemberLabel, Tracker


def run(path: Path) -> Path:
    with Tracker(RunFolder.create(path, {}, "pglab"), [MemberLabel(0), MemberLabel(1)]) as tracker:
        tracker.layout()
        tracker.log(1, {"charts/episodic_return": np.array([1.0, 2.0])})
    return path


@contextlib.contextmanager
def board(*arguments: str | Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The command in a process of its own, and the address that it prints."""
    command = [sys.executable, "-m", "pglab", "board", *map(str, arguments)]
    # A job in the background ignores Ctrl-C, and would hand that down.
    listens = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # noqa: E731
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=listens)
    assert process.stdout is not None
    try:
        yield process, process.stdout.readline()
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def wait_for(there: Callable[[], Any]) -> None:
    """Until what is asked for is there: the command serves before it has read everything."""
    deadline = time.monotonic() + 60
    while not there():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def listening(process: int) -> set[str]:
    """The addresses that a process and its children listen on, in /proc's hexadecimal."""
    sockets = set()
    children = [process]
    for child in children:
        children += [
            int(p) for t in Path(f"/proc/{child}/task").iterdir() for p in (t / "children").read_text().split()
        ]
        for descriptor in Path(f"/proc/{child}/fd").iterdir():
            with contextlib.suppress(OSError):
                sockets.add(os.readlink(descriptor))
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{process}/net/{table}").read_text().splitlines()[1:]:
            columns = line.split()
            if columns[3] == "0A" and f"socket:[{columns[9]}]" in sockets:
                found.add(columns[1].partition(":")[0])
    return found


def test_it_serves_on_localhost_alone_says_where_and_ends_with_ctrl_c(tmp_path: Path) -> None:
    folder = run(tmp_path / "run")
    with board(folder) as (process, line):
        address = line.removeprefix("TensorBoard: ").strip()
        url, _, fragment = address.partition("#")
        assert url.startswith("http://localhost:")
        assert fragment.startswith("custom_scalars")
        assert "regexInput=aggregate" in fragment
        wait_for(lambda: len(ask(url, "data/runs")) == 3)
        wait_for(lambda: ask(url, "data/plugin/custom_scalars/layout").get("category"))
        if Path("/proc/self/net/tcp").exists():
            found = listening(process.pid)
            assert found
            assert found <= {"0100007F", "00000000000000000000000001000000"}  # 127.0.0.1 and ::1
        began = time.monotonic()
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=20)
        assert process.returncode == 0
        assert time.monotonic() - began < 10
        assert err == "Ended.\n"
        assert "Traceback" not in out


def test_several_folders_have_a_name_each_and_a_taken_port_is_a_sentence(tmp_path: Path) -> None:
    first, second = run(tmp_path / "a" / "run"), run(tmp_path / "b" / "run")
    with socket.socket() as taken:
        taken.bind(("localhost", 0))
        port = taken.getsockname()[1]
    with board(first, second, "--port", str(port)) as (_, line):
        assert f"http://localhost:{port}/#custom_scalars" in line
        url = f"http://localhost:{port}/"
        wait_for(lambda: len(ask(url, "data/runs")) == 6)
        assert {r.partition("/")[0] for r in ask(url, "data/runs")} == {"run", "run-2"}
        with board(first, "--port", str(port)) as (other, line):
            _, err = other.communicate(timeout=30)
            assert other.returncode == 2
            assert line == ""
            assert err.startswith("pglab: error: ")
            assert str(port) in err
            assert len(err.splitlines()) == 1


def test_a_folder_without_events_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    for folder, said in (
        (tmp_path / "empty", "holds no TensorBoard event files"),
        (tmp_path / "no", "There is no folder"),
    ):
        assert main(["board", str(folder)]) == 2
        err = capsys.readouterr().err
        assert said in err
        assert len(err.splitlines()) == 1
    assert main(["board", str(tmp_path / "empty"), "--port", "70000"]) == 2
    assert "--port must lie between" in capsys.readouterr().err


def test_names_of_several_folders_hold_no_colon_and_paths_no_comma(tmp_path: Path) -> None:
    odd = tmp_path / "a:b"
    assert logdir([odd]) == ["--logdir", str(odd)]
    assert logdir([odd, tmp_path / "c", odd]) == ["--logdir_spec", f"a_b:{odd},c:{tmp_path / 'c'}"]
    with pytest.raises(PglabError, match="comma"):
        logdir([tmp_path / "a,b", odd])


def test_a_measurement_s_runs_are_not_filtered_away(tmp_path: Path) -> None:
    pair = tmp_path / "tensorboard" / "score_function"
    pair.mkdir(parents=True)
    (pair / "events.out.tfevents.1").write_bytes(b"")
    assert "regexInput" not in page([tmp_path])
    assert "variance" in page([run(tmp_path / "run")])
