"""The training loop as a whole: resume, member independence, saving, interruption."""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from pglab import checkpoint
from pglab.config import Config, merge
from pglab.errors import PglabError
from pglab.tracking import read_log
from pglab.training import Trainer, resume, train
from pglab.watching import Watcher

STEPS: dict[str, Any] = {
    "env": {"id": "CartPole-v1", "num_envs": 4},
    "baseline": "value",
    "agent": {"name": "on_policy", "steps": 8, "returns": {"name": "gae"}},
    "preprocessing": {"normalize_observations": True, "normalize_returns": True},
    "learning_rate": {"kind": "linear", "start": 3e-3, "end": 0.0},
    "entropy_weight": 0.01,
    "max_grad_norm": 0.5,
    "seeds": 3,
    "total_steps": 1600,
    "log_every": 160,
    "evaluation": {"every": 400, "episodes": 2, "final_episodes": 2},
    "checkpoint": {"every": 320, "keep": 10},
}
EPISODES = merge(
    STEPS, {"agent": {"collect": "episodes", "returns": {"name": "monte_carlo"}}, "baseline": "leave_one_out"}
)
EPOCHS = merge(STEPS, {"agent": {"epochs": 2, "minibatches": 2, "normalize_advantages": True}})
REPLAY: dict[str, Any] = merge(
    {k: v for k, v in STEPS.items() if k not in ("agent", "baseline")},
    {
        "env": {"num_envs": 2},
        "estimator": {"name": "gumbel_softmax", "temperature": {"kind": "linear", "start": 1.0, "end": 0.5}},
        "agent": {
            "name": "actor_critic",
            "critic": {"target_action": "expectation", "blend": 0.3},
            "replay": {"batch_size": 16, "warmup": 200, "capacity": 500},
        },
        "total_steps": 1200,
    },
)
PENDULUM: dict[str, Any] = merge(
    {k: v for k, v in STEPS.items() if k not in ("agent", "baseline")},
    {
        "env": {"id": "Pendulum-v1", "num_envs": 1},
        "estimator": "pathwise",
        "agent": {"name": "actor_critic", "auto_entropy": True, "replay": {"batch_size": 16, "warmup": 100}},
        "total_steps": 800,
    },
)
# Estimators that learn, want further noise, and combine returns with a critic of the on-policy agent's.
LEARNED = merge(STEPS, {"estimator": "rebar", "agent": {"critic": {"blend": 0.5}, "critic_updates": 2}})
REPLAY_LEARNED = merge(REPLAY, {"estimator": {"name": "relax", "temperature": 0.5}})
PER_PARAMETER = merge(EPISODES, {"baseline": "optimal_per_parameter"})
V_TRACE = merge(
    STEPS,
    {"estimator": "importance_weighted", "agent": {"epochs": 2, "minibatches": 2, "returns": {"name": "v_trace"}}},
)
GYM = {"env": {"backend": "gymnasium"}}
TIME_TAGS = {"charts/SPS"}


class Stop(Exception):
    """Stands for whatever ends a process without a chance to save."""


def logged(folder: Path) -> dict[str, dict[str, tuple[list[int], list[float]]]]:
    found = {
        tag: {m: (s.steps.tolist(), s.values.tolist()) for m, s in members.items()}
        for tag, members in read_log(folder).items()
        if tag not in TIME_TAGS
    }
    assert found
    return found


def final_state(folder: Path) -> dict[str, Any]:
    path = checkpoint.checkpoints(folder / "checkpoints")[-1]
    return torch.load(path, weights_only=True)["agent"]


def assert_same(a: Any, b: Any, where: str = "") -> None:
    assert type(a) is type(b), where
    if isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_same(a[key], b[key], f"{where}/{key}")
    elif isinstance(a, torch.Tensor):
        assert torch.equal(a, b), where
    elif isinstance(a, list):
        assert len(a) == len(b), where
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_same(x, y, f"{where}[{i}]")
    else:
        assert a == b or (a != a and b != b), where


