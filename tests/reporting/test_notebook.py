"""Results as tables: HTML for a notebook, pandas where it is installed."""

from __future__ import annotations

import builtins
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from made_runs import make_comparison

from pglab.comparing import Compared
from pglab.errors import PglabError
from pglab.lab.comparison import ComparisonConfig, Row
from pglab.lab.measuring import Measurement, measure
from pglab.reporting import report
from pglab.training import Trained


class Frame:
    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self.rows = rows


@pytest.fixture
def pandas(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in where pandas is not installed: it is given plain rows, whatever it makes of them."""
    monkeypatch.setitem(sys.modules, "pandas", SimpleNamespace(DataFrame=Frame))


def trained() -> Trained:
    evaluations = [{"steps": [10, 10], "returns": [[1.0, 3.0], [5.0, 5.0]]}]
    members = [{"seed": 0, "learning_rate": 0.1}, {"seed": 0, "learning_rate": 0.2}]
    return Trained(Path("<b>run"), None, evaluations, [], {"total": 1.0}, True, members)  # type: ignore[arg-type]


def compared() -> Compared:
    config = ComparisonConfig(name="x", groups={"g": {"title": "<i>", "variants": {"v": {}}}})  # type: ignore[dict-item]
    row = Row("g", "v", 10.0, (9.0, 11.0), 8.0, float("nan"), 0, 4, 2.0, 100.0, nsr={"start": 0.5})
    return Compared(Path("runs/x"), [row], {"g/w": "<boom>"}, ["g/u"], config)


def measured() -> Measurement:
    config = {"env": {"id": "CartPole-v1", "num_envs": 2}, "agent": {"steps": 5}, "baseline": "none"}
    return measure(config, pairs=["score_function"], replicates=8, reference=32, fit=1)


def test_each_result_gives_rows_and_a_table(pandas: None, tmp_path: Path) -> None:
    rows = trained().to_pandas().rows
    assert [r["return"] for r in rows] == [2.0, 5.0]
    assert [r["learning_rate"] for r in rows] == [0.1, 0.2]
    assert "&lt;b&gt;run" in trained()._repr_html_()
    (row,) = compared().to_pandas().rows
    assert (row["variant"], row["low"], row["nsr_start"]) == ("v", 9.0, 0.5)
    html = compared()._repr_html_()
    assert "&lt;i&gt;" in html
    assert "&lt;boom&gt;" in html
    found = measured()
    (row,) = found.to_pandas().rows
    assert row["pair"] == "score_function"
    assert row["nsr_low"] <= row["nsr"]
    assert "score_function" in found._repr_html_()
    make_comparison(tmp_path / "made", {"none": 80.0, "value": 90.0})
    made = report(tmp_path / "made")
    assert len(made.to_pandas().rows) == 8
    assert {r["variant"] for r in made.to_pandas("curves").rows} == {"none", "value"}
    assert len(made.to_pandas("variants").rows) == 2
    assert len(made.to_pandas("improvements").rows) == 2
    assert len(made.to_pandas("noise").rows) == 4


def test_without_pandas_it_is_said_in_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def refuse(name: str, *rest: Any) -> Any:
        if name == "pandas":
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(PglabError, match="needs pandas, which is not installed"):
        trained().to_pandas()


def test_with_pandas_it_is_a_data_frame(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    assert isinstance(trained().to_pandas(), pandas.DataFrame)
