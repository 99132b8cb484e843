"""Every mistake of a user: one clear sentence on stderr, a non-zero exit, no traceback."""

from __future__ import annotations

from pathlib import Path

import pytest

from pglab.__main__ import main

NAN_ENV = '''
import gymnasium, numpy as np
import pglab

class Broken(gymnasium.Env):
    """Rewards or observations turn into NaN after ten steps; with "late", after 150 steps of all episodes."""

    action_space = gymnasium.spaces.Discrete(2)
    observation_space = gymnasium.spaces.Box(-1, 1, (2,))

    def __init__(self, what="reward"):
        self.what, self.played = what, 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return np.zeros(2, np.float32), {}

    def step(self, action):
        self.t += 1
        self.played += 1
        bad = self.played == 150 if self.what == "late" else self.t == 10
        obs = np.full(2, np.nan if bad and self.what == "observation" else 0.0, np.float32)
        return obs, float("nan") if bad and self.what != "observation" else 1.0, False, False, {}

class Texts(Broken):
    observation_space = gymnasium.spaces.Text(5)

for name, made in {"Broken": Broken, "Texts": Texts}.items():
    if f"bad/{name}-v0" not in gymnasium.registry:
        gymnasium.register(f"bad/{name}-v0", made, max_episode_steps=50)
'''

BASELINE = '''
import pglab

@pglab.register_baseline("seven")
class Seven(pglab.Baseline):
    """Seven."""

    def predict(self, state, batch):
        return batch.value * 0 + 7
'''


LATER = """
from __future__ import annotations
import pglab
from pglab.registry import Strict

@pglab.register_baseline("later")
class Later(pglab.Baseline):
    options: Options | None = None

    def predict(self, state, batch):
        return None

class Options(Strict):
    a: int = 3
"""

ODD = """
import pglab

class Odd:
    pass

@pglab.register_baseline("odd")
class OddOption(pglab.Baseline):
    x: Odd = Odd()

    def predict(self, state, batch):
        return None
"""


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken_env.py").write_text(NAN_ENV)
    (tmp_path / "seven.py").write_text(BASELINE)
    (tmp_path / "odd.py").write_text(ODD)
    (tmp_path / "later.py").write_text(LATER)
    (tmp_path / "list.yaml").write_text("- 1\n- 2\n")
    (tmp_path / "bad.yaml").write_text("env: {id: CartPole-v1\n")
    (tmp_path / "code.yaml").write_text('env: !!python/object/apply:os.mkdir ["ran"]\n')
    (tmp_path / "good.yaml").write_text("env: {id: CartPole-v1, num_envs: 2}\nseeds: 1\ntotal_steps: 200\n")
    (tmp_path / "notes").mkdir()
    (tmp_path / "empty.safetensors").write_bytes(b"")
    return tmp_path