def killed_after(config: dict[str, Any], folder: Path, checkpoints: int) -> None:
    """Train until so many checkpoints are written, go on for a few updates, and stop without saving."""
    trainer = Trainer(Config.read(config))
    from pglab.tracking import RunFolder

    trainer.folder = RunFolder.create(folder, Config.read(config).plain(), "test")
    save, update = trainer.save, trainer.agent.update
    count = {"saved": 0, "after": 0}

    def counted_save() -> Path | None:
        if count["saved"] >= checkpoints:
            raise Stop  # nothing more reaches the disk
        count["saved"] += 1
        return save()

    def counted_update(env: Any, counted: Any) -> Any:
        count["after"] += count["saved"] >= checkpoints
        if count["after"] > 3:
            raise Stop
        return update(env, counted)

    trainer.save = counted_save  # type: ignore[method-assign]
    trainer.agent.update = counted_update  # type: ignore[method-assign]
    with pytest.raises(Stop):
        trainer.run()


@pytest.mark.parametrize(
    "config",
    [
        pytest.param(STEPS, id="steps-torch"),
        pytest.param(merge(STEPS, GYM), id="steps-gymnasium"),
        pytest.param(
            merge(merge(STEPS, GYM), {"env": {"autoreset_mode": "next_step"}}), id="steps-gymnasium-next_step"
        ),
        pytest.param(EPISODES, id="episodes-torch"),
        pytest.param(merge(EPISODES, GYM), id="episodes-gymnasium"),
        pytest.param(EPOCHS, id="epochs"),
        pytest.param(REPLAY, id="replay-torch"),
        pytest.param(LEARNED, id="steps-rebar"),
        pytest.param(REPLAY_LEARNED, id="replay-relax"),
        pytest.param(PER_PARAMETER, id="episodes-optimal-per-parameter"),
        pytest.param(V_TRACE, id="epochs-v-trace"),
        pytest.param(merge(REPLAY, GYM), id="replay-gymnasium"),
        pytest.param(PENDULUM, id="sac-torch"),
        pytest.param(merge(PENDULUM, GYM), id="sac-gymnasium"),
    ],
)
def test_a_run_killed_after_a_checkpoint_and_resumed_equals_the_uninterrupted_one_bit_for_bit(
    config: dict[str, Any], tmp_path: Path
) -> None:
    whole = train(config, tmp_path / "whole")
    killed_after(config, tmp_path / "broken", checkpoints=2)
    again = resume(tmp_path / "broken")
    assert again.finished
    assert_same(final_state(tmp_path / "whole"), final_state(tmp_path / "broken"))
    assert logged(tmp_path / "whole") == logged(tmp_path / "broken")
    assert whole.evaluations == again.evaluations


def test_a_measurement_changes_nothing_and_survives_a_resume(tmp_path: Path) -> None:
    config = merge(STEPS, {"measurement": {"at": [0, 0.5, 1], "replicates": 4}})
    plain = train(STEPS)
    measured = train(config, tmp_path / "whole")
    assert_same(plain.agent.state(), measured.agent.state())
    killed_after(config, tmp_path / "broken", checkpoints=3)
    again = resume(tmp_path / "broken")
    assert [m["stage"] for m in again.measurements] == ["start", "middle", "end"]
    assert measured.measurements == again.measurements


def _train_slowly(folder: str) -> None:
    torch.set_num_threads(1)
    train(merge(STEPS, {"total_steps": 1_000_000, "checkpoint": {"every": 640, "keep": 3}}), folder)


def test_kill_9_leaves_readable_checkpoints_and_the_resumed_run_equals_the_uninterrupted_one(tmp_path: Path) -> None:
    folder = tmp_path / "killed"
    process = multiprocessing.get_context("spawn").Process(target=_train_slowly, args=(str(folder),))
    process.start()
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and len(checkpoint.checkpoints(folder / "checkpoints")) < 2:
        time.sleep(0.01)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    reached = int(torch.load(checkpoint.checkpoints(folder / "checkpoints")[-1], weights_only=True)["loop"]["steps"][0])
    goal = reached + 960
    # The schedule depends on total_steps, so both go on under the one the killed run had.
    config = Config.read(merge(STEPS, {"total_steps": 1_000_000, "checkpoint": {"every": 640, "keep": 3}}))

    def until_goal(trainer: Trainer) -> dict[str, Any]:
        while trainer.steps.min() < goal:
            trainer._before_update()
            trainer._update()
        return checkpoint.plain(trainer.agent.state())

    resumed, fresh = Trainer(config), Trainer(config)
    resumed.restore(checkpoint.load(checkpoint.checkpoints(folder / "checkpoints")[-1], resumed.device, None))
    assert_same(until_goal(resumed), until_goal(fresh))


SWEEP = {"learning_rate": [3e-3, 1e-4], "discount": [0.99, 0.9]}


