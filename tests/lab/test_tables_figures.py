"""Tables as text, figures as files of a sensible size."""

from __future__ import annotations

import io
import math
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from pglab.errors import PglabError
from pglab.lab.figures import gradient_variance, learning_curves
from pglab.lab.tables import Column, markdown_table, rich_table

ROWS = [
    {"variant": "[red]rebar|x*", "iqm": 212.345, "steps": 31200, "nsr": math.inf, "interval": (200.0, math.inf)},
    {"variant": "a variant with a long name that has to be wrapped", "iqm": math.nan, "steps": None, "tuned": True},
]
COLUMNS = [Column("variant"), Column("iqm", "IQM", ".1f"), "steps", "nsr", Column("interval", "95 %", ".0f"), "tuned"]


def shown(rows: list[dict], columns: list[Column | str]) -> str:
    stream = io.StringIO()
    Console(file=stream, width=80).print(rich_table(rows, columns, title="[b]title"))
    return stream.getvalue()


def test_a_rich_table_fits_and_takes_no_markup() -> None:
    text = shown(ROWS, COLUMNS)
    assert all(len(line) <= 80 for line in text.splitlines())
    for piece in ("[b]title", "[red]rebar|x*", "212.3", "31,200", "∞", "200 to ∞", "yes", "–"):
        assert piece in text


def test_columns_that_do_not_fit_go_below_and_nothing_is_cut() -> None:
    columns = ["variant", *(f"measurement_{i}" for i in range(12))]
    row = {"variant": "reinforce", **{f"measurement_{i}": 1000.0 + i for i in range(12)}}
    text = shown([row], columns)
    assert all(len(line) <= 80 for line in text.splitlines())
    assert all(f"{1000 + i:,}" in text for i in range(12))
    assert text.count("reinforce") > 1
    assert "…" not in text


def test_markdown_is_escaped() -> None:
    lines = markdown_table([*ROWS, {"variant": "<b>&\n_x_"}], COLUMNS).splitlines()
    assert lines[0] == "| variant | IQM | steps | nsr | 95 % | tuned |"
    assert lines[1] == "| :--- | ---: | ---: | ---: | ---: | ---: |"
    assert lines[2] == r"| \[red\]rebar\|x\* | 212.3 | 31,200 | ∞ | 200 to ∞ | – |"
    assert lines[4] == r"| &lt;b&gt;&amp; \_x\_ | – | – | – | – | – |"


def test_numbers_without_a_form() -> None:
    def cell(value: object) -> str:
        return Column("x").cell({"x": value})

    assert [cell(v) for v in (0.0, 0.01234567, 212.345, 31234.5, 1e-7, 1.5e9)] == [
        "0", "0.01235", "212.3", "31,234", "1e-07", "1.5e+09",
    ]  # fmt: skip
    assert [cell(v) for v in (np.int64(31200), np.float32(0.5), -math.inf, np.nan)] == ["31,200", "0.5", "-∞", "–"]


def size(path: Path) -> tuple[int, int]:
    content = path.read_bytes()
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    assert len(content) > 10_000
    return struct.unpack(">II", content[16:24])


@pytest.mark.parametrize(("groups", "width"), [(1, 840), (3, 1410), (4, 1110)])
def test_learning_curves(tmp_path: Path, groups: int, width: int) -> None:
    steps = np.linspace(0, 1e5, 20)
    returns = np.outer(steps / 1e5, [400.0, 500.0, 450.0, 480.0])
    returns[:2] = np.nan
    variants = {"reinforce": (steps, returns), "$rebar_$ [x]": (steps[::2], returns[::2, :2])}
    path = tmp_path / "curves.png"
    learning_curves({f"group {i}": variants for i in range(groups)}, path, threshold=475.0, title="Cost: $1 or $2")
    found = size(path)
    assert found[0] == width
    assert 300 < found[1] < 1000


def test_gradient_variance(tmp_path: Path) -> None:
    def record(stage: str, nsr: float, low: float, high: float) -> dict:
        return {"stage": stage, "step": 1000, "nsr": nsr, "low": low, "high": high, "trace_variance": 1.0}

    data = {
        "CartPole-v1": {
            "reinforce": [record("start", 3.0, 1.0, 9.0), record("end", math.inf, 20.0, math.inf)],
            "rebar": [record("start", 2.0, 0.0, math.inf), record("end", 0.0, 0.0, 0.0)],
        },
        "empty": {},
        "none known": {"rebar": [record("start", math.nan, 0.0, math.inf), record("end", math.inf, 0.0, math.inf)]},
    }
    path = tmp_path / "noise.png"
    gradient_variance(data, path)
    assert size(path)[0] == 1410


def test_a_figure_that_cannot_be_written_is_a_pglab_error(tmp_path: Path) -> None:
    with pytest.raises(PglabError, match="Cannot write"):
        learning_curves({"a": {"b": ([0, 1], np.ones((2, 3)))}}, tmp_path / "nowhere" / "curves.png")


def test_matplotlib_waits_and_pyplot_is_not_needed(tmp_path: Path) -> None:
    code = f"""
import sys
from pglab.lab.figures import learning_curves
assert "matplotlib" not in sys.modules
learning_curves({{"a": {{"b": ([0, 1], [[1.0], [2.0]])}}}}, {str(tmp_path / "a.png")!r})
assert "matplotlib.pyplot" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)
