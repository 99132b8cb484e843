"""The training loop: update, log, evaluate, measure, save; resume from any checkpoint bit for bit."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pglab import checkpoint, snapshots
from pglab.agents import ActorCriticAgent, Agent, OnPolicyAgent, make_agent
from pglab.capabilities import check_fit
from pglab.config import Config
from pglab.devices import keep_memory, pick_device, pick_threads
from pglab.environments import make_environment
from pglab.environments.contract import Environment
from pglab.errors import PglabError
from pglab.evaluation import Evaluator, evaluate
from pglab.executors import pick_executor
from pglab.lab.probe import Probe
from pglab.lab.statistics import iqm
from pglab.lab.variance import measure
from pglab.population import Population
from pglab.rollout import Rollout, episode_sums
from pglab.stages import FINAL, Look, Stages
from pglab.tracking import MemberLabel, RunFolder, Tracker, opening
from pglab.tracking.files import write_json
from pglab.watching import DeferredInterrupt, Watcher

STAGES = {0.0: "start", 0.5: "middle", 1.0: "end"}
HISTOGRAMS = ("policy/importance_weights",)  # metrics of many values per member, [P, K]


@dataclass
class Trained:
    """What training gives back."""

    folder: Path | None
    agent: Agent
    evaluations: list[dict[str, Any]]
    """One per evaluation: `steps` `[P]` and `returns` `[P, E]`."""
    measurements: list[dict[str, Any]]
    """One per measured stage: `stage`, `step`, and what `pglab.lab.variance.measure` gives."""
    seconds: dict[str, float]
    """Wall time by part: total, training, evaluation, measurement, and of training the gradient probe."""
    finished: bool
    """False when it was interrupted."""
    members: list[dict[str, Any]] = field(default_factory=list)
    """Each member's seed and swept values."""

    def results(self) -> dict[str, Any]:
        """As JSON holds it."""
        return {
            "members": self.members,
            "evaluations": self.evaluations,
            "measurements": self.measurements,
            "seconds": self.seconds,
            "finished": self.finished,
        }

    def to_pandas(self) -> Any:
        """Evaluations, a row per member and evaluation; PglabError where pandas is not installed."""
        from pglab.reporting.notebook import frame, trained_rows

        return frame(trained_rows(self))

    def _repr_html_(self) -> str:
        from pglab.reporting.notebook import trained_html

        return trained_html(self)