@pytest.mark.parametrize(
    ("config", "sweep"),
    [
        pytest.param(merge(EPISODES, {"total_steps": 100_000}), SWEEP, id="episodes"),
        pytest.param(merge(STEPS, {"total_steps": 100_000}), SWEEP, id="steps"),
        pytest.param(merge(REPLAY, {"total_steps": 100_000, "entropy_weight": 0.02}), SWEEP, id="replay"),
        pytest.param(merge(LEARNED, {"total_steps": 100_000}), SWEEP, id="steps-rebar"),
        pytest.param(merge(REPLAY_LEARNED, {"total_steps": 100_000}), SWEEP, id="replay-relax"),
        pytest.param(merge(PER_PARAMETER, {"total_steps": 100_000}), SWEEP, id="episodes-optimal-per-parameter"),
    ],
)
def test_a_member_alone_equals_the_same_member_in_a_population(config: dict[str, Any], sweep: dict[str, Any]) -> None:
    """Executed actions exactly, parameters to 1e-4 relative, after 20 updates, with per-member clipping."""
    data = merge(merge(config, sweep), {"seeds": [5, 9]})
    alone = merge(config, {"seeds": [9], "learning_rate": 1e-4, "discount": 0.99})
    many, one = Trainer(Config.read(data)), Trainer(Config.read(alone))
    assert len(many.population) == 8
    (index,) = [
        i
        for i, m in enumerate(many.population.members)
        if m.seed == 9 and m.overrides == {"learning_rate": 1e-4, "discount": 0.99}
    ]
    updates = 20
    while one.agent.updates < updates:
        for trainer in (many, one):
            trainer._before_update()
        _, crowd = many._update()
        _, single = one._update()
        t = len(single)
        valid = single.valid[:, 0]
        assert torch.equal(crowd.valid[:t, index], valid)
        assert not crowd.valid[t:, index].any()
        assert torch.equal(crowd.action[:t, index][valid], single.action[:, 0][valid])
    assert many.agent.updates == updates
    for name, parameters in one.agent.networks().items():
        ours, theirs = parameters.flat[0], many.agent.networks()[name].flat[index]
        assert torch.linalg.vector_norm(ours - theirs) <= 1e-4 * torch.linalg.vector_norm(ours), name


@pytest.mark.parametrize("changes", [{}, {"agent": {"epochs": 2, "minibatches": 3}}], ids=["plain", "minibatches"])
def test_a_whole_run_of_a_member_alone_equals_that_in_a_population(changes: dict[str, Any]) -> None:
    """Whole episodes: members are done at different updates, so what is evaluated, measured and normalised must not
    depend on how long the others go on."""
    config = merge(merge(EPISODES, {"total_steps": 700, "measurement": {"at": [0, 0.5, 1], "replicates": 4}}), changes)
    crowd = train(merge(config, {"seeds": [4, 5, 6, 7]}))
    for index, seed in enumerate([4, 7]):
        member = [0, 3][index]
        alone = train(merge(config, {"seeds": [seed]}))
        ours = [(e["steps"][member], e["returns"][member]) for e in crowd.evaluations]
        theirs = [(e["steps"][0], e["returns"][0]) for e in alone.evaluations]
        # A look that the crowd needs for others' sake may repeat this member's.
        assert [x for i, x in enumerate(theirs) if i == 0 or x[0] != theirs[i - 1][0]][-1] == ours[-1]
        assert dict(theirs).items() <= dict(ours).items()
        for a, b in zip(crowd.measurements, alone.measurements, strict=True):
            assert a["steps"][member] == b["steps"][0]
            assert a["trace_variance"][member] == pytest.approx(b["trace_variance"][0], rel=1e-3)
        for name, parameters in alone.agent.networks().items():
            ours_flat = crowd.agent.networks()[name].flat[member]
            assert torch.linalg.vector_norm(ours_flat - parameters.flat[0]) <= 1e-4 * torch.linalg.vector_norm(
                ours_flat
            )


def test_members_stop_at_their_own_number_of_steps() -> None:
    """With whole episodes members collect at different speeds; one that is done stays as it is."""
    config = merge(EPISODES, {"total_steps": 600, "learning_rate": 1e-2, "seeds": 4})
    trainer = Trainer(Config.read(config))
    frozen: dict[int, torch.Tensor] = {}
    while trainer.steps.min() < 600:
        trainer._before_update()
        for p in np.flatnonzero(trainer.steps >= 600):
            frozen.setdefault(int(p), trainer.agent.policy_parameters.flat[p].clone())
        trainer._update()
    assert frozen
    for p, flat in frozen.items():
        assert torch.equal(trainer.agent.policy_parameters.flat[p], flat)


