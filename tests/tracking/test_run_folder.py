"""Run folders: what is in them, and what is refused."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
import yaml

from pglab.errors import PglabError
from pglab.tracking import provenance
from pglab.tracking.run_folder import RunFolder, unique_run_path


def git(folder: Path, *arguments: str) -> None:
    identity = ["-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True)


def test_a_folder_says_where_its_run_comes_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkout = tmp_path / "checkout"
    checkout.mkdir()
    monkeypatch.chdir(checkout)
    git(checkout, "init", "-q")
    (checkout / "a.txt").write_text("one\n")
    git(checkout, "add", "a.txt")
    assert provenance.git_state()[0] == {"commit": None, "dirty": True, "diff_truncated": False}
    git(checkout, "commit", "-q", "-m", "first")
    record, diff = provenance.git_state()
    assert (record["dirty"], diff) == (False, b"")
    (checkout / "a.txt").write_text("two\n")

    config = {"estimator": {"name": "reinforce"}, "seeds": [0, 1], "rate": 1e-3}
    folder = RunFolder.create(tmp_path / "runs" / "a", config, ["pglab", "train", "my config.yaml"])
    assert RunFolder.open(folder.path).config() == config
    assert list(yaml.safe_load(folder.config_path.read_text())) == list(config)
    assert (folder.path / "command.txt").read_text() == "pglab train 'my config.yaml'\n"
    assert {"python", "platform", "torch", "numpy"} <= set(json.loads((folder.path / "versions.json").read_text()))
    recorded = json.loads((folder.path / "git.json").read_text())
    assert recorded == {"commit": record["commit"], "dirty": True, "diff_truncated": False}
    assert "+two" in (folder.path / "git.diff").read_text()
    assert folder.checkpoints.is_dir()
    assert folder.tensorboard.is_dir()
    assert folder.results() is None
    folder.write_results({"iqm": 1.5})
    assert folder.results() == {"iqm": 1.5}


def test_the_diff_is_capped(tmp_path: Path) -> None:
    git(tmp_path, "init", "-q")
    (tmp_path / "a.txt").write_text("")
    git(tmp_path, "add", "a.txt")
    git(tmp_path, "commit", "-q", "-m", "first")
    (tmp_path / "a.txt").write_text("0123456789\n" * 200_000)
    record, diff = provenance.git_state(tmp_path)
    assert record["diff_truncated"]
    assert len(diff) == provenance.DIFF_LIMIT


def test_no_checkout_and_no_git_are_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nothing = {"commit": None, "dirty": None, "diff_truncated": False}
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert provenance.git_state(tmp_path) == (nothing, b"")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert provenance.git_state(Path(__file__).parent) == (nothing, b"")


def test_a_folder_that_holds_anything_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("precious")
    for overwrite in (False, True):
        with pytest.raises(PglabError, match=r"not empty|not a run folder"):
            RunFolder.create(tmp_path, {}, "pglab", overwrite=overwrite)
    assert os.listdir(tmp_path) == ["mine.txt"]


def test_overwrite_replaces_an_earlier_run(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "run", {"a": 1}, "pglab")
    folder.log.write_text("old")
    (folder.checkpoints / "step_1").write_text("old")
    with pytest.raises(PglabError, match="not empty"):
        RunFolder.create(folder.path, {"a": 2}, "pglab")
    again = RunFolder.create(folder.path, {"a": 2}, "pglab", overwrite=True)
    assert again.config() == {"a": 2}
    assert not again.log.exists()
    assert os.listdir(again.checkpoints) == []


def test_open_says_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(PglabError, match="There is no run folder at"):
        RunFolder.open(tmp_path / "nowhere")
    with pytest.raises(PglabError, match=r"not a run folder: it has no config\.yaml"):
        RunFolder.open(tmp_path)
    (tmp_path / "config.yaml").write_text("a: [")
    with pytest.raises(PglabError, match=r"Cannot read .*config\.yaml") as caught:
        RunFolder.open(tmp_path).config()
    assert "\n" not in str(caught.value)
    (tmp_path / "config.yaml").write_text("!!python/object/apply:os.system ['true']")
    with pytest.raises(PglabError, match="could not determine a constructor"):
        RunFolder.open(tmp_path).config()


def test_names_are_unique_and_safe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.strftime", lambda form: "20250102-030405")
    names = [unique_run_path(tmp_path / "runs", "cartpole").name for _ in range(3)]
    assert names == ["cartpole-20250102-030405", "cartpole-20250102-030405-2", "cartpole-20250102-030405-3"]
    RunFolder.create(tmp_path / "runs" / names[0], {}, "pglab")
    for bad in ("", "..", "a/b", "a\nb", " a"):
        with pytest.raises(PglabError, match="cannot name a folder"):
            unique_run_path(tmp_path, bad)
    (tmp_path / "file").write_text("")
    with pytest.raises(PglabError, match="not a folder"):
        unique_run_path(tmp_path / "file", "a")


def test_a_comparisons_folder_says_which_runs_it_has(tmp_path: Path) -> None:
    (tmp_path / "comparison.yaml").write_text("name: x\n")
    run = tmp_path / "group" / "variant"
    run.mkdir(parents=True)
    (run / "config.yaml").write_text("{}\n")
    with pytest.raises(PglabError, match=r"comparison's folder: give one of its runs, such as .*group/variant"):
        RunFolder.open(tmp_path)
