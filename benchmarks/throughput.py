"""Environment steps trained per second: pglab against stable-baselines3, on the same work in the same run.

The work is advantage actor-critic on CartPole-v1: separate 64-64 tanh networks for policy and value, 64 environments x 32
steps per update, one epoch, one minibatch, Adam, no logs written, no evaluation. Runs are interleaved and the median of several is taken, so that a machine that
slows down slows both.

    python benchmarks/throughput.py --out benchmarks/throughput

writes OUT.md and OUT.json with the machine, the versions and the command.
"""

from __future__ import annotations

import argparse
import json
import platform
import shlex
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

ENVS, STEPS = 64, 32


def pglab_a2c(members: int, seconds: float) -> float:
    """Environment steps per second of `members` pglab members together."""
    from pglab.config import Config
    from pglab.training import Trainer

    trainer = Trainer(
        Config.read(
            {
                "env": {"id": "CartPole-v1", "num_envs": ENVS},
                "agent": {"steps": STEPS, "returns": {"name": "gae", "lam": 0.95}},
                "baseline": "value",
                "learning_rate": 7e-4,
                "max_grad_norm": 0.5,
                "seeds": members,
            }
        )
    )
    for _ in range(3):
        trainer.agent.update(trainer.env)
    began, updates = time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        trainer.agent.update(trainer.env)
        updates += 1
    return updates * members * ENVS * STEPS / (time.perf_counter() - began)


def sb3_a2c(seconds: float) -> float:
    """Environment steps per second of stable-baselines3's A2C with a DummyVecEnv."""
    from stable_baselines3 import A2C
    from stable_baselines3.common.callbacks import BaseCallback
    from stable_baselines3.common.env_util import make_vec_env

    class Clock(BaseCallback):
        """Stops after `seconds`, not counting the first update."""

        def __init__(self) -> None:
            super().__init__()
            self.began, self.first = 0.0, 0

        def _on_step(self) -> bool:
            return self.began == 0 or time.perf_counter() - self.began < seconds

        def _on_rollout_end(self) -> None:
            if self.began == 0:
                self.began, self.first = time.perf_counter(), self.num_timesteps

    clock = Clock()
    env = make_vec_env("CartPole-v1", n_envs=ENVS)
    policy = {"net_arch": {"pi": [64, 64], "vf": [64, 64]}}
    model = A2C(
        "MlpPolicy", env, n_steps=STEPS, gae_lambda=0.95, policy_kwargs=policy, use_rms_prop=False, device="cpu"
    )
    model.learn(10**9, callback=clock)
    return (model.num_timesteps - clock.first) / (time.perf_counter() - clock.began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5, help="interleaved runs of each (default: 5)")
    parser.add_argument("--seconds", type=float, default=4.0, help="of each run (default: 4)")
    parser.add_argument("--members", type=int, nargs="+", default=[1, 16], help="population sizes (default: 1 16)")
    parser.add_argument("--out", type=Path, help="write OUT.md and OUT.json")
    options = parser.parse_args()
    torch.set_num_threads(1)

    runs: dict[str, Callable[[], float]] = {"stable-baselines3 A2C": lambda: sb3_a2c(options.seconds)}
    for members in options.members:
        name = f"pglab, {members} member{'s' if members > 1 else ''}"
        runs[name] = lambda members=members: pglab_a2c(members, options.seconds)  # type: ignore[misc]
    measured: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(options.repeats):
        for name, run in runs.items():
            measured[name].append(run())

    from pglab.tracking.provenance import versions

    medians = {name: statistics.median(values) for name, values in measured.items()}
    base = medians["stable-baselines3 A2C"]
    lines = ["| | steps/s (median) | smallest to largest | ratio |", "| :--- | ---: | ---: | ---: |"]
    lines += [
        f"| {name} | {medians[name]:,.0f} | {min(v):,.0f} to {max(v):,.0f} | {medians[name] / base:.1f} |"
        for name, v in measured.items()
    ]
    known = ", ".join(
        f"{k} {v}" for k, v in versions().items() if v and k in ("python", "torch", "stable_baselines3", "pglab")
    )
    machine = f"{platform.machine()}, {platform.system()}, one torch thread"
    command = shlex.join(["python", *sys.argv])
    text = f"A2C on CartPole-v1, {ENVS} environments x {STEPS} steps. {machine}; {known}.\nCommand: `{command}`\n\n"
    text += "\n".join(lines) + "\n"
    print(text)
    if options.out:
        record: dict[str, Any] = {"machine": machine, "versions": versions(), "command": command, "measured": measured}
        options.out.with_suffix(".md").write_text(f"# Throughput\n\n{text}", encoding="utf-8")
        options.out.with_suffix(".json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
