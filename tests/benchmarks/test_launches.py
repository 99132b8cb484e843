"""What is counted of a profiler's events, on events made by hand."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest

PATH = Path(__file__).resolve().parents[2] / "benchmarks" / "launches.py"


@pytest.fixture(scope="module")
def launches() -> Any:
    spec = importlib.util.spec_from_file_location("launches", PATH)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["launches"] = module
    spec.loader.exec_module(module)
    return module


def test_launches_are_counted_per_update_and_overlapping_work_keeps_the_device_busy_once(launches: Any) -> None:
    seen = [
        *[launches.Seen("cudaLaunchKernel", False, t, t + 1) for t in range(6)],
        launches.Seen("cudaGraphLaunch", False, 7, 8),
        launches.Seen("cudaGraphLaunch", False, 8, 9),
        launches.Seen("aten::add", False, 0, 50),
        launches.Seen("kernel", True, 100, 200),
        launches.Seen("kernel", True, 150, 250),  # 50 us more
        launches.Seen("kernel", True, 160, 170),  # within
        launches.Seen("Memcpy DtoH", True, 300, 350),
    ]
    found = launches.summary(seen, updates=2, seconds=400e-6)
    assert found["launches"] == {"cudaLaunchKernel": 3.0, "cudaGraphLaunch": 1.0}
    assert found["launches_per_update"] == 4.0
    assert found["device_operations_per_update"] == 2.0
    assert found["busy"] == pytest.approx((150 + 50) / 400)


def test_an_idle_device_is_not_busy(launches: Any) -> None:
    found = launches.summary([], updates=5, seconds=1.0)
    assert (found["launches_per_update"], found["busy"]) == (0, 0)
