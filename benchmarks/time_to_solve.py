"""Seconds from the start of a process to a solved CartPole-v1: pglab against stable-baselines3.

Solved: the interquartile mean (IQM) over the seeds of the mean return of 20 deterministic episodes is 475 or more. The
parent process holds the clock, which starts before a contestant's process does, so imports count. One contestant runs at
a time; nothing is written to disk.

pglab trains all seeds at once from benchmarks/time_to_solve.yaml and stops at the first evaluation that solves.

stable-baselines3 trains A2C and PPO, with the RL Zoo's settings for CartPole-v1, one seed after another in one process
(imports count once; `--processes 2` shares the seeds out over two). Its best contestant counts, and for each contestant
the smaller of

- own: every seed stops at its own first evaluation of 475 or more; a seed that never gets there costs all its steps;
- common (with --whole): every seed stops at the first number of steps at which the IQM over the seeds solves, which is
  pglab's rule. Seeds do not know of one another, so all are trained to the end and the rule is applied afterwards.
  `--steps 200000` makes that end come sooner for A2C, whose learning rate is constant; PPO has 100,000 anyway.

Evaluations are part of the time; what is left without them is shown beside it. With --check, when the clock has stopped,
the agents (pglab's one update later) play 20 fresh episodes in gymnasium's own environment.

    python benchmarks/time_to_solve.py --out benchmarks/time_to_solve

writes OUT.md and OUT.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ENV = "CartPole-v1"
HERE = Path(__file__).resolve().parent
ZOO: dict[str, tuple[int, dict[str, Any]]] = {
    "A2C": (500_000, {"ent_coef": 0.0}),
    "PPO": (
        100_000,
        {
            "n_steps": 32,
            "batch_size": 256,
            "gae_lambda": 0.8,
            "gamma": 0.98,
            "n_epochs": 20,
            "ent_coef": 0.0,
            "learning_rate": lambda left: 1e-3 * left,
            "clip_range": lambda left: 0.2 * left,
        },
    ),
}
"""Total steps and arguments: rl-baselines3-zoo, hyperparams/a2c.yml and ppo.yml. Both with 8 environments."""
ZOO_ENVS = 8


@dataclass(frozen=True)
class Contestant:
    """Who is timed, and how it may use the machine."""

    kind: str
    """pglab, A2C or PPO."""
    threads: int = 0
    """Torch threads of each process; 0 leaves torch's default (pglab: what the YAML says)."""
    processes: int = 1

    @property
    def name(self) -> str:
        if self.kind == "pglab":
            return "pglab"
        threads = f"{self.threads} torch thread{'s' * (self.threads > 1)}" if self.threads else "default torch threads"
        return f"stable-baselines3 {self.kind}, {threads}" + (
            f", {self.processes} processes" if self.processes > 1 else ""
        )


# -- in the contestant's process: one JSON object per line on standard output


def say(event: str, **values: Any) -> None:
    """Tell the parent, who notes the time."""
    print(json.dumps({"event": event, **values}), flush=True)


def child_pglab(task: dict[str, Any]) -> None:
    """Train all seeds at once until an evaluation solves."""
    from pglab.config import Config, merge, read_yaml
    from pglab.lab.statistics import iqm
    from pglab.training import Trainer
    from pglab.watching import Watcher

    episodes = task["episodes"]
    data = merge(
        read_yaml(Path(task["config"])),
        {"seeds": task["seeds"], "evaluation": {"episodes": episodes, "final_episodes": episodes}},
    )
    if data.get("evaluation", {}).get("deterministic", True) is not True:
        raise SystemExit(f"{task['config']}: evaluation.deterministic must be true, as stable-baselines3's is.")
    if task["threads"]:
        data["threads"] = task["threads"]
    told = 0
    solved = False

    def look() -> bool:
        nonlocal told, solved
        while told < len(trainer.evaluations):
            found = trainer.evaluations[told]
            means = [statistics.fmean(returns) for returns in found["returns"]]
            told += 1
            if not solved:
                solved = bool(iqm(means) >= task["threshold"])
                say("evaluation", seed=None, steps=max(found["steps"]), returns=means, solved=solved)
        return solved

    def progress(*_: Any) -> None:
        look()

    trainer = Trainer(Config.read(data), watcher=Watcher(progress=progress, stop=look))
    say("start", seed=None)
    trained = trainer.run()
    look()
    say("done", evaluation_seconds=trained.seconds["evaluation"], cpu_seconds=time.process_time())
    if task["check"]:
        import tempfile

        from pglab.agent import export, load_agent

        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "agent.safetensors"
            export(trained.agent, trainer.config, path)
            agents = [load_agent(path, member) for member in range(len(task["seeds"]))]
        check(agents, task)


