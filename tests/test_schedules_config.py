"""Schedules, registries and the config: what is read, refused, merged and written back."""

from __future__ import annotations

import math

import pytest
import torch
import yaml
from spine import pairs

from pglab.baselines import BASELINES
from pglab.config import ActorCriticConfig, Config, OnPolicyConfig, merge, override, read_yaml
from pglab.errors import PglabError, unknown
from pglab.estimators import ESTIMATORS, Enumeration, GumbelSoftmax, ScoreFunction, register_estimator
from pglab.population import Population, swept_fields
from pglab.registry import Registry
from pglab.schedules import Schedule

ENV = {"env": {"id": "CartPole-v1"}}


def read(**more) -> Config:
    return Config.read(ENV | more)


@pytest.mark.parametrize(
    ("schedule", "values"),
    [
        (Schedule(start=3.0), [3.0, 3.0, 3.0, 3.0]),
        (Schedule(kind="linear", start=1.0, end=0.0), [1.0, 0.75, 0.5, 0.0]),
        (Schedule(kind="linear", start=1.0, end=0.0, until=0.5), [1.0, 0.5, 0.0, 0.0]),
        (Schedule(kind="exponential", start=1.0, end=1e-4), [1.0, 0.1, 0.01, 1e-4]),
        (Schedule(kind="cosine", start=2.0, end=0.0), [2.0, 1 + math.cos(math.pi / 4), 1.0, 0.0]),
    ],
)
def test_schedules_at_quarters(schedule, values):
    assert [schedule(x) for x in (0.0, 0.25, 0.5, 1.0)] == pytest.approx(values)
    assert schedule(1.7) == pytest.approx(values[-1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "linear", "start": 1.0}, "needs 'end'"),
        ({"kind": "exponential", "start": 0.0, "end": 1.0}, "above 0"),
        ({"kind": "exponential", "start": 1.0, "end": -1.0}, "above 0"),
        ({"kind": "linear", "start": 1.0, "end": 0.0, "until": 0.0}, "until"),
        ({"kind": "linear", "start": 1.0, "end": 0.0, "until": 1.5}, "until"),
    ],
)
def test_impossible_schedules_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Schedule(**options)


def test_numbers_as_yaml_reads_them():
    data = yaml.safe_load("env: {id: CartPole-v1}\nlearning_rate: 1e-3\nmax_grad_norm: 5e-1\ntotal_steps: 1000")
    assert isinstance(data["learning_rate"], str)  # YAML 1.1 does not know 1e-3
    config = Config.read(data)
    assert config.learning_rate == [Schedule(start=1e-3)]
    assert config.max_grad_norm == 0.5
    swept = read(learning_rate=["1e-3", 0.1, {"kind": "linear", "start": "1e-2", "end": 0}])
    assert [s.start for s in swept.learning_rate] == [1e-3, 0.1, 1e-2]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"lerning_rate": 0.1}, "learning_rate"),
        ({"env": {"id": "X", "num_env": 3}}, "num_envs"),
        ({"estimator": "score_funktion"}, "Did you mean 'score_function'"),
        ({"estimator": {"name": "gumbel_softmax", "temprature": 1}}, "Did you mean 'temperature'"),
        ({"baseline": "valu"}, "Did you mean 'value'"),
        ({"agent": {"name": "on_policy", "step": 3}}, "steps"),
        ({"learning_rate": "fast"}, "learning_rate"),
        ({"learning_rate": True}, "learning_rate"),
        ({"learning_rate": -1.0}, "learning_rate"),
        ({"discount": 1.5}, "discount"),
        ({"seeds": [1, 1]}, "seeds"),
        ({"seeds": 0}, "seeds"),
        ({"total_steps": 0}, "total_steps"),
        ({"estimator": 3}, "estimator"),
        ({"estimator": {"name": "gumbel_softmax", "temperature": 0}}, "temperature"),
    ],
)
def test_mistakes_are_named(more, message):
    with pytest.raises(PglabError, match=message):
        read(**more)


