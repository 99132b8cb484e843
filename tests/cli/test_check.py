"""`pglab check` on the command line: what it prints, writes and returns."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pglab.__main__ import main

ROOT = Path(__file__).resolve().parents[2]
PLUGIN = '''
from dataclasses import dataclass

import pglab


@pglab.register_baseline("half_of_itself")
class HalfOfItself(pglab.Baseline):
    """Half of the value that it is subtracted from."""

    def predict(self, state, batch):
        return 0.5 * batch.value


@pglab.register_baseline("seven")
class Seven(pglab.Baseline):
    """Seven."""

    def predict(self, state, batch):
        return batch.value * 0 + 7


@dataclass(frozen=True)
class Doubtful(pglab.Bernoulli):
    """Noise that makes the other action."""

    def noise_given(self, action, fresh):
        return super().noise_given(1 - action, fresh)


@dataclass(frozen=True)
class Fine(pglab.Bernoulli):
    """A Bernoulli variable."""
'''


def pglab(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(ROOT), str(ROOT / "envs"), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, "-m", "pglab", "check", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=900,
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "some.py").write_text(PLUGIN)
    return tmp_path


def test_a_plug_ins_methods_in_two_processes(folder: Path):
    """Four of them, two faulty: a summary, the verdicts of those that failed, and status 1."""
    done = pglab(folder, "--plugin", "some.py", "--jobs", "2", "--json", "out/found.json")
    assert (done.returncode, done.stderr) == (1, "")
    *_, last, after = done.stdout.splitlines()
    assert last == "baseline half_of_itself: BIASED"
    assert after.startswith("distribution doubtful: WRONG: noise_given makes the action")
    assert "[4/4] " in done.stdout
    found = {r["name"]: r for r in json.loads((folder / "out" / "found.json").read_text())}
    assert list(found) == ["half_of_itself", "seven", "doubtful", "fine"]
    assert [r["failed"] for r in found.values()] == [True, False, True, False]
    seven = found["seven"]
    assert (seven["part"], seven["verdict"]) == ("baseline", "unbiased: consistent")
    assert {r["family"] for r in seven["rows"]} >= {"enumerated episodes", "Categorical", "Bernoulli", "Gaussian"}
    assert seven["z"] == max(r["z"] for r in seven["rows"] if r["z"] is not None)
    assert {"problem", "property", "verdict", "error", "allowed", "note"} == set(found["fine"]["rows"][0])
    # One of them, in this process, gives the same numbers.
    alone = pglab(folder, "seven", "--plugin", "some.py", "--json", "alone.json", "--quiet")
    assert (alone.returncode, alone.stdout, alone.stderr) == (0, "", "")
    (again,) = json.loads((folder / "alone.json").read_text())
    assert again | {"seconds": 0} == seven | {"seconds": 0}


def test_one_method_in_full(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", "110")
    assert main(["check", "value"]) == 0
    shown = capsys.readouterr().out
    assert "baseline value, enumerated episodes" in shown
    assert "2 episodes side by side" in shown
    assert "Left out: Baseline 'value' needs a learned V(s)" in shown
    assert "above 6.57, twice on independent draws" in " ".join(shown.split())
    assert shown.splitlines()[-1] == "baseline value: unbiased: consistent"
    assert max(map(len, shown.splitlines())) <= 110


def test_a_distribution_by_the_name_of_its_class(capsys: pytest.CaptureFixture[str]):
    assert main(["check", "Bernoulli"]) == 0
    shown = capsys.readouterr().out
    assert "noise_given carries its" in shown
    assert shown.splitlines()[-1] == "distribution bernoulli: consistent"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["score_functoin"], "Did you mean 'score_function'?"),
        (["gumbel_softmax", "--temperture", "1"], "temperture"),
        (["gumbel_softmax", "--temperature", "-1"], "temperature must stay above 0"),
        (["--temperature", "1"], "--temperature is an option of one method"),
        (["bernoulli", "--logits", "1"], "takes no options"),
        (["value", "--jobs", "0"], "--jobs must be at least 1"),
        (["--plugin", "nowhere.py"], "'nowhere.py' does not exist"),
        (["--plugin", "json"], "registers no estimator, baseline or distribution"),
        (["a", "b"], "Unrecognized arguments"),
    ],
)
def test_mistakes_are_one_sentence_and_status_2(arguments, said, capsys: pytest.CaptureFixture[str]):
    assert main(["check", *arguments]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert said in shown.err
    assert shown.err.startswith("pglab: error: ")
    assert len(shown.err.splitlines()) == 1


def test_it_is_listed_among_the_verbs(capsys: pytest.CaptureFixture[str]):
    assert main([]) == 2
    assert "check" in capsys.readouterr().out