def test_ctrl_c_saves_and_the_resumed_run_equals_the_uninterrupted_one(tmp_path: Path) -> None:
    whole = train(STEPS, tmp_path / "whole")
    seen = []

    def progress(step: int, *_: Any) -> None:
        seen.append(step)
        if len(seen) == 6:
            os.kill(os.getpid(), signal.SIGINT)

    stopped = train(STEPS, tmp_path / "broken", watcher=Watcher(progress=progress))
    assert not stopped.finished
    assert not (tmp_path / "broken" / "results.json").exists()
    again = resume(tmp_path / "broken")
    assert again.finished
    assert_same(final_state(tmp_path / "whole"), final_state(tmp_path / "broken"))
    assert logged(tmp_path / "whole") == logged(tmp_path / "broken")
    assert json.loads((tmp_path / "broken" / "results.json").read_text())["evaluations"] == whole.evaluations


def test_an_unreadable_newest_checkpoint_falls_back_to_the_one_before(tmp_path: Path) -> None:
    train(STEPS, tmp_path / "whole")
    killed_after(STEPS, tmp_path / "broken", checkpoints=3)
    newest = checkpoint.checkpoints(tmp_path / "broken" / "checkpoints")[-1]
    newest.write_bytes(newest.read_bytes()[:100])
    notes: list[str] = []
    again = resume(tmp_path / "broken", Watcher(note=notes.append))
    assert again.finished
    assert any("cannot be read" in note for note in notes)
    assert_same(final_state(tmp_path / "whole"), final_state(tmp_path / "broken"))


def test_a_checkpoint_never_runs_code(tmp_path: Path) -> None:
    import pickle

    class Payload:
        def __reduce__(self) -> Any:
            return (os.mkdir, (str(tmp_path / "ran"),))

    killed_after(STEPS, tmp_path / "broken", checkpoints=1)
    for path in checkpoint.checkpoints(tmp_path / "broken" / "checkpoints"):
        path.write_bytes(pickle.dumps(Payload()))
    with pytest.raises(PglabError, match="cannot be read"):
        resume(tmp_path / "broken")
    assert not (tmp_path / "ran").exists()


def test_a_full_disk_during_a_checkpoint_is_one_sentence_and_earlier_ones_stay_readable(tmp_path: Path) -> None:
    process = multiprocessing.get_context("spawn").Process(target=_fill_the_disk, args=(str(tmp_path),))
    process.start()
    process.join(120)
    assert process.exitcode == 0
    message = (tmp_path / "message").read_text()
    assert message.startswith("Cannot write ")
    assert message.count("\n") == 0
    found = checkpoint.checkpoints(tmp_path / "run" / "checkpoints")
    assert found
    assert torch.load(found[-1], weights_only=True)["loop"]["steps"][0] > 0
    assert not list((tmp_path / "run" / "checkpoints").glob("*.tmp"))


def _fill_the_disk(root: str) -> None:
    import resource

    torch.set_num_threads(1)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    saves = []
    real = checkpoint.save

    def save(*arguments: Any) -> Path:
        if len(saves) == 2:
            resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, resource.RLIM_INFINITY))
        saves.append(1)
        return real(*arguments)

    checkpoint.save = save
    try:
        train(STEPS, Path(root) / "run")
    except PglabError as error:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        (Path(root) / "message").write_text(str(error))


def test_replay_segments_are_append_only_and_the_ones_no_checkpoint_needs_are_dropped(tmp_path: Path) -> None:
    config = merge(REPLAY, {"checkpoint": {"every": 200, "keep": 2}})
    train(config, tmp_path / "run")
    folder = tmp_path / "run" / "checkpoints"
    kept = checkpoint.checkpoints(folder)
    assert len(kept) == 2
    needed = set().union(*(torch.load(p, weights_only=True)["segments"] for p in kept))
    present = {p.name for p in folder.glob("*.safetensors")}
    assert present == needed
    ranges = sorted(tuple(map(int, checkpoint.SEGMENT.match(n).groups())) for n in present)  # type: ignore[union-attr]
    for (_, stop), (start, _) in itertools.pairwise(ranges):
        assert stop == start


