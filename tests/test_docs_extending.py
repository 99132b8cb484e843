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
