"""Collecting whole episodes against collecting blocks of steps: time per valid step, at CartPole-v1's policies.

A population is trained for a short while, and for every member the policies are kept whose episodes (actions drawn, not
the mode) are nearest to a wanted length: early (untrained), middle (150 steps), late (500). With these policies frozen
(learning rate 0) and the same members and environments, four ways of collecting are timed in turn:

- one episode each: every environment plays one whole episode;
- 8 episodes each: every environment plays eight, one after another;
- steps: blocks of a given number of steps, whatever the policy;
- matched steps: blocks as long as the mean episode, so that an update has as many valid rows as with one episode each.

Timed are `agent.collect` alone and the whole update; both are divided by the number of valid steps. Agents are otherwise
equal: score function, baseline `value`, GAE.

    python benchmarks/collection.py --out benchmarks/collection

writes OUT.md and OUT.json.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from pglab.training import Trainer

NEVER = 1_000_000_000
WANTED = {"early": 0.0, "middle": 150.0, "late": 500.0}
"""Mean episode length of each policy; 0: the untrained one."""
Flat = dict[str, "Tensor"]
"""Every network's parameters [P, n] by name."""


def settings(members: int, environments: int, threads: int) -> dict[str, Any]:
    """What all agents here have in common."""
    return {
        "env": {"id": "CartPole-v1", "num_envs": environments},
        "agent": {"returns": {"name": "gae", "lam": 0.95}},
        "baseline": "value",
        "seeds": members,
        "max_grad_norm": 0.5,
        "preprocessing": {"reward_scale": 0.1},
        "checkpoint": {"every": NEVER},
        "log_every": NEVER,
        "threads": threads,
    }


def policies(members: int, threads: int, total: int, every: int, episodes: int) -> dict[str, tuple[Flat, list[float]]]:
    """For every stage the population's parameters, and each member's mean episode length with them."""
    import torch

    from pglab.config import Config, merge
    from pglab.training import Trainer
    from pglab.watching import Watcher

    kept: list[tuple[Flat, Tensor]] = []

    def look(*_: Any) -> bool:
        # At an evaluation, before the update that follows it.
        if len(trainer.evaluations) > len(kept):
            flat = {name: p.flat.detach().clone() for name, p in trainer.agent.networks().items()}
            kept.append((flat, torch.tensor(trainer.evaluations[-1]["returns"]).mean(1)))  # a step's reward is 1
        return False

    def progress(*_: Any) -> None:
        look()

    training = {
        "total_steps": total,
        "learning_rate": {"kind": "linear", "start": 1e-3, "end": 0.0},
        "agent": {"steps": 16},
        "evaluation": {"every": every, "episodes": episodes, "final_episodes": episodes, "deterministic": False},
    }
    config = Config.read(merge(settings(members, 8, threads), training))
    trainer = Trainer(config, watcher=Watcher(progress=progress, stop=look))
    trainer.run()
    look()
    lengths = torch.stack([length for _, length in kept])  # [looks, P]
    found = {}
    for stage, wanted in WANTED.items():
        best = (lengths - wanted).abs().argmin(0) if wanted else torch.zeros(members, dtype=torch.int64)  # [P]
        flat = {name: torch.stack([kept[k][0][name][p] for p, k in enumerate(best.tolist())]) for name in kept[0][0]}
        found[stage] = (flat, lengths.gather(0, best[None])[0].tolist())
    return found


def frozen(members: int, environments: int, threads: int, agent: dict[str, Any], flat: Flat) -> Trainer:
    """A trainer whose agent has these parameters and keeps them."""
    import torch

    from pglab.config import Config, merge
    from pglab.training import Trainer

    config = Config.read(
        merge(settings(members, environments, threads), {"agent": agent, "learning_rate": 0.0, "total_steps": NEVER})
    )
    trainer = Trainer(config)
    with torch.no_grad():
        for name, parameters in trainer.agent.networks().items():
            parameters.flat.copy_(flat[name])
    return trainer


class Timed:
    """Something that collects, called again and again: its time, valid steps, rows and calls."""

    def __init__(self, call: Callable[[int], Any]) -> None:
        self.call, self.count = call, 0
        self.rates: list[float] = []
        self.rows = self.valid = self.columns = 0

    def run(self, seconds: float) -> None:
        """Call for so long, at least twice; keeps seconds per valid step."""
        began, valid, calls = time.perf_counter(), 0, 0
        counted = []
        while calls < 2 or time.perf_counter() - began < seconds:
            rollout = self.call(self.count)
            counted.append(rollout.valid)
            self.count += 1
            calls += 1
        took = time.perf_counter() - began
        for mask in counted:
            valid += int(mask.sum())
            self.rows += mask.numel()
            self.columns += mask[0].numel()
        self.valid += valid
        self.rates.append(took / valid)

    def result(self) -> dict[str, Any]:
        """Medians of seconds per valid step, and how much was collected."""
        return {
            "seconds_per_valid_step": statistics.median(self.rates),
            "each": self.rates,
            "valid_share": self.valid / self.rows,
            "rows_per_column": self.rows / self.columns,
            "valid_steps_per_call": self.valid / self.count,
        }


