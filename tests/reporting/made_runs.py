"""Run folders made by hand: what training would leave, without training."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import yaml

CONFIG: dict[str, Any] = {
    "env": {"id": "CartPole-v1", "num_envs": 2},
    "estimator": {"name": "score_function"},
    "baseline": {"name": "none"},
    "agent": {"name": "on_policy", "collect": "steps"},
    "seeds": [0, 1, 2, 3],
    "total_steps": 1000,
    "learning_rate": 0.001,
}


def changed(**settings: Any) -> dict[str, Any]:
    return {**copy.deepcopy(CONFIG), **settings}


def make_run(
    path: Path,
    config: dict[str, Any] | None = None,
    level: float = 100.0,
    seed: int = 0,
    lines: int = 10,
    finished: bool = True,
    rate: float = 500.0,
) -> dict[str, Any]:
    """A run with evaluations at each tenth of training, returns scattered around a rising line; its results."""
    config = changed() if config is None else config
    rng = np.random.default_rng(seed)
    members = config["seeds"]
    at = np.linspace(0, config["total_steps"], 11).astype(int)
    returns = level * (0.1 + 0.9 * at[:, None, None] / at[-1]) + rng.normal(0, 5, (11, len(members), 3))
    results = {
        "members": [{"seed": s} for s in members],
        "evaluations": [
            {"steps": [int(a)] * len(members), "returns": r.tolist()} for a, r in zip(at, returns, strict=True)
        ],
        "measurements": [
            {
                "stage": stage,
                "step": int(step),
                "trace_variance": rng.uniform(1, 2, len(members)).tolist(),
                "squared_norm": rng.uniform(0.5, 1, len(members)).tolist(),
            }
            for stage, step in (("start", 0), ("end", at[-1]))
        ],
        "seconds": {"total": 8.5, "training": 8.0},
        "finished": True,
    }
    names = [f"seed{s}" for s in members]
    log = ["step,member,tag,value"]
    for k in range(lines + 1):
        step = round(k * config["total_steps"] / lines)
        if k:
            log.append(f"{step},all,charts/SPS,{rate!r}")
            log += [f"{step},{n},charts/steps,{float(step)!r}" for n in names]
            log += [f"{step},{n},charts/episodic_return,{level * k / lines!r}" for n in names]
            log += [f"{step},{n},losses/policy_loss,0.5" for n in names]
        for i in np.flatnonzero(at == step):
            log += [f"{step},{n},eval/return,{float(returns[i, p].mean())!r}" for p, n in enumerate(names)]
    path.mkdir(parents=True)
    (path / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    (path / "command.txt").write_text("pglab train made.yaml\n")
    (path / "versions.json").write_text(json.dumps({"python": "3.11.7", "torch": "2.13.0"}))
    (path / "git.json").write_text(json.dumps({"commit": "0123abc", "dirty": True, "diff_truncated": False}))
    (path / "log.csv").write_text("\n".join(log) + "\n")
    if finished:
        (path / "results.json").write_text(json.dumps(results))
    return results


def make_comparison(path: Path, variants: dict[str, float], threshold: float | None = 95) -> None:
    """A comparison folder of one group, `mc`, with a run for every variant: name -> level."""
    data = {
        "name": "made",
        "threshold": threshold,
        "groups": {"mc": {"title": "Monte-Carlo", "base": {}, "variants": {name: {} for name in variants}}},
    }
    path.mkdir(parents=True)
    (path / "comparison.yaml").write_text(yaml.safe_dump(data, sort_keys=False))
    (path / "results.json").write_text(json.dumps({"name": "made", "rows": [], "failed": {}, "stopped": []}))
    for i, (name, level) in enumerate(variants.items()):
        make_run(path / "mc" / name, changed(baseline={"name": name}), level, seed=i)
