"""docs/extending.md: its files are written as they are printed, its commands run, and its claims looked for in the output."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "docs" / "extending.md").read_text()
FILES = {
    re.match(r'"""(\w+\.py): ', code).group(1): code
    for code in re.findall(r"^```python\n(.*?)^```$", TEXT, flags=re.S | re.M)
}
COMMANDS = [line for block in re.findall(r"^```console\n(.*?)^```$", TEXT, re.S | re.M) for line in block.splitlines()]
CLAIMS = re.findall(r"^The check ends with\n\n    (.+)$", TEXT, re.M)


def run(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    assert command.startswith("$ pglab ")
    path = os.pathsep.join([str(ROOT), str(ROOT / "envs"), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, "-m", "pglab", *shlex.split(command)[2:]],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=900,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("extending")
    for name, code in FILES.items():
        (made / name).write_text(code)
    return made


def test_the_page_has_what_is_run_here():
    assert set(FILES) == {"my_baseline.py", "my_estimator.py", "my_distribution.py"}
    assert [c.split()[2] for c in COMMANDS] == ["check", "train", "check", "train", "check"]
    assert len(CLAIMS) == 3


def test_a_new_baseline_takes_about_twenty_lines():
    assert sum(bool(line.strip()) for line in FILES["my_baseline.py"].splitlines()) <= 20


@pytest.mark.parametrize("command", COMMANDS)
def test_a_printed_command(command: str, folder: Path):
    done = run(command, folder)
    assert done.returncode == 0, done.stdout + done.stderr
    if " check " in command:
        name = command.split()[3]
        (claim,) = [c for c in CLAIMS if c.split()[1].rstrip(":") == name]
        assert done.stdout.splitlines()[-1] == claim


def test_the_batchs_mean_that_the_page_warns_of_is_caught(folder: Path):
    code = FILES["my_baseline.py"].replace("past_median", "batch_mean")
    code = re.sub(
        r"        return state\[.*",
        "        return batch.value.mean((0, 2), keepdim=True).expand_as(batch.value)",
        code,
    )
    (folder / "wrong.py").write_text(code.replace("adapts = True", "couples_rows = True"))
    done = run("$ pglab check batch_mean --plugin wrong.py", folder)
    assert done.returncode == 1, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == "baseline batch_mean: BIASED"


def test_the_pages_baseline_is_in_comparison_tensorboard_report_and_laboratory(folder: Path) -> None:
    """A user's own baseline goes everywhere a shipped one does, with nothing but --plugin."""
    (folder / "mine.yaml").write_text(
        "name: mine\ngroups:\n  baselines:\n    base: {env: {id: CartPole-v1, num_envs: 4}, seeds: [0, 1], total_steps: 2000,"
        " agent: {collect: episodes}, evaluation: {every: 1000, episodes: 2, final_episodes: 2}, log_every: 500}\n"
        "    variants:\n      none: {baseline: none}\n      my_median: {baseline: past_median}\n"
    )
    done = run("$ pglab compare mine.yaml --plugin my_baseline.py --jobs 1", folder)
    assert done.returncode == 0, done.stderr
    (made,) = (folder / "runs").glob("mine-*")
    assert "my_median" in done.stdout
    assert "my\\_median" in (made / "table.md").read_text()
    # TensorBoard: the layout is the comparison's, and the variant's runs hold its curves.
    accumulated = []
    for path in sorted(made.rglob("*tfevents*")):
        accumulated.append((path.relative_to(made).as_posix(), path.read_bytes()))
    assert any(name.startswith("tensorboard/comparison") for name, _ in accumulated)
    mine = [content for name, content in accumulated if "my_median" in name and "aggregate" in name]
    assert mine
    assert b"eval/return" in mine[0]
    assert any(b"past_median" in content for name, content in accumulated if "my_median" in name)  # HParams, config
    shown = run(f"$ pglab report {made} --out page", folder)
    assert shown.returncode == 0, shown.stderr
    page = (folder / "page" / "report.html").read_text()
    assert "my_median" in page
    assert "past_median" in page
    variant = made / "baselines" / "my_median"
    found = run(
        f"$ pglab variance {variant} --plugin my_baseline.py --at 1 --replicates 8 --fit 1 --reference 32 --pairs "
        "score_function score_function/past_median --out found",
        folder,
    )
    assert found.returncode == 0, found.stderr
    assert "past\\_median" in (folder / "found" / "report.md").read_text()
    without = run(f"$ pglab variance {variant} --at 1", folder)
    assert without.returncode == 2
    assert "my_baseline.py" in without.stderr