CONFIGS = [
    {},
    {"estimator": "pathwise", "agent": {"name": "actor_critic"}, "seeds": [3, 5]},
    {"estimator": {"name": "gumbel_softmax", "temperature": [0.5, 1.0]}, "agent": {"name": "actor_critic"}},
    {"estimator": {"name": "gumbel_softmax", "temperature": {"kind": "exponential", "start": 1, "end": 0.1}}},
    {"baseline": {"name": "moving_average", "decay": 0.5}, "learning_rate": [1e-3, 1e-2], "discount": 1},
    {"agent": {"name": "on_policy", "returns": {"name": "gae", "lam": [0.9, 1.0]}, "value": {"hidden": [8]}}},
    {"policy": {"hidden": [], "log_std_bounds": [-3, 1]}, "optimizer": {"name": "sgd", "momentum": 0.9}},
    {"learning_rate": {"kind": "linear", "start": 0.1, "end": 0.0, "until": 0.5}},
]


@pytest.mark.parametrize("more", CONFIGS, ids=str)
def test_a_config_survives_being_written_and_read(more):
    config = read(**more)
    assert Config.read(config.plain()) == config
    assert Config.read(yaml.safe_load(yaml.safe_dump(config.plain()))) == config


@pytest.mark.parametrize("name", ESTIMATORS.names())
def test_every_estimator_survives_being_written_and_read(name):
    config = read(estimator=name)
    assert type(config.estimator) is ESTIMATORS.get(name)
    assert Config.read(config.plain()) == config
    assert config.plain()["estimator"]["name"] == name


@pytest.mark.parametrize("name", BASELINES.names())
def test_every_baseline_survives_being_written_and_read(name):
    config = read(baseline=name)
    assert type(config.baseline) is BASELINES.get(name)
    assert Config.read(config.plain()) == config


def test_parts_by_name_mapping_or_instance():
    assert read(estimator="enumeration").estimator == Enumeration()
    assert read(estimator={"name": "gumbel_softmax", "temperature": "5e-1"}).estimator == GumbelSoftmax(temperature=0.5)
    assert read(estimator=ScoreFunction()).estimator == ScoreFunction()
    assert isinstance(read(agent={"name": "on_policy"}).agent, OnPolicyConfig)
    assert isinstance(read(agent={"name": "actor_critic"}).agent, ActorCriticConfig)


def test_merging_goes_mapping_by_mapping():
    base = {"env": {"id": "A", "num_envs": 4}, "seeds": 8}
    assert merge(base, {"env": {"num_envs": 2}}) == {"env": {"id": "A", "num_envs": 2}, "seeds": 8}
    assert base["env"]["num_envs"] == 4


@pytest.mark.parametrize(
    ("old", "over", "new"),
    [
        ({"name": "a", "x": 1}, {"name": "b"}, {"name": "b"}),
        ({"name": "a", "x": 1}, {"name": "b", "y": 2}, {"name": "b", "y": 2}),
        ({"name": "a", "x": 1}, {"name": "a", "y": 2}, {"name": "a", "x": 1, "y": 2}),
        ({"name": "a", "x": 1}, {"y": 2}, {"name": "a", "x": 1, "y": 2}),
        ({"name": "a", "x": 1}, "b", "b"),
        ({"name": "a", "x": 1}, "a", {"name": "a", "x": 1}),
        ("a", {"x": 1}, {"name": "a", "x": 1}),
        ("a", {"name": "b", "x": 1}, {"name": "b", "x": 1}),
        ("a", {"name": "a", "x": 1}, {"name": "a", "x": 1}),
        ("a", "b", "b"),
    ],
)
def test_another_name_drops_a_parts_options_and_the_same_name_keeps_them(old, over, new):
    assert merge({"estimator": old}, {"estimator": over}) == {"estimator": new}