CARTPOLE = ["train", "--env.id", "CartPole-v1", "--seeds", "1", "--total_steps", "200"]
BROKEN = ["train", "--env.id", "bad/Broken-v0", "--env.num_envs", "2", "--seeds", "1", "--plugin", "broken_env.py"]
CASES = {
    "unknown verb": (["trian"], "Unknown verb 'trian'", "Did you mean 'train'?"),
    "no environment": (["train"], "No environment", "--env.id"),
    "unknown environment": (["train", "--env.id", "CartPol-v1"], "CartPol-v1", "CartPole-v1"),
    "unknown estimator": ([*CARTPOLE, "--estimator", "score_funtion"], "score_funtion", "'score_function'"),
    "unknown baseline": ([*CARTPOLE, "--baseline", "vlaue"], "vlaue", "'value'"),
    "unknown agent": ([*CARTPOLE, "--agent", "onpolicy"], "onpolicy", "on_policy"),
    "estimator for other actions": ([*CARTPOLE, "--estimator", "pathwise"], "discrete actions", "score_function"),
    "blended continuous actions": (["train", "--env.id", "Pendulum-v1", "--estimator", "q_prop", "--agent.critic.blend", "0.5"], "agent.critic.blend", "discrete"),
    "one step an update": ([*CARTPOLE, "--estimator", "enumeration", "--agent.epochs", "4"], "agent.epochs", "score_function"),
    "baseline without its signal": ([*CARTPOLE, "--agent", "actor_critic", "--baseline", "value"], "needs v", "critic_mean"),
    "baseline not used": ([*CARTPOLE, "--agent", "actor_critic", "--estimator", "enumeration", "--baseline", "moving_average"], "uses no baseline", "score_function"),
    "misspelt key": ([*CARTPOLE, "--env.num_env", "3"], "'num_env'", "'num_envs'"),
    "misspelt option of a part": ([*CARTPOLE, "--estimator.temprature", "1"], "temprature", "score_function"),
    "value of the wrong type": ([*CARTPOLE, "--env.num_envs", "many"], "env.num_envs", "many"),
    "value out of range": ([*CARTPOLE, "--discount", "1.5"], "discount must lie in [0, 1]", "1.5"),
    "temperature zero": ([*CARTPOLE, "--estimator", "{name: gumbel_softmax, temperature: 0}"], "temperature", "above 0"),
    "no seeds": ([*CARTPOLE, "--seeds", "[1,1]"], "seeds", "different"),
    "no device": ([*CARTPOLE, "--device", "tpu9"], "tpu9", "cpu"),
    "setting without a value": (["train", "--env.id"], "--env.id needs a value", ""),
    "stray word": (["train", "good.yaml", "stray"], "stray", "--help"),
    "config that is a list": (["train", "list.yaml"], "list.yaml", "mapping"),
    "config that is no YAML": (["train", "bad.yaml"], "bad.yaml", "not valid YAML"),
    "config that would run code": (["train", "code.yaml"], "code.yaml", "not valid YAML"),
    "config that is not there": (["train", "missing.yaml"], "missing.yaml", "no config file"),
    "unknown shipped config": (["train", "cartpol/value"], "cartpol/value", "cartpole"),
    "unknown shipped variant": (["train", "cartpole/valu"], "cartpole/valu", "cartpole/monte_carlo/value"),
    "unknown comparison": (["compare", "cartpol"], "cartpol", "'cartpole'"),
    "unknown variant": (["compare", "cartpole", "--only", "valu"], "valu", "value"),
    "comparison of a config": (["compare", "good.yaml"], "good.yaml", "key 'env'"),
    "grid that is none": (["compare", "cartpole", "--tune", "learning_rate"], "learning_rate", "list"),
    "grid of words": (["compare", "cartpole", "--tune", "learning_rate=[abc]"], "numbers", "abc"),
    "layer without units": ([*CARTPOLE, "--policy.hidden", "[0]"], "hidden", "greater than or equal to 1"),
    "negative clipping": ([*CARTPOLE, "--max_grad_norm", "-1"], "max_grad_norm", "greater than 0"),
    "measurement past the end": ([*CARTPOLE, "--measurement.at", "[2.0]"], "measurement.at", "less than or equal to 1"),
    "environment that imports": ([*CARTPOLE, "--env.id", "os:CartPole-v1"], "names a module to import", "--plugin os"),
    "NaN reward": (BROKEN, "reward nan", "bad/Broken-v0"),
    "NaN observation": ([*BROKEN, "--env.kwargs", "{what: observation}"], "bad/Broken-v0", "observation"),
    "unsupported space": (["train", "--env.id", "bad/Texts-v0", "--plugin", "broken_env.py"], "Text", "Box"),
    "plug-in that is not there": ([*CARTPOLE, "--plugin", "missing.py"], "missing.py", "does not exist"),
    "plug-in with an option of no known type": ([*CARTPOLE, "--plugin", "odd.py"], "'odd.py' could not be loaded", "Odd"),
    "run folder that is not there": (["evaluate", "nowhere"], "nowhere", "no run folder"),
    "folder that is no run": (["evaluate", "notes"], "notes", "not a run folder"),
    "file that is no agent": (["evaluate", "empty.safetensors"], "empty.safetensors", "not an agent file"),
    "resume of nothing": (["resume", "notes"], "notes", "not a run folder"),
    "no episodes": (["evaluate", "notes", "--episodes", "0"], "--episodes", "at least 1"),
    "list of nothing": (["list", "estimator"], "estimator", "estimators"),
}  # fmt: skip


@pytest.mark.parametrize("case", list(CASES))
def test_a_mistake_is_one_clear_sentence(case: str, files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments, *parts = CASES[case]
    assert main(list(arguments)) == 2
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("pglab: error: ")]
    assert len(said) == 1
    for part in parts:
        assert part in said[0]
    assert not (files / "ran").exists()


def test_a_mistake_leaves_no_empty_run_folder(files: Path) -> None:
    assert main([*CARTPOLE, "--estimator", "pathwise"]) == 2
    assert not (files / "runs").exists() or not list((files / "runs").iterdir())


def test_a_run_made_with_a_plug_in_names_it_when_it_is_missing(
    files: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from pglab.baselines import BASELINES

    monkeypatch.setattr(BASELINES, "_classes", dict(BASELINES._classes))  # what is registered is forgotten afterwards
    assert main([*CARTPOLE, "--baseline", "seven", "--plugin", "seven.py", "--quiet"]) == 0
    (folder,) = (files / "runs").iterdir()
    del BASELINES._classes["seven"]
    assert main(["evaluate", str(folder)]) == 2
    assert "--plugin seven.py" in capsys.readouterr().err


def test_options_may_be_of_a_class_that_comes_later(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pglab.baselines import BASELINES

    monkeypatch.setattr(BASELINES, "_classes", dict(BASELINES._classes))
    baseline = ["--baseline", "{name: later, options: {a: 5}}"]
    assert main([*CARTPOLE, *baseline, "--plugin", "later.py", "--quiet"]) == 0
    (folder,) = (files / "runs").iterdir()
    assert "a: 5" in (folder / "config.yaml").read_text()


def test_an_environment_that_fails_late_leaves_what_was_saved(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        main(
            [
                *BROKEN,
                "--env.kwargs",
                "{what: late}",
                "--agent.steps",
                "2",
                "--checkpoint.every",
                "8",
                "--log_every",
                "4",
            ]
        )
        == 2
    )
    (folder,) = (files / "runs").iterdir()
    assert sorted((folder / "checkpoints").glob("*.pt"))
    assert (folder / "log.csv").read_text().count("\n") > 1