class Trainer:
    """One population from its first update to its last."""

    def __init__(self, config: Config, folder: RunFolder | None = None, watcher: Watcher | None = None) -> None:
        self.config, self.folder, self.watcher = config, folder, watcher or Watcher()
        self.device = pick_device(config.device)
        keep_memory()
        self.population = Population.of(config, self.device)
        members = len(self.population)
        self.env = self.environment(members, config.env.num_envs)
        self.evaluator: Evaluator | None = None
        check_fit(config, self.env.spec)
        self.agent: Agent = make_agent(config, self.env.spec, self.population, config.env.num_envs)
        self.probe = None if config.probe.every is None else Probe(config.probe.every)
        self.agent.probe = self.probe
        rows = self.agent.rows_per_update * members
        self.threads = threads = pick_threads(config.threads, rows, self.device)
        torch.set_num_threads(threads)
        self.agent.executor = pick_executor(config.executor, self.device, self.env, config, rows)
        self.agent.executor.note = self.watcher.note
        self.watcher.note(
            f"{self.env.spec.description}; policy {self.agent.policy.describe()}; executor {self.agent.executor.name}, "
            f"{threads} torch thread{'s' if threads > 1 else ''} ({rows:,} rows an update)."
        )
        self.tracker: Tracker | None = None
        self.part: opening.Part | None = None
        self.steps = np.zeros(members, dtype=np.int64)
        self.running = torch.zeros(members, config.env.num_envs, device=self.device)
        self.finished_sum = torch.zeros(3, members, device=self.device)  # returns, lengths, episodes since the last log
        self.made = torch.zeros(members, dtype=torch.int64, device=self.device)  # steps of the last update
        self.next_log, self.next_checkpoint = config.log_every, config.checkpoint.every
        self.stages = Stages(config)
        self.evaluations: list[dict[str, Any]] = []
        self.measurements: list[dict[str, Any]] = []
        self.logged = 0
        self.finished = False  # the last evaluation is done
        self._opened = False  # the event files have their beginning, as those of every checkpoint do
        self._consistent = True  # between two updates: what is saved now can be gone on from
        self.seconds = {"total": 0.0, "evaluation": 0.0, "measurement": 0.0, "probe": 0.0}

    def environment(self, members: int, num_envs: int, training: bool = True) -> Environment:
        """The config's environment for so many members. What is not for training runs in this process, in the mode that
        can be reset by parts: the streams are the same."""
        e = self.config.env
        return make_environment(
            e.id,
            members,
            num_envs,
            e.backend,
            e.vectorization if training else "sync",
            e.autoreset_mode if training else "disabled",
            e.kwargs,
            e.max_episode_steps,
            self.device,
        )

    @property
    def replay(self) -> Any:
        return self.agent.replay if isinstance(self.agent, ActorCriticAgent) else None

    # -- state

    def save(self) -> Path | None:
        """Write a checkpoint of this moment; returns its path."""
        if self.folder is None:
            return None
        tree = {
            "agent": self.agent.state(),
            "environment": self.env.get_state(),
            "loop": {
                "steps": self.steps.tolist(),
                "running": self.running,
                "finished_sum": self.finished_sum,
                "next": [self.next_log, self.next_checkpoint],
                "stages": self.stages.state(),
                "evaluations": self.evaluations,
                "measurements": self.measurements,
                "probe": {} if self.probe is None else self.probe.found,
                "logged": self.logged,
                "finished": self.finished,
                "seconds": self.seconds,
            },
            "positions": self.tracker.positions() if self.tracker else {},
        }
        return checkpoint.save(
            self.folder.checkpoints, int(self.agent_counter), tree, self.replay, self.config.checkpoint.keep
        )

    @property
    def agent_counter(self) -> int:
        """Rounds of collection so far; names the checkpoint."""
        return self.agent.rounds if isinstance(self.agent, ActorCriticAgent) else self.agent.updates

    def restore(self, tree: dict[str, Any]) -> None:
        """Take over a checkpoint's tree and cut the logs back to it. PglabError where it does not fit the config."""
        loop = tree["loop"]
        self.agent.load_state(tree["agent"])
        resumed = self.env.set_state(tree["environment"])
        self.steps = np.array(loop["steps"], dtype=np.int64)
        self.running.copy_(loop["running"])
        self.finished_sum.copy_(loop["finished_sum"])
        self.next_log, self.next_checkpoint = loop["next"]
        self.stages.load_state(loop["stages"])
        self.evaluations, self.measurements = loop["evaluations"], loop["measurements"]
        self.logged, self.seconds = loop["logged"], {"probe": 0.0, **loop["seconds"]}
        if self.probe is not None:
            self.probe.found = dict(loop.get("probe", {}))
        # A run whose total_steps was raised since goes on.
        self.finished = loop["finished"] and int(self.steps.min()) >= self.config.total_steps
        if not self.finished:
            self.stages.reopen(int(self.steps.min()))
        if resumed.lost.any():
            self.watcher.note(
                f"{self.env.spec.id} cannot be resumed exactly: {int(resumed.lost.sum())} episodes under way begin again."
            )
            self.agent.begin_again(resumed)
            self.running *= ~resumed.lost
        self._opened = True
        if self.folder is not None:
            Tracker.cut_back(self.folder, tree["positions"])

    # -- the loop

    def run(self) -> Trained:
        """Train until every member has had its steps. Ctrl-C stops between updates, with everything saved."""
        config = self.config
        if self.folder is not None:
            labels = [MemberLabel(m.seed, m.overrides) for m in self.population.members]
            self.tracker = Tracker(self.folder, labels)
            if not self._opened:
                opening.begin(self.tracker, config, self.population, self.part)
        earlier, began = dict(self.seconds), time.perf_counter()
        self._clock, self._clock_steps = began, int(self.steps.sum())
        try:
            with DeferredInterrupt() as interrupt:
                while self.steps.min() < config.total_steps:
                    interrupt.asked |= self.watcher.stop()
                    interrupt.check()
                    self._consistent = False
                    self._before_update()
                    metrics, _ = self._update()
                    self.seconds["total"] = earlier["total"] + time.perf_counter() - began
                    if self.probe is not None:
                        self.seconds["probe"] = earlier["probe"] + self.probe.seconds
                    self._after_update(metrics)
                    self._consistent = True
                if not self.finished:
                    self._consistent = False
                    self._look()
                    if self.tracker is not None:
                        self.tracker.end()
                    self._consistent = self.finished = True
        except KeyboardInterrupt:
            self.watcher.note(
                "Interrupted: saving." if self._consistent else "Interrupted within an update: nothing new is saved."
            )
        finally:
            self.seconds["total"] = earlier["total"] + time.perf_counter() - began
            try:
                if self._consistent:
                    self.save()
            finally:
                self.env.close()
                if self.evaluator is not None:
                    self.evaluator.env.close()
                if self.tracker is not None:
                    self.tracker.close()
        trained = self.trained()
        if self.probe is not None:
            took, of = trained.seconds["probe"], trained.seconds["training"]
            share = took / max(of, 1e-9)
            self.watcher.note(f"The gradient probe took {took:.1f} s of {of:.1f} s of training ({100 * share:.1f} %).")
        if self.folder is not None:
            from pglab.agent import export

            if self._consistent:
                export(self.agent, self.config, self.folder.path / "agent.safetensors")
            if self.finished:
                self.folder.write_results({**trained.results(), **self.folder.tuned()})
        return trained

    def trained(self) -> Trained:
        """What there is to give back at this moment."""
        seconds = dict(self.seconds)
        seconds["training"] = seconds["total"] - seconds["evaluation"] - seconds["measurement"]
        members = [{"seed": m.seed, **m.overrides} for m in self.population.members]
        folder = None if self.folder is None else self.folder.path
        return Trained(folder, self.agent, self.evaluations, self.measurements, seconds, self.finished, members)

    def _before_update(self) -> None:
        total = self.config.total_steps
        progress = [min(1.0, s / total) for s in self.steps.tolist()]
        done = self.steps >= total
        active = None
        if done.any():
            # A member that has had its steps stays as it is while others go on: its rate is 0 from here.
            active = torch.tensor(~done, dtype=torch.float32, device=self.device).unsqueeze(1)
        self.agent.begin_update(progress, active)
        self._look()

    def _update(self) -> tuple[dict[str, Any], Rollout]:
        metrics, rollout = self.agent.update(self.env, self.count)
        self.steps += self.made.cpu().numpy()
        return metrics, rollout

    def count(self, rollout: Rollout) -> None:
        """Add up the episodes that ended, and count the steps that were made."""
        whole = self.agent.steps_per_update is None  # they start and end within the batch
        running = torch.zeros_like(rollout.reward[0]) if whole else self.running
        total, length, count, running = episode_sums(rollout, running)
        if not whole:
            self.running.copy_(running)
        self.finished_sum += torch.stack([total, length, count])
        self.made.copy_(rollout.valid.sum((0, 2)))

    def _after_update(self, metrics: dict[str, Any]) -> None:
        at = int(self.steps.min())
        if at >= self.next_log or at >= self.config.total_steps:
            self._log(metrics)
            while self.next_log <= at:
                self.next_log += self.config.log_every
        if at >= self.next_checkpoint:
            while self.next_checkpoint <= at:
                self.next_checkpoint += self.config.checkpoint.every
            self.save()

    def _log(self, metrics: dict[str, Any]) -> None:
        returns, lengths, episodes = self.finished_sum.cpu().double().numpy()
        with np.errstate(invalid="ignore", divide="ignore"):
            values: dict[str, Any] = {
                "charts/episodic_return": np.where(episodes > 0, returns / episodes, np.nan),
                "charts/episodic_length": np.where(episodes > 0, lengths / episodes, np.nan),
            }
        values["charts/steps"] = self.steps.astype(np.float64)
        now, total = time.perf_counter(), int(self.steps.sum())
        rate = (total - self._clock_steps) / max(now - self._clock, 1e-9)
        values["charts/SPS"] = rate
        self._clock, self._clock_steps = now, total
        values["charts/learning_rate"] = self.agent.rate().squeeze(1)
        values["charts/progress"] = np.array(self.agent.progress)
        with torch.no_grad():
            found = {tag: value() if callable(value) else value for tag, value in metrics.items()}
        histograms = {tag: found.pop(tag) for tag in HISTOGRAMS if tag in found}
        values |= found
        self._check_finite(found)
        if self.probe is not None:
            values |= self.probe.take()
        step = int(self.steps.mean())
        if self.tracker is not None:
            self.tracker.log(step, values, histograms=histograms)
            self.tracker.flush()
        recent = values["charts/episodic_return"]
        shown = float(iqm(recent[~np.isnan(recent)])) if (~np.isnan(recent)).any() else None
        self._show(shown, rate)
        self.finished_sum.zero_()
        self.logged += 1

    def _show(self, value: float | None, rate: float | None) -> None:
        """Tell the watcher where all members together are."""
        total = self.config.total_steps
        done = int(np.minimum(self.steps, total).sum())
        self.watcher.progress(done, total * len(self.population), value, rate)

    _warned = False

    def _check_finite(self, metrics: dict[str, Any]) -> None:
        norm = metrics.get("gradient/norm")
        if norm is None or self._warned:
            return
        bad = [m for m, ok in zip(self.population.members, torch.isfinite(norm).tolist(), strict=True) if not ok]
        if bad:
            names = ", ".join(MemberLabel(m.seed, m.overrides).name for m in bad)
            self.watcher.note(f"The gradient is no longer finite for {names}: try a smaller learning rate or clipping.")
            self._warned = True

    # -- looking at the policy

    def _look(self) -> None:
        """Evaluate and measure what is due, in environments of their own."""
        for look, agent, steps in self.stages.ready(self.agent, self.steps, self.config.total_steps):
            began = time.perf_counter()
            if look.kind == "evaluation":
                self._evaluate(look, agent, steps)
            elif look.kind == "measurement":
                self._measure(look, agent, steps)
            else:
                self._keep(look, agent, steps)
                continue
            self.seconds[look.kind] += time.perf_counter() - began

    def _keep(self, look: Look, agent: Agent, steps: list[int]) -> None:
        """Keep what the agent is now, for `pglab variance`. An agent that cannot be measured there is not kept."""
        c = self.config.snapshots
        if self.folder is not None and isinstance(agent, OnPolicyAgent | ActorCriticAgent):
            snapshots.save(self.folder.snapshots, look.number, c.at[look.number], steps, agent, c.transitions)

    def _evaluate(self, look: Look, agent: Agent, steps: list[int]) -> None:
        c, members = self.config.evaluation, len(self.population)
        if look.number == FINAL:
            with closing(self.environment(members, c.final_episodes, training=False)) as env:
                returns, lengths = evaluate(agent, env, look.number, c.deterministic)
        else:
            if self.evaluator is None:
                executor = self.agent.executor.another()
                executor.note = self.watcher.note
                env = self.environment(members, c.episodes, training=False)
                self.evaluator = Evaluator(env, c.deterministic, executor)
            returns, lengths = self.evaluator(agent, look.number)
        self.evaluations.append({"steps": steps, "returns": returns.tolist()})
        if self.tracker is not None:
            means = {"eval/return": returns.mean(1), "eval/length": lengths.mean(1)}
            self.tracker.log(int(np.mean(steps)), means)
        self._show(float(iqm(returns.mean(1))), None)

    def _measure(self, look: Look, agent: Agent, steps: list[int]) -> None:
        m, n = self.config.measurement, self.config.env.num_envs
        found = measure(agent, lambda p: self.environment(p, n, training=False), m.replicates, look.number)
        fraction, step = m.at[look.number], int(np.mean(steps))
        stage = STAGES.get(fraction, f"{fraction:g}")
        self.measurements.append({"stage": stage, "step": step, "steps": steps, "replicates": m.replicates, **found})
        if self.tracker is not None:
            names = {"low": "nsr_low", "high": "nsr_high"}
            self.tracker.log(step, {f"gradient/{names.get(k, k)}": np.array(v) for k, v in found.items()})