def test_overrides_by_dotted_path():
    data = ENV | {"estimator": {"name": "gumbel_softmax", "temperature": 1.0}, "agent": {"name": "actor_critic"}}
    config = Config.read(override(data, "estimator.temperature", [0.1, 0.2]))
    assert [s.start for s in config.estimator.temperature] == [0.1, 0.2]
    assert Config.read(override(data, "estimator", "score_function")).estimator == ScoreFunction()
    assert Config.read(override(data, "env.num_envs", 3)).env.num_envs == 3
    assert Config.read(override(data, "agent.replay.batch_size", 7)).agent.replay.batch_size == 7
    assert isinstance(Config.read(override(data, "agent", "on_policy")).agent, OnPolicyConfig)
    assert data["estimator"]["temperature"] == 1.0


def test_reading_yaml_files(tmp_path):
    file = tmp_path / "a.yaml"
    file.write_text("env: {id: CartPole-v1}\n")
    assert read_yaml(file) == ENV
    for text, message in [
        ("- 1\n", "mapping"),
        ("a: [1\n", "not valid YAML"),
        ("!!python/object:x.Y {}", "not valid YAML"),
    ]:
        file.write_text(text)
        with pytest.raises(PglabError, match=message):
            read_yaml(file)
    with pytest.raises(PglabError, match="cannot be read"):
        read_yaml(tmp_path / "none.yaml")


def test_a_name_is_registered_once():
    with pytest.raises(PglabError, match="taken"):

        @register_estimator("score_function")
        class Mine(ScoreFunction):
            pass

    assert ESTIMATORS.get("score_function") is ScoreFunction
    assert ESTIMATORS.get("score_function").name == "score_function"


def test_unknown_names_list_what_there_is_and_suggest_the_nearest():
    error = unknown("estimator", "reinforc", ["pathwise", "reinforce"])
    assert "pathwise, reinforce" in str(error)
    assert "Did you mean 'reinforce'?" in str(error)
    assert "Did you mean" not in str(unknown("estimator", "zzz", ["pathwise"]))
    with pytest.raises(PglabError, match="score_function"):
        ESTIMATORS.get("score_functions")
    assert isinstance(ESTIMATORS, Registry)


def test_every_estimator_serves_some_family_and_says_what_it_is():
    assert {n for n, _ in pairs()} == set(ESTIMATORS.names())
    for name in ESTIMATORS.names():
        cls = ESTIMATORS.get(name)
        assert cls.evaluations
        assert cls.paper
        assert cls.unbiased or cls.bias
        assert all(field in cls.model_fields for field in cls.scheduled)


def test_a_population_is_all_seeds_times_all_swept_values():
    config = read(
        seeds=[4, 2],
        learning_rate=[0.1, {"kind": "linear", "start": 0.2, "end": 0.0}],
        estimator={"name": "gumbel_softmax", "temperature": [0.5, 1.0]},
    )
    population = Population.of(config, torch.device("cpu"))
    assert len(population) == 8
    assert [m.seed for m in population.members] == [4, 2] * 4
    assert population.members[0].overrides == {"learning_rate": 0.1, "estimator.temperature": 0.5}
    rates = population.value("learning_rate", [0.5] * 8)[:, 0].tolist()
    assert rates == pytest.approx([0.1] * 4 + [0.1] * 4)
    later = population.value("learning_rate", [1.0] * 8)[:, 0].tolist()
    assert later == pytest.approx([0.1] * 4 + [0.0] * 4)
    assert population.value("estimator.temperature", [0.0] * 8)[:, 0].tolist() == [0.5, 0.5, 1.0, 1.0] * 2
    assert set(swept_fields(config)) >= {"learning_rate", "discount", "entropy_weight", "estimator.temperature"}


@pytest.mark.parametrize("field", ["learning_rate", "discount", "entropy_weight"])
def test_an_empty_sweep_is_refused(field):
    with pytest.raises(PglabError, match=field):
        read(**{field: []})
