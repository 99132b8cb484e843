"""What `--probe.every 50` costs: the same training with and without it, in turns.

- steps: CartPole-v1, baseline `value`, default settings: 8 seeds x 8 environments x 16 steps;
- episodes: CartPole-v1, whole episodes, baseline `leave_one_out`, 8 seeds x 8 environments;
- replay: the SAC-like config `pendulum/critic/pathwise`: 8 seeds, minibatches of 256.

Two trainings from the same start, one with a probe, take turns by blocks of `--every` updates, the probe in the middle of its
block, and another one first each time; a first block of each is thrown away. Both train the same networks bit for bit, so that
the blocks differ by the probe alone. Compared is the processor and the wall time of the training loop (with its log lines;
no evaluation, no files); the probe's own clock is what the note at the end of training tells.

    python benchmarks/probe.py --out benchmarks/probe

writes OUT.md and OUT.json.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path
from typing import Any

NEVER = 1_000_000_000


def cases() -> dict[str, dict[str, Any]]:
    """Name -> config, without a probe."""
    from pglab.config import merge
    from pglab.shipped import config_data

    cartpole = {"env": {"id": "CartPole-v1"}}
    found = {
        "steps": cartpole | {"baseline": "value", "total_steps": NEVER},
        "episodes": cartpole | {"baseline": "leave_one_out", "agent": {"collect": "episodes"}, "total_steps": NEVER},
        "replay": config_data("pendulum/critic/pathwise") | {"total_steps": NEVER, "measurement": {"at": []}},
    }
    plain = {
        "threads": 1,
        "evaluation": {"every": NEVER, "episodes": 1, "final_episodes": 1},
        "checkpoint": {"every": NEVER},
        "snapshots": {"at": []},
    }
    return {name: merge(config, plain) for name, config in found.items()}


class Turn:
    """A training that goes on by blocks of updates."""

    def __init__(self, config: dict[str, Any], every: int) -> None:
        from pglab.config import Config
        from pglab.training import Trainer

        self.trainer, self.every = Trainer(Config.read(config)), every
        self.trainer._clock, self.trainer._clock_steps = time.perf_counter(), 0  # as `run` does
        self.until = every // 2  # so that a block has its probe in the middle

    def block(self) -> dict[str, float]:
        """The next block's seconds, by the wall's and the processor's clock, and those of the probe in it."""
        t = self.trainer
        probed = 0.0 if t.probe is None else t.probe.seconds
        wall, processor = time.perf_counter(), time.process_time()
        self.until += self.every
        while t.agent.updates < self.until:
            t._before_update()
            metrics, rollout = t.agent.update(t.env)
            t._count(rollout)
            t._after_update(metrics)
        found = {"wall": time.perf_counter() - wall, "processor": time.process_time() - processor}
        return found | {"probe": 0.0 if t.probe is None else t.probe.seconds - probed}

    def close(self) -> None:
        self.trainer.env.close()
        if self.trainer.evaluator is not None:
            self.trainer.evaluator.env.close()


def in_turns(config: dict[str, Any], every: int, rounds: int) -> list[dict[str, Any]]:
    """So many blocks of both after one that does not count, and how busy others kept the machine meanwhile."""
    from slices import busy_seconds

    both = {"without": Turn(config, every), "with": Turn(config | {"probe": {"every": every}}, every)}
    found: list[dict[str, Any]] = []
    for k in range(rounds + 1):
        busy, own, began = busy_seconds(), time.process_time(), time.perf_counter()
        names = list(both) if k % 2 else list(both)[::-1]
        one: dict[str, Any] = {name: both[name].block() for name in names}
        if busy is not None:
            others = (busy_seconds() or busy) - busy - (time.process_time() - own)
            one["others"] = max(0.0, others) / (time.perf_counter() - began)
        found.append(one)
    networks = [t.trainer.agent.networks() for t in both.values()]
    assert all(bool((p.flat == networks[1][name].flat).all()) for name, p in networks[0].items())
    for turn in both.values():
        turn.close()
    return found[1:]


def spread(values: list[float]) -> str:
    low, _, high = statistics.quantiles(values, n=4)
    return f"{statistics.median(values):+.1%} ({low:+.1%} to {high:+.1%})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--every", type=int, default=50, help="probe.every (default: 50)")
    parser.add_argument("--blocks", type=int, default=20, help="of each training (of episodes: a third; default: 20)")
    parser.add_argument("--only", nargs="+", help="some of steps, episodes, replay")
    parser.add_argument("--out", type=Path, help="write OUT.md and OUT.json")
    options = parser.parse_args()

    from reporting import origin, provenance, table, write

    found: dict[str, Any] = {}
    rows = []
    for name, config in cases().items():
        if options.only and name not in options.only:
            continue
        rounds = options.blocks // 3 if name == "episodes" else options.blocks
        found[name] = turns = in_turns(config, options.every, rounds)
        ratios = {
            clock: [one["with"][clock] / one["without"][clock] - 1 for one in turns] for clock in ("processor", "wall")
        }
        own = statistics.median(one["with"]["probe"] / one["with"]["wall"] for one in turns)
        each = statistics.median(one["with"]["probe"] for one in turns)
        update = statistics.median(one["without"]["wall"] / options.every for one in turns)
        rows.append(
            [
                name,
                f"{len(turns)}",
                f"{update * 1e3:.1f}",
                f"{each * 1e3:.1f}",
                f"{own:.1%}",
                spread(ratios["processor"]),
                spread(ratios["wall"]),
                f"{statistics.fmean(one.get('others', float('nan')) for one in turns):.2f}",
            ]
        )
        print(f"{name}: done", file=sys.stderr)
    header = [
        "training", "blocks", "an update, ms", "a probe, ms", "of training, by its own clock",
        "more processor time", "more wall time", "cores others used",
    ]  # fmt: skip
    record = {**provenance(), "every": options.every, "blocks": options.blocks, "cases": found}
    text = (
        f"`probe.every` {options.every} against none, 8 seeds, one torch thread; medians over blocks of {options.every} "
        f"updates in turns, in parentheses the quartiles of the blocks' differences. {origin(record)}\n\n"
        f"{table(header, rows)}\n\n"
        "*steps*: CartPole-v1, baseline `value`, 8 environments x 16 steps; *episodes*: CartPole-v1, whole episodes, "
        "`leave_one_out`; *replay*: the SAC-like `pendulum/critic/pathwise`. What the differences scatter by is what this "
        "machine cannot tell: the probe's own clock is the more exact figure, and leaves out only what logging a few more "
        "numbers takes. A block of the one training and the same block of the other do the same work but for the probe."
    )
    write(options.out, "What the gradient probe costs", text, record)


if __name__ == "__main__":
    main()
