"""Two hundred runs in one folder: read once, in seconds, and still a page to look at."""

from __future__ import annotations

import time
from pathlib import Path

from made_runs import changed, make_run
from pages import sound

from pglab.reporting import report


def test_two_hundred_runs_take_less_than_half_a_minute(tmp_path: Path) -> None:
    for i in range(200):
        make_run(
            tmp_path / "runs" / f"run{i:03}",
            changed(learning_rate=i + 1, seeds=list(range(8))),
            50 + i / 4,
            i,
            lines=50,
        )
    began = time.perf_counter()
    found = report(tmp_path / "runs", tmp_path / "out")
    took = time.perf_counter() - began
    print(f"200 runs in {took:.1f} s")
    assert took < 30
    (group,) = found.sections[0].groups
    assert len(group.variants) == 200
    assert len(group.improvements) == 199  # each against the highest
    assert {i.better for i in group.improvements} == {group.variants[0].name}
    document = (tmp_path / "out" / "report.html").read_text()
    sound(document)
    assert len(document) < 3_000_000
    assert "190 more" in document
