"""TensorBoard's own server in this process, asked over HTTP."""

from __future__ import annotations

import json
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any


def serve(root: Path, runs: int) -> str:
    """The address of a server that has read a folder of so many runs, all of it."""
    from tensorboard import default, program

    board = program.TensorBoard(plugins=default.get_plugins())
    reading = ["--load_fast", "false", "--reload_task", "blocking", "--reload_interval", "0"]
    board.configure(argv=[None, "--logdir", str(root), "--host", "localhost", "--port", "0", *reading])
    url = board.launch()
    found = ask(url, "data/runs")
    assert len(found) == runs, found
    return url


def ask(url: str, route: str, **query: str) -> Any:
    """What a route answers, read as JSON."""
    with urllib.request.urlopen(f"{url}{route}?{urllib.parse.urlencode(query)}", timeout=30) as answer:
        return json.load(answer)


def experiment(url: str) -> Any:
    """The HParams page's columns."""
    return ask(url, "data/plugin/hparams/experiment", request=json.dumps({"experimentName": ""}))


def rows(url: str) -> list[dict[str, Any]]:
    """The HParams page's rows, metrics averaged over a row's sessions."""
    wanted = {
        "experimentName": "",
        "allowedStatuses": ["STATUS_UNKNOWN", "STATUS_SUCCESS", "STATUS_FAILURE", "STATUS_RUNNING"],
        "aggregationType": "AGGREGATION_AVG",
        "colParams": [],
        "startIndex": 0,
        "sliceSize": 1000,
    }
    found = ask(url, "data/plugin/hparams/session_groups", request=json.dumps(wanted))
    return found.get("sessionGroups", [])


def metrics(row: dict[str, Any]) -> dict[str, Any]:
    """Tag -> value of a row or a session."""
    return {m["name"]["tag"]: m["value"] for m in row["metricValues"]}
