"""Many runs in one folder."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
from board_server import ask, rows, serve

from pglab.tracking.run_folder import RunFolder
from pglab.tracking.tracker import MemberLabel, Tracker


def test_two_hundred_runs_in_one_folder_share_one_layout(tmp_path: Path) -> None:
    for variant in range(40):
        with Tracker(RunFolder.create(tmp_path / f"v{variant}", {}, "pglab"), [MemberLabel(s) for s in range(4)]) as t:
            t.layout()
            t.begin([{"estimator": f"e{variant}"}] * 4, f"v{variant}")
            for step in (100, 200):
                t.log(step, {"charts/episodic_return": np.arange(4.0) + variant, "gradient/norm": np.ones(4)})
    began = time.perf_counter()
    url = serve(tmp_path, 200)
    layout = ask(url, "data/plugin/custom_scalars/layout")
    took = time.perf_counter() - began
    print(f"200 runs: the layout after {took:.2f} s")
    charts = [chart["title"] for category in layout["category"] for chart in category["chart"]]
    assert len(charts) == len(set(charts))
    assert "Return: IQM, quartiles" in charts
    assert len(rows(url)) == 40
    print(f"200 runs: 40 rows of hyperparameters after {time.perf_counter() - began:.2f} s")
    assert took < 60