def child_sb3(task: dict[str, Any]) -> None:
    """Train one seed after another."""
    import torch

    if task["threads"]:
        torch.set_num_threads(task["threads"])
    from stable_baselines3 import A2C, PPO
    from stable_baselines3.common.callbacks import BaseCallback
    from stable_baselines3.common.env_util import make_vec_env
    from stable_baselines3.common.evaluation import evaluate_policy

    episodes = task["episodes"]
    evaluating = 0.0

    class Evaluations(BaseCallback):
        """Evaluates every so many steps and at the end, and stops when the threshold is reached."""

        def __init__(self, seed: int) -> None:
            super().__init__()
            self.seed, self.next, self.last = seed, task["every"], -1
            self.environments = make_vec_env(ENV, n_envs=episodes, seed=1_000_000 + seed)

        def evaluate(self) -> bool:
            nonlocal evaluating
            began = time.perf_counter()
            # One environment an episode: the policy is asked for all of them at once.
            returns, _ = evaluate_policy(
                self.model, self.environments, episodes, deterministic=True, return_episode_rewards=True
            )
            evaluating += time.perf_counter() - began
            mean = statistics.fmean(float(x) for x in returns)  # type: ignore[union-attr]
            self.last = self.num_timesteps
            say("evaluation", seed=self.seed, steps=self.last, returns=[mean], evaluation_seconds=evaluating)
            return task["whole"] or mean < task["threshold"]

        def _on_step(self) -> bool:
            if self.num_timesteps < self.next:
                return True
            self.next += task["every"]
            return self.evaluate()

        def _on_training_end(self) -> None:
            if self.last < self.num_timesteps:
                self.evaluate()

    total, arguments = ZOO[task["kind"]]
    total = min(total, task["steps"] or total)
    models = []
    for seed in task["seeds"]:
        say("start", seed=seed)
        env = make_vec_env(ENV, n_envs=ZOO_ENVS, seed=seed)
        made = {"A2C": A2C, "PPO": PPO}[task["kind"]]("MlpPolicy", env, seed=seed, device="cpu", **arguments)
        models.append(made.learn(total, callback=Evaluations(seed)))
    say("done", evaluation_seconds=evaluating, cpu_seconds=time.process_time())
    if task["check"]:
        check(models, task)


def check(agents: Sequence[Any], task: dict[str, Any]) -> None:
    """Fresh episodes of every agent, after the clock has stopped."""
    from stable_baselines3.common.env_util import make_vec_env
    from stable_baselines3.common.evaluation import evaluate_policy

    episodes = task["episodes"]
    means = []
    for seed, agent in zip(task["seeds"], agents, strict=True):
        environments = make_vec_env(ENV, n_envs=episodes, seed=2_000_000 + seed)
        returns, _ = evaluate_policy(agent, environments, episodes, deterministic=True, return_episode_rewards=True)
        means.append(statistics.fmean(float(x) for x in returns))  # type: ignore[union-attr]
    say("check", returns=means)


# -- in the parent process


def listen(task: dict[str, Any], began: float, events: list[dict[str, Any]]) -> None:
    """Run one contestant's process, and note what it says with the seconds since `began`."""
    arguments = [sys.executable, __file__, "--child", json.dumps(task)]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True, encoding="utf-8") as process:
        assert process.stdout is not None
        for line in process.stdout:
            now = time.perf_counter() - began
            if line.startswith('{"event"'):
                events.append({"seconds": now, **json.loads(line)})
            else:
                print(line, end="", file=sys.stderr)
    if process.returncode:
        events.append({"event": "failed", "code": process.returncode})