def test_a_finished_run_goes_on_when_it_is_given_more_steps_and_ends_with_a_final_evaluation(tmp_path: Path) -> None:
    config = merge(STEPS, {"evaluation": {"episodes": 2, "final_episodes": 5}, "learning_rate": 1e-3})
    first = train(config, tmp_path / "run")
    assert len(first.evaluations[-1]["returns"][0]) == 5
    more = resume(tmp_path / "run", overrides={"total_steps": 2400})
    assert more.finished
    assert min(more.evaluations[-1]["steps"]) >= 2400
    assert len(more.evaluations[-1]["returns"][0]) == 5
    again = resume(tmp_path / "run", overrides={"total_steps": 2400})
    assert again.evaluations == more.evaluations  # nothing is left to do


def test_falling_back_drops_the_damaged_checkpoint_so_that_it_cannot_crowd_out_good_ones(tmp_path: Path) -> None:
    config = merge(STEPS, {"checkpoint": {"keep": 2}})
    killed_after(config, tmp_path / "broken", checkpoints=2)
    folder = tmp_path / "broken" / "checkpoints"
    newest = checkpoint.checkpoints(folder)[-1]
    newest.write_bytes(b"damaged")
    resume(tmp_path / "broken")
    for path in checkpoint.checkpoints(folder):
        torch.load(path, weights_only=True)


def test_a_config_that_no_longer_fits_the_checkpoint_is_one_sentence(tmp_path: Path) -> None:
    killed_after(STEPS, tmp_path / "run", checkpoints=1)
    with pytest.raises(PglabError, match=r"does not fit the config: its policy network"):
        resume(tmp_path / "run", overrides={"policy": {"hidden": [8]}})
    with pytest.raises(PglabError, match="normalisation was changed"):
        resume(tmp_path / "run", overrides={"preprocessing": {}})


def test_an_estimator_whose_learned_state_the_checkpoint_lacks_is_one_sentence(tmp_path: Path) -> None:
    train(merge(STEPS, {"estimator": {"name": "rebar", "learn": False}, "total_steps": 320}), tmp_path / "run")
    path = tmp_path / "run" / "config.yaml"
    data = yaml.safe_load(path.read_text())
    data["estimator"]["learn"], data["total_steps"] = True, 640
    path.write_text(yaml.safe_dump(data))
    with pytest.raises(PglabError, match="estimator 'rebar' has learned, optimizer"):
        resume(tmp_path / "run")


def test_episodes_that_cannot_be_gone_on_with_begin_again_for_the_agent_too() -> None:
    """An asynchronous environment cannot be resumed exactly: the agent starts from what the environment shows."""
    config = merge(
        merge(STEPS, GYM), {"env": {"vectorization": "async", "num_envs": 2}, "seeds": 1, "total_steps": 10**6}
    )
    trainer = Trainer(Config.read(config))
    try:
        for _ in range(3):
            trainer._before_update()
            trainer._update()
        assert trainer.running.any()
        tree = checkpoint.plain(
            {
                "agent": trainer.agent.state(),
                "environment": trainer.env.get_state(),
                "loop": {
                    "steps": trainer.steps.tolist(),
                    "running": trainer.running,
                    "finished_sum": trainer.finished_sum,
                    "next": [0, 0],
                    "stages": trainer.stages.state(),
                    "evaluations": [],
                    "measurements": [],
                    "logged": 1,
                    "finished": False,
                    "seconds": trainer.seconds,
                },
                "positions": {},
            }
        )
        trainer.restore(tree)
        assert not trainer.running.any()
        assert trainer.agent.position is not None
        assert not trainer.agent.position.time.any()
        assert torch.equal(trainer.agent.position.obs, trainer.env.set_state(tree["environment"]).obs)
    finally:
        trainer.env.close()
        if trainer.evaluator is not None:
            trainer.evaluator.env.close()


@pytest.mark.parametrize("mode", ["next_step", "same_step"])
def test_measuring_works_in_every_autoreset_mode(mode: str) -> None:
    config = merge(merge(STEPS, GYM), {"env": {"autoreset_mode": mode, "num_envs": 2}, "total_steps": 100, "seeds": 1})
    config = merge(config, {"env": {"max_episode_steps": 20}, "measurement": {"at": [0], "replicates": 4}})
    assert np.isfinite(train(config).measurements[0]["trace_variance"]).all()
