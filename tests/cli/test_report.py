"""`pglab report` on the command line."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from pglab.__main__ import main

sys.path.insert(0, str(Path(__file__).parents[1] / "reporting"))
from made_runs import changed, make_run


def test_it_writes_three_files_and_says_what_came_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    make_run(Path("runs/low"), changed(learning_rate=0.1), 50.0)
    make_run(Path("runs/high"), changed(learning_rate=0.2), 100.0, finished=False)
    assert main(["report", "runs"]) == 0
    said = capsys.readouterr().out
    assert "2 runs, 2 variants, 8 agents" in said
    assert "low ends at IQM" in said
    assert "1 thing is missing" in said
    for kind in ("html", "md", "json"):
        assert (Path("runs/report") / f"report.{kind}").stat().st_size > 500
    assert main(["report", "runs/low", "runs/high", "--out", "both", "--name", "Two", "--quiet"]) == 0
    assert capsys.readouterr().out == ""
    assert json.loads(Path("both/report.json").read_text())["title"] == "Two"


def test_nothing_reaches_the_terminal_unescaped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = "a\x1b[31m[bold]b"
    make_run(tmp_path / name, changed(env={"id": "x\x1b[2J"}))
    assert main(["report", str(tmp_path), "--out", str(tmp_path / "out\x1b[0m")]) == 0
    assert main(["report", str(tmp_path / "gone\x1b[5m")]) == 2
    caught = capsys.readouterr()
    assert "\x1b" not in caught.out + caught.err
    assert "\\x1b[31m[bold]b" in caught.out


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["report"], "RUNS"),
        (["report", "nowhere"], "There is no folder nowhere"),
        (["report", "."], "There are no runs in ."),
    ],
)
def test_a_mistake_is_one_clear_sentence(
    arguments: list[str], part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("pglab: error: ")
    assert part in line
    assert not list(tmp_path.iterdir())