def run(contestant: Contestant, task: dict[str, Any]) -> list[list[dict[str, Any]]]:
    """The events of each of a contestant's processes."""
    shares = [task["seeds"][i :: contestant.processes] for i in range(contestant.processes)]
    heard: list[list[dict[str, Any]]] = [[] for _ in shares]
    began = time.perf_counter()
    threads = [
        threading.Thread(target=listen, args=({**task, **asdict(contestant), "seeds": share}, began, events))
        for share, events in zip(shares, heard, strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if any(e["event"] == "failed" for events in heard for e in events):
        raise SystemExit(f"{contestant.name} failed.")
    return heard


def curves(events: list[dict[str, Any]]) -> dict[int, list[dict[str, float]]]:
    """For each seed of one stable-baselines3 process, its evaluations, with seconds since that seed's start."""
    found: dict[int, list[dict[str, float]]] = {}
    start = evaluated = 0.0
    for e in events:
        if e["event"] == "start":
            start, found[e["seed"]] = e["seconds"], []
        elif e["event"] == "evaluation":
            rows = found[e["seed"]]
            if not rows:
                first = evaluated
            evaluated = e["evaluation_seconds"]
            rows.append(
                {
                    "steps": e["steps"],
                    "return": e["returns"][0],
                    "seconds": e["seconds"] - start,
                    "evaluation_seconds": evaluated - first,
                }
            )
    return found


def iqm_of(returns: Sequence[float]) -> float:
    from pglab.lab.statistics import iqm

    return float(iqm(returns))


def stopped_at(heard: list[list[dict[str, Any]]], stops: dict[int, dict[str, float]]) -> tuple[float, float]:
    """Seconds, and seconds without evaluations, when every seed stops at its row of `stops`: of the slowest process."""
    seconds, net = 0.0, 0.0
    for events in heard:
        setup = next(e["seconds"] for e in events if e["event"] == "start")
        seeds = [e["seed"] for e in events if e["event"] == "start"]
        whole = setup + sum(stops[s]["seconds"] for s in seeds)
        seconds = max(seconds, whole)
        net = max(net, whole - sum(stops[s]["evaluation_seconds"] for s in seeds))
    return seconds, net


def sb3_outcomes(heard: list[list[dict[str, Any]]], task: dict[str, Any]) -> list[dict[str, Any]]:
    """What the run of one contestant comes to under each stopping rule."""
    rows = {seed: found for events in heard for seed, found in curves(events).items()}
    rows = {seed: rows[seed] for seed in task["seeds"]}
    threshold = task["threshold"]
    last = {seed: found[-1] for seed, found in rows.items()}
    outcomes = []

    def outcome(rule: str, stops: dict[int, dict[str, float]], solved: bool, missed: int) -> dict[str, Any]:
        seconds, net = stopped_at(heard, stops)
        return {
            "rule": rule,
            "solved": solved,
            "not_reached": missed,
            "seconds": seconds,
            "seconds_without_evaluations": net,
            "startup_seconds": max(e["seconds"] for events in heard for e in _starts(events)[:1]),
            "iqm": iqm_of([row["return"] for row in stops.values()]),
            "seeds": {str(seed): row for seed, row in stops.items()},
        }

    own = {seed: next((row for row in found if row["return"] >= threshold), last[seed]) for seed, found in rows.items()}
    missed = sum(row["return"] < threshold for row in own.values())
    outcomes.append(outcome("own", own, iqm_of([r["return"] for r in own.values()]) >= threshold, missed))
    if task["whole"]:
        stages = list(zip(*rows.values(), strict=True))
        at = next((s for s in stages if iqm_of([row["return"] for row in s]) >= threshold), None)
        stops = last if at is None else dict(zip(rows, at, strict=True))
        missed = sum(row["return"] < threshold for row in stops.values())
        outcomes.append(outcome("common", stops, at is not None, missed))
    return outcomes


def pglab_outcome(events: list[dict[str, Any]], task: dict[str, Any]) -> dict[str, Any]:
    """What pglab's run comes to."""
    rows = [e for e in events if e["event"] == "evaluation"]
    at, done = rows[-1], next(e for e in events if e["event"] == "done")
    return {
        "rule": "common",
        "solved": at["solved"],
        "not_reached": sum(r < task["threshold"] for r in at["returns"]),
        "seconds": at["seconds"],
        "seconds_without_evaluations": at["seconds"] - done["evaluation_seconds"],
        "startup_seconds": _starts(events)[0]["seconds"],
        "iqm": iqm_of(at["returns"]),
        "seeds": {
            str(seed): {"steps": at["steps"], "return": value}
            for seed, value in zip(task["seeds"], at["returns"], strict=True)
        },
        "curve": [
            {"steps": e["steps"], "seconds": e["seconds"], "iqm": iqm_of(e["returns"]), "returns": e["returns"]}
            for e in rows
        ],
    }


def _starts(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [e for e in events if e["event"] == "start"]


def judge(contestant: Contestant, heard: list[list[dict[str, Any]]], task: dict[str, Any]) -> list[dict[str, Any]]:
    """Outcomes of one run, with what the check found."""
    if contestant.kind == "pglab":
        outcomes = [pglab_outcome(heard[0], task)]
    else:
        outcomes = sb3_outcomes(heard, task)
    checked = [r for events in heard for e in events if e["event"] == "check" for r in e["returns"]]
    cpu = sum(e["cpu_seconds"] for events in heard for e in events if e["event"] == "done")
    for o in outcomes:
        # With --whole the agents at hand are those at the end of training, whatever the rule.
        o["checked_iqm"] = iqm_of(checked) if checked and not (task["whole"] and contestant.kind != "pglab") else None
        o["cpu_seconds_of_the_run"] = cpu
    return outcomes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=8, help="seeds of each run (default: 8)")
    parser.add_argument("--first-seed", type=int, default=0, help="seeds count from here (default: 0)")
    parser.add_argument("--repeats", type=int, default=1, help="runs of each contestant, each on further seeds")
    parser.add_argument("--only", nargs="+", choices=["pglab", "A2C", "PPO"], help="leave the others out")
    parser.add_argument("--config", type=Path, default=HERE / "time_to_solve.yaml", help="pglab's settings")
    parser.add_argument("--threads", type=int, nargs="+", default=[0, 1], help="of SB3; 0: torch's default (default: 0 1)")  # fmt: skip
    parser.add_argument("--processes", type=int, nargs="+", default=[1], help="of SB3 (default: 1)")
    parser.add_argument("--pglab-threads", type=int, default=0, help="0: what the YAML says (default)")
    parser.add_argument("--threshold", type=float, default=475.0)
    parser.add_argument("--episodes", type=int, default=20, help="of an evaluation, for each seed (default: 20)")
    parser.add_argument("--every", type=int, default=5_000, help="SB3: steps between evaluations (default: 5000)")
    parser.add_argument("--steps", type=int, default=0, help="SB3: at most so many steps (default: the Zoo's)")
    parser.add_argument("--whole", action="store_true", help="SB3: train every seed to its end, for the common rule")
    parser.add_argument(
        "--check", action=argparse.BooleanOptionalAction, default=True, help="fresh episodes afterwards"
    )
    parser.add_argument("--out", type=Path, help="write OUT.md and OUT.json")
    parser.add_argument("--child", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        (child_pglab if options.child["kind"] == "pglab" else child_sb3)(options.child)
        return

    wanted = options.only or ["pglab", *ZOO]
    contestants = [Contestant("pglab", options.pglab_threads)] if "pglab" in wanted else []
    contestants += [
        Contestant(kind, threads, processes)
        for kind in ZOO
        if kind in wanted
        for threads in dict.fromkeys(options.threads)
        for processes in dict.fromkeys(options.processes)
    ]
    # Everyone finds the libraries in the disk cache.
    subprocess.run([sys.executable, "-c", "import torch, stable_baselines3, pglab.training"], check=True)
    runs: list[dict[str, Any]] = []
    for repeat in range(options.repeats):
        first = options.first_seed + repeat * options.seeds
        task = {
            "seeds": list(range(first, first + options.seeds)),
            "threshold": options.threshold,
            "episodes": options.episodes,
            "every": options.every,
            "steps": options.steps,
            "whole": options.whole,
            "check": options.check,
            "config": str(options.config.resolve()),
        }
        for contestant in contestants:
            for outcome in judge(contestant, run(contestant, task), task):
                name = contestant.name
                if contestant.kind != "pglab" and options.whole:
                    name += f" ({outcome['rule']} stop)"
                runs.append({"name": name, **asdict(contestant), "repeat": repeat, **outcome})
                found = "solved" if outcome["solved"] else "NOT solved"
                print(f"{name}: {found} in {outcome['seconds']:.1f} s, IQM {outcome['iqm']:.1f}", file=sys.stderr)
    report(options, runs)


def report(options: argparse.Namespace, runs: list[dict[str, Any]]) -> None:
    """Print and write the page."""
    from reporting import origin, provenance, table, write

    by_name: dict[str, list[dict[str, Any]]] = {}
    for r in runs:
        by_name.setdefault(r["name"], []).append(r)

    def middle(name: str, key: str) -> float:
        return statistics.median(r[key] for r in by_name[name])

    rows = []
    for name, found in by_name.items():
        seconds, net = middle(name, "seconds"), middle(name, "seconds_without_evaluations")
        steps = [row["steps"] for r in found for row in r["seeds"].values()]
        checked = [r["checked_iqm"] for r in found if r["checked_iqm"] is not None]
        rows.append(
            [
                name,
                f"{seconds:.1f}" + ("" if all(r["solved"] for r in found) else " (not solved)"),
                f"{net:.1f}",
                f"{1 - net / seconds:.0%}",
                f"{middle(name, 'startup_seconds'):.1f}",
                f"{statistics.median(steps):,.0f} ({min(steps):,} to {max(steps):,})",
                f"{middle(name, 'iqm'):.1f}",
                f"{statistics.median(checked):.1f}" if checked else "",
                f"{sum(r['not_reached'] for r in found)} of {sum(len(r['seeds']) for r in found)}",
            ]
        )
    header = [
        "", "seconds", "without evaluations", "evaluations' share", "until training began", "steps per seed",
        "IQM then", "IQM of fresh episodes", f"seeds below {options.threshold:g}",
    ]  # fmt: skip
    text = (
        f"Seconds from the start of the process to an IQM over {options.seeds} seeds of {options.threshold:g} on {ENV}, "
        f"{options.episodes} deterministic episodes a seed"
        + (f"; medians of {options.repeats} runs on different seeds" if options.repeats > 1 else "")
        + ".\n"
    )
    record = provenance()
    text += origin(record) + "\n\n" + table(header, rows) + "\n"
    record |= {"threshold": options.threshold, "zoo": {k: v[0] for k, v in ZOO.items()}, "runs": runs, "ratios": {}}
    others = [name for name in by_name if name != "pglab"]
    if "pglab" in by_name and others:
        for key, said in (("seconds", "Seconds"), ("seconds_without_evaluations", "Without evaluations")):
            # One that has not solved the task is beaten by any that has.
            best = min(others, key=lambda n: (not all(r["solved"] for r in by_name[n]), middle(n, key)))
            ratio = middle(best, key) / middle("pglab", key)
            solved = all(r["solved"] for r in by_name["pglab"] + by_name[best])
            record["ratios"][key] = {"best_other": best, "ratio": ratio, "both_solved": solved}
            text += f"\n{said}: the best of stable-baselines3 ({best}) takes **{ratio:.2f}** times as long as pglab."
            if not solved:
                text += " This compares nothing: not both of them solved the task."
        text += "\n"
    text += "\n" + seeds_table(by_name)
    write(options.out, "Time to solve", text, record)


def seeds_table(by_name: dict[str, list[dict[str, Any]]]) -> str:
    """Seconds (and thousands of steps) of every seed of stable-baselines3."""
    from reporting import table

    found = {name: runs for name, runs in by_name.items() if name != "pglab"}
    if not found:
        return ""
    lines = []
    for name, runs in found.items():
        cells = [f"{row['seconds']:.1f} ({row['steps'] / 1000:.0f}k)" for r in runs for row in r["seeds"].values()]
        lines.append([name, *cells])
    count = max(len(line) for line in lines) - 1
    first = min(int(seed) for runs in found.values() for r in runs for seed in r["seeds"])
    return "Seconds and steps of each seed, evaluations included, imports not:\n\n" + table(
        ["seed", *(str(first + i) for i in range(count))], lines
    )


if __name__ == "__main__":
    main()