def train(
    config: Config | dict[str, Any],
    folder: str | Path | None = None,
    command: str | Sequence[str] = "python",
    watcher: Watcher | None = None,
    tuned: dict[str, Any] | None = None,
    part: opening.Part | None = None,
) -> Trained:
    """Train a population.

    Args:
        config: a `Config`, or the mapping a YAML file holds.
        folder: where to keep the run (made; must not hold anything); None keeps nothing.
        command: recorded in the folder.
        watcher: who is told how far it is.
        tuned: how settings were tuned before, kept with the results.
        part: what the run is of a comparison.

    Raises:
        PglabError: for any mistake in the config, or when the disk refuses.
    """
    config = Config.read(config)
    trainer = Trainer(config, None, watcher)
    trainer.part = part
    if folder is not None:
        plain = config.plain()
        # What was chosen once is kept, so that a resumed run goes on the same way.
        plain["threads"] = trainer.threads
        plain["env"]["vectorization"] = getattr(trainer.env, "vectorization", config.env.vectorization)
        trainer.folder = RunFolder.create(folder, plain, command)
        if tuned:
            write_json(trainer.folder.path / "tuned.json", tuned)
    return trainer.run()


def resume(folder: str | Path, watcher: Watcher | None = None, overrides: dict[str, Any] | None = None) -> Trained:
    """Go on with a run from its newest readable checkpoint. Raises PglabError when there is none."""
    run = RunFolder.open(folder)
    data = run.config()
    config = Config.read(data | (overrides or {}), where=str(run.config_path))
    found = checkpoint.checkpoints(run.checkpoints)
    if not found:
        raise PglabError(f"{run.path} has no checkpoint yet: start it again.")
    trainer = Trainer(config, run, watcher)
    for path in reversed(found):
        try:
            tree = checkpoint.load(path, trainer.device, trainer.replay)
        except PglabError:
            if path == found[0]:
                raise
            trainer.watcher.note(f"Checkpoint {path.name} cannot be read: going back to the one before.")
            continue
        trainer.restore(tree)
        checkpoint.drop_newer(path, trainer.replay)
        break
    return trainer.run()