def measure(options: argparse.Namespace, flat: Flat, length: float) -> dict[str, dict[str, Any]]:
    """Each way of collecting at one set of policies."""
    import torch

    ways: dict[str, dict[str, Any]] = {
        "one episode each": {"collect": "episodes", "block": options.block},
        "8 episodes each": {"collect": "episodes", "episodes": 8, "block": options.block},
        "16 episodes each": {"collect": "episodes", "episodes": 16, "block": options.block},
        "steps": {"collect": "steps", "steps": options.steps},
        "matched steps": {"collect": "steps", "steps": max(1, round(length))},
    }
    timed: dict[str, tuple[Timed, Timed]] = {}
    trainers = []
    for name, agent in ways.items():
        t = frozen(options.members, options.envs, options.threads, agent, flat)
        trainers.append(t)

        def collect(count: int, t: Trainer = t) -> Any:
            return t.agent.collect(t.env, (count,))  # type: ignore[attr-defined]

        def update(count: int, t: Trainer = t) -> Any:
            return t.agent.update(t.env)[1]

        timed[name] = Timed(collect), Timed(update)
        for call in (collect, update):
            for k in range(2):
                call(NEVER + k)  # counters of their own
    for _ in range(options.repeats):
        for pair in timed.values():
            for one in pair:
                one.run(options.seconds)
    for t in trainers:
        now = t.agent.networks()["policy"].flat
        assert torch.equal(now, flat["policy"]), "the policies have moved"
        t.env.close()
    return {
        name: {"agent": ways[name], "collect": collected.result(), "update": updated.result()}
        for name, (collected, updated) in timed.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--members", type=int, default=8, help="(default: 8)")
    parser.add_argument("--envs", type=int, default=16, help="environments per member (default: 16)")
    parser.add_argument("--steps", type=int, default=32, help="of a block, collecting steps (default: 32)")
    parser.add_argument("--block", type=int, default=32, help="agent.block, collecting episodes (default: 32)")
    parser.add_argument("--repeats", type=int, default=5, help="timed in turn so often (default: 5)")
    parser.add_argument("--seconds", type=float, default=1.0, help="of each timing (default: 1)")
    parser.add_argument("--threads", type=int, default=1, help="torch threads (default: 1)")
    parser.add_argument("--train-steps", type=int, default=150_000, help="steps a member to make the policies")
    parser.add_argument("--train-every", type=int, default=5_000, help="steps between policies that are kept")
    parser.add_argument("--train-episodes", type=int, default=32, help="episodes that tell a policy's length")
    parser.add_argument("--out", type=Path, help="write OUT.md and OUT.json")
    options = parser.parse_args()

    from reporting import origin, provenance, table, write

    made = policies(options.members, options.threads, options.train_steps, options.train_every, options.train_episodes)
    found: dict[str, Any] = {}
    rows = []
    for stage, (flat, lengths) in made.items():
        mean = statistics.fmean(lengths)
        ways = measure(options, flat, mean)
        found[stage] = {"episode_lengths": lengths, "ways": ways}
        own = {part: ways["steps"][part]["seconds_per_valid_step"] for part in ("collect", "update")}
        for name, way in ways.items():
            cells = []
            for part in ("collect", "update"):
                seconds = way[part]["seconds_per_valid_step"]
                cells += [f"{seconds * 1e6:.2f}", "" if name == "steps" else f"{seconds / own[part]:.2f}"]
            collected = way["collect"]
            rows.append(
                [
                    f"{stage}: {name}",
                    f"{mean:.0f} ({min(lengths):.0f} to {max(lengths):.0f})",
                    f"{collected['rows_per_column']:.0f}",
                    f"{collected['valid_share']:.0%}",
                    *cells,
                ]
            )
        print(f"{stage}: done", file=sys.stderr)
    header = [
        "policy: collects", "mean episode (members)", "rows a column", "valid",
        "collect, µs per valid step", "this / steps", "update, µs per valid step", "this / steps",
    ]  # fmt: skip
    record = {
        **provenance(),
        "members": options.members,
        "environments": options.envs,
        "threads": options.threads,
        "stages": found,
    }
    text = (
        f"CartPole-v1, {options.members} members x {options.envs} environments, policies frozen, "
        f"{options.threads} torch thread{'s' * (options.threads > 1)}; medians of {options.repeats} timings taken in turn. "
        f"{origin(record)}\n\n{table(header, rows)}\n\n"
        "*this / steps*: how many times as long a valid step takes as with blocks of steps. *valid*: the share "
        "of rows that count; with episodes, rows past a column's end do not (several each are played from one queue, so "
        "that usually fewer such rows are played than there are in the batch). *matched steps*: blocks as long as the mean "
        "episode."
    )
    write(options.out, "Episodes or steps", text, record)


if __name__ == "__main__":
    main()
