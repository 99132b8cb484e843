"""The configuration: every field typed and documented, unknown keys refused, registered parts by name."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BeforeValidator, Field, PlainSerializer, ValidationError, field_validator, model_validator

import pglab.baselines
import pglab.estimators  # noqa: F401  (registers the names)
from pglab.baselines import BASELINES, Baseline
from pglab.errors import PglabError, unknown
from pglab.estimators import ESTIMATORS, Estimator
from pglab.networks import Activation
from pglab.optimizers import OptimizerConfig
from pglab.policy import PolicyConfig
from pglab.registry import Strict, first_error
from pglab.schedules import Schedule, Swept

EstimatorField = Annotated[Estimator, BeforeValidator(ESTIMATORS.build), PlainSerializer(lambda part: part.describe())]
BaselineField = Annotated[Baseline, BeforeValidator(BASELINES.build), PlainSerializer(lambda part: part.describe())]
Positive = Annotated[int, Field(ge=1)]
Hidden = tuple[Positive, ...]
Limit = Annotated[float, Field(gt=0)]


class EnvironmentConfig(Strict):
    """Which environment, how many, and how they are stepped."""

    id: str
    """A gymnasium id, such as CartPole-v1. An id that names a module to import ("module:Id-v0") is refused, since files
    never run code: import the module with --plugin."""
    num_envs: Positive = 8
    """Environments per member."""
    backend: Literal["auto", "torch", "gymnasium"] = "auto"
    """auto: the torch-native twin where there is one, else gymnasium's own."""
    vectorization: Literal["auto", "sync", "async"] = "auto"
    """Gymnasium backend: one process, or one worker process per environment. auto: worker processes where steps are so
    slow that they pay, measured at the start and recorded with the run."""
    autoreset_mode: Literal["disabled", "next_step", "same_step"] = "disabled"
    """Gymnasium backend: who resets ended environments."""
    max_episode_steps: Positive | None = None
    """Time limit; None keeps the id's own."""
    kwargs: dict[str, Any] = {}
    """Keyword arguments of the environment: gymnasium's, or those of a torch-native one (`pglab list environments`)."""

    @field_validator("id")
    @classmethod
    def _imports_nothing(cls, value: str) -> str:
        module, colon, name = value.partition(":")
        if colon:
            raise ValueError(f"environment {value!r} names a module to import: use {name!r} with --plugin {module}")
        return value


class PreprocessingConfig(Strict):
    """What the agent does to observations and rewards before it learns from them."""

    observation_scale: list[Annotated[float, Field(allow_inf_nan=False)]] | None = None
    """Fixed factors, one per observation component; None leaves them as they are."""
    normalize_observations: bool = False
    """Subtract a running mean and divide by a running standard deviation (of earlier batches), clipped to +-10."""
    reward_scale: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    """Rewards are multiplied by this."""
    normalize_returns: bool = False
    """Divide rewards by the running standard deviation of the discounted return (of earlier batches)."""


class ReturnsConfig(Strict):
    """How rewards become the value of an action."""

    name: Literal["monte_carlo", "n_step", "gae", "v_trace"] = "monte_carlo"
    """monte_carlo: discounted reward-to-go; n_step: n rewards, then V; gae: lambda-returns (Schulman et al. 2016);
    v_trace: lambda-returns with clipped importance ratios, computed anew before every epoch (Espeholt et al. 2018)."""
    n: Positive = 5
    """n_step: number of rewards."""
    lam: Swept = [Schedule(start=0.95)]
    """gae and v_trace: lambda in [0, 1]; a list sweeps it."""
    rho_clip: Limit = 1.0
    """v_trace: largest ratio that a temporal difference is weighted by."""
    c_clip: Limit = 1.0
    """v_trace: largest ratio that what follows is weighted by."""


class ValueConfig(Strict):
    """The value network V(s)."""

    hidden: Hidden = (64, 64)
    """Sizes of the hidden layers."""
    activation: Activation = "tanh"
    """tanh, relu, elu or silu."""
    learning_rate: Swept | None = None
    """None: the policy's."""
    max_grad_norm: Limit | None = 5.0
    """Per-member gradient clipping."""


class CriticConfig(Strict):
    """The learned Q(s, a); `a` is one-hot, relaxed or continuous."""

    hidden: Hidden = (64, 64)
    """Sizes of the hidden layers."""
    activation: Activation = "relu"
    """tanh, relu, elu or silu."""
    twin: bool = True
    """Two critics, the smaller target of the two (Fujimoto et al. 2018)."""
    actor_value: Literal["min", "mean"] = "min"
    """With twins: what the actor climbs."""
    target_rate: Annotated[float, Field(gt=0, le=1)] = 0.005
    """Target networks move this fraction towards the critic at each update; 1: no target network."""
    target_action: Literal["expectation", "sample", "mode"] = "sample"
    """Next action in the target: the exact expectation over actions (discrete), a draw, or the mode (DDPG)."""
    learning_rate: Swept | None = None
    """None: the policy's."""
    max_grad_norm: Limit | None = None
    """Per-member gradient clipping."""
    blend: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Discrete: the critic is also shown (1 - w) onehot + w (uniform over the other actions), w uniform on (0, blend),
    so that it knows the inside of the simplex, where relaxed actions ask it."""
    blend_target: Literal["same", "interpolated"] = "same"
    """What a blended action is worth. same: what the drawn action is. interpolated: it is blended with one other action a',
    drawn uniformly, and worth (1 - w) y + w Q_target(s, a'), so that Q is nearly linear between the vertices and its slope
    there means something to straight-through estimators (Zhang et al. 2018, mixup)."""


class OnPolicyConfig(Strict):
    """Learns from what the current policy just did."""

    name: Literal["on_policy"] = "on_policy"
    collect: Literal["steps", "episodes"] = "steps"
    """steps: blocks of `steps` steps, episodes go on across blocks, bootstrapped with V at the cut. episodes:
    `episodes` whole episodes for every environment, which a member's environments take from one queue."""
    steps: Positive = 16
    """Steps per block (collect: steps)."""
    episodes: Positive = 1
    """Whole episodes per environment and update (collect: episodes). With several, environments wait less for one another."""
    block: Positive = 32
    """Steps between two looks at whether anyone is still alive (collect: episodes); noise is drawn per block."""
    returns: ReturnsConfig = ReturnsConfig()
    """How rewards become the value of an action."""
    value: ValueConfig = ValueConfig()
    """The value network, where baseline or returns need one."""
    critic: CriticConfig = CriticConfig(twin=False)
    """Q(s, a), where estimator or baseline need a critic: fitted to the returns of the actions that were drawn, after they
    have been used. Its target_rate and target_action play no part."""
    critic_updates: Positive = 1
    """Steps of the critic on each batch."""
    epochs: Positive = 1
    """Passes over a batch; from the second step on, rows carry importance ratios."""
    minibatches: Positive = 1
    """Parts of a batch, one step each."""
    reduction: Literal["mean_over_steps", "mean_over_episodes"] = "mean_over_steps"
    """mean_over_steps: sum over rows / number of valid rows, the usual practice. With whole episodes that number depends
    on the actions, so the estimate is a ratio, and unbiased only as the batch grows.
    mean_over_episodes: sum over time, mean over columns (episodes, or blocks of steps): with whole episodes, the gradient
    of E[return] itself."""
    discount_states: bool = False
    """Weight step t of an episode by discount^t: the gradient of the discounted objective. Without, the usual practice,
    which is not the gradient of any function (Nota & Thomas 2020)."""
    normalize_advantages: bool = False
    """Whiten value - baseline over the batch: a random scale and an O(1/batch) bias. Declared biased."""


class ReplayConfig(Strict):
    """Which transitions the critic and the actor learn from."""

    data: Literal["replay", "on_policy"] = "replay"
    """replay: all of the last `capacity`; on_policy: only those since the last round of updates."""
    capacity: Positive = 100_000
    """Transitions kept per member."""
    batch_size: Positive = 256
    """Transitions per update and member."""
    warmup: Annotated[int, Field(ge=0)] = 1000
    """Environment steps per member before the first update, with actions of the initial policy."""


class ActorCriticConfig(Strict):
    """Learns Q(s, a) from (usually replayed) transitions and climbs it with any estimator."""

    name: Literal["actor_critic"] = "actor_critic"
    critic: CriticConfig = CriticConfig()
    """The critic."""
    replay: ReplayConfig = ReplayConfig()
    """The transitions."""
    steps_per_round: Positive = 1
    """Vector steps (of all of a member's environments) between rounds of updates."""
    updates_per_round: Positive = 1
    """Updates of critic and actor in a round."""
    auto_entropy: bool = False
    """Tune the entropy weight towards `target_entropy`; `entropy_weight` is then where it starts (0: it starts at 1)."""
    target_entropy: float | None = None
    """None: minus the number of action dimensions (continuous), 0.5 x log of the number of actions (discrete)."""
    entropy_learning_rate: float | None = None
    """None: the policy's."""


class EvolutionConfig(Strict):
    """Climbs the return of perturbed networks with the score function of the search distribution N(theta, sigma^2) over
    their parameters: evolution strategies (Salimans et al. 2017), or PGPE (Sehnke et al. 2010) with `learn_sigma`. The
    episode's return is discounted from its start; Config.baseline is none or leave_one_out."""

    name: Literal["evolution"] = "evolution"
    perturbations: Positive | None = None
    """Perturbed networks per update; env.num_envs is a multiple of it, and each network plays its share of the
    environments. None: one environment each."""
    episodes: Positive = 1
    """Whole episodes of each environment per update."""
    block: Positive = 32
    """Steps between two looks at whether anyone is still alive; noise is drawn per block."""
    sigma: Swept = [Schedule(start=0.1)]
    """Standard deviation of the search distribution (with learn_sigma: where it starts); a number, a schedule, or a list
    to sweep."""
    learn_sigma: bool = False
    """Learn one sigma per parameter (PGPE)."""
    sigma_learning_rate: Swept | None = None
    """Of log sigma. None: the policy's."""
    sigma_bounds: tuple[Limit, Limit] = (1e-3, 10.0)
    """A learned sigma is kept within these."""
    mirrored: bool = True
    """Try every perturbation with both signs (antithetic sampling)."""
    shaping: Literal["returns", "standardized", "centered_ranks"] = "returns"
    """What enters the estimate in place of a network's return: the return itself; (return - mean) / std over the update's
    networks; or its rank among them, from -1/2 to 1/2 (Salimans et al. 2017). All but the first are declared biased."""
    deterministic: bool = True
    """Perturbed networks play their mode; else they draw actions."""
    common_starts: Literal["none", "pair", "all"] = "pair"
    """Who shares initial states (and the noise of drawn actions): the two of a mirrored pair, all networks, or none.
    Unbiased in all cases; several episodes in a row share only the first one's start."""

    @model_validator(mode="after")
    def _search(self) -> EvolutionConfig:
        if any(schedule.bounds[0] <= 0 for schedule in self.sigma):
            raise ValueError("sigma must be above 0")
        low, high = self.sigma_bounds
        if not low < high:
            raise ValueError(f"sigma_bounds must be (low, high) with low below high, not {self.sigma_bounds}")
        if self.learn_sigma and any(s.kind != "constant" or not low <= s.start <= high for s in self.sigma):
            raise ValueError("with learn_sigma, sigma is where it starts: a number within sigma_bounds")
        return self

    @property
    def estimator(self) -> str:
        """The estimator that this agent is, in a few words."""
        kind = "PGPE" if self.learn_sigma else "evolution strategies"
        return f"{kind} ({'mirrored, ' if self.mirrored else ''}{self.shaping.replace('_', ' ')})"

    @property
    def declared_bias(self) -> str:
        """Where the estimate is biased for the smoothed objective; empty where it is not."""
        return {
            "returns": "",
            "standardized": "scaled by the sample's standard deviation",
            "centered_ranks": "climbs ranks among the sample, not returns",
        }[self.shaping]


class TargetConfig(Strict):
    """What V learns."""

    name: Literal["monte_carlo", "n_step", "gae"] = "gae"
    """gae: TD(lambda); n_step: n rewards, then V; monte_carlo: the segment's rewards, then V."""
    n: Positive = 5
    """n_step: number of rewards."""
    lam: Swept = [Schedule(start=0.95)]
    """gae: lambda in [0, 1]; a list sweeps it."""


class BpttConfig(Strict):
    """Differentiates the return of short segments through a differentiable environment, with a learned V of where they
    stop: the short-horizon actor-critic (SHAC, Xu et al. 2022)."""

    name: Literal["bptt"] = "bptt"
    horizon: Positive = 32
    """Steps of a segment; one segment of every environment is one update."""
    at_mode: bool = False
    """Play the distribution's mode rather than a draw: the policy is deterministic, and log_std is not learned."""
    terminal_value: bool = True
    """Add gamma^h V of where the segment (or before it, at its time limit, the episode) stops. Without, rewards past the
    segment do not exist: with segments as long as episodes, plain backpropagation through time."""
    returns: TargetConfig = TargetConfig()
    """How a segment's rewards become the values that V learns."""
    value: ValueConfig = ValueConfig()
    """The value network."""
    value_epochs: Positive = 16
    """Passes of V over a segment's rows."""
    value_minibatches: Positive = 4
    """Parts of each pass, one step of V each."""
    target_rate: Annotated[float, Field(gt=0, le=1)] = 0.6
    """After each update the target network, which gives V of where segments stop, moves this fraction towards V; 1: no
    target network."""
    allow_termination: bool = False
    """Serve environments whose episodes terminate, as if when they do did not depend on the actions: declared biased."""

    @property
    def estimator(self) -> str:
        """The estimator that this agent is, in a few words."""
        end = " and V" if self.terminal_value else ""
        return f"pathwise through {self.horizon} steps{end}{' at the mode' if self.at_mode else ''}"

    @property
    def declared_bias(self) -> str:
        """Where the estimate is biased for the gradient of the return; empty where it is not."""
        known = "V is learned" if self.terminal_value else "rewards past the segment are left out"
        return f"{known}; terminations are taken as given" if self.allow_termination else known


AGENTS = ("on_policy", "actor_critic", "evolution", "bptt")


def _named_agent(value: Any) -> Any:
    """A name alone, or settings without a name (then on_policy), as a mapping with a name."""
    if isinstance(value, str):
        value = {"name": value}
    if isinstance(value, dict):
        value = {"name": "on_policy", **value}
        if value["name"] not in AGENTS:
            raise ValueError(str(unknown("agent", value["name"], AGENTS)))
    return value


AgentField = Annotated[
    OnPolicyConfig | ActorCriticConfig | EvolutionConfig | BpttConfig,
    Field(discriminator="name"),
    BeforeValidator(_named_agent),
]


class EvaluationConfig(Strict):
    """Evaluation while training."""

    every: Positive = 20_000
    """Environment steps per member between evaluations."""
    episodes: Positive = 10
    """Episodes per member and evaluation, each played to its end."""
    final_episodes: Positive = 20
    """Episodes per member of the last evaluation, from which results are reported."""
    deterministic: bool = True
    """Play the distribution's mode rather than a draw."""


class CheckpointConfig(Strict):
    """Saving."""

    every: Positive = 100_000
    """Environment steps per member between checkpoints."""
    keep: Positive = 2
    """How many are kept."""


class MeasurementConfig(Strict):
    """Measuring the gradient's noise at frozen policies along training."""

    at: list[Annotated[float, Field(ge=0, le=1)]] = []
    """Fractions of training in [0, 1] at which to measure, ascending; empty: never."""
    replicates: Annotated[int, Field(ge=4)] = 32
    """Independent training-size gradients per measurement."""

    @field_validator("at")
    @classmethod
    def _ascending(cls, value: list[float]) -> list[float]:
        if sorted(set(value)) != value:
            raise ValueError(f"measurement.at must ascend without repetition, not {value}")
        return value


class ProbeConfig(Strict):
    """Judging the gradient of a training batch from that batch itself, without further environment steps."""

    every: Positive | None = None
    """Probe every so-manyth update (50: updates 50, 100, ...), for agents on_policy and actor_critic. The newest figures are
    logged as probe/* with the next log line (log_every). None: never."""


class SnapshotConfig(Strict):
    """Policies that are kept along training, for `pglab variance` to measure gradients at."""

    at: list[Annotated[float, Field(ge=0, le=1)]] = [0.0, 0.25, 0.5, 1.0]
    """Fractions of training in [0, 1] at which the networks are kept, ascending; empty: never."""
    transitions: Annotated[int, Field(ge=0)] = 10_000
    """actor_critic: at most so many transitions of the replay are kept with them, per member, evenly spread over it."""

    @field_validator("at")
    @classmethod
    def _ascending(cls, value: list[float]) -> list[float]:
        if sorted(set(value)) != value:
            raise ValueError(f"snapshots.at must ascend without repetition, not {value}")
        return value


def _within(name: str, schedules: list[Schedule], low: float, high: float) -> None:
    """ValueError unless every value a field may take lies in [low, high]."""
    for schedule in schedules:
        least, most = schedule.bounds
        if not (low <= least and most <= high):
            allowed = f"lie in [{low:g}, {high:g}]" if math.isfinite(high) else f"be at least {low:g}"
            given = f"{least:g}" if least == most else f"{least:g} to {most:g}"
            raise ValueError(f"{name} must {allowed}, not {given}")


def _threads(value: Any) -> Any:
    if value == "auto" or (isinstance(value, int) and not isinstance(value, bool) and value >= 1):
        return value
    raise ValueError(f"must be auto or a number of at least 1, not {value!r}")


class Config(Strict):
    """One population of agents: one environment, agent, estimator and baseline; many seeds and swept values."""

    env: EnvironmentConfig
    """The environment."""
    estimator: EstimatorField = ESTIMATORS.build("score_function")
    """The gradient estimator: a name, or a mapping with `name` and its options."""
    baseline: BaselineField = BASELINES.build("none")
    """What is subtracted from the value, for estimators that use one."""
    agent: AgentField = OnPolicyConfig()
    """on_policy, actor_critic, evolution or bptt, with its settings."""
    policy: PolicyConfig = PolicyConfig()
    """The policy network and distribution."""
    seeds: int | list[int] = 8
    """Number of seeds (0, 1, ...), or the seeds themselves. All train at once."""
    total_steps: Positive = 500_000
    """Environment steps per member."""
    learning_rate: Swept = [Schedule(start=1e-3)]
    """Of the policy: a number, a schedule, or a list to sweep."""
    discount: Swept = [Schedule(start=0.99)]
    """gamma; a list sweeps it."""
    entropy_weight: Swept = [Schedule(start=0.0)]
    """Weight of the policy's entropy in the objective; a number, a schedule, or a list to sweep."""
    optimizer: OptimizerConfig = OptimizerConfig()
    """For policy, value network and critic alike."""
    max_grad_norm: Limit | None = None
    """Per-member clipping of the policy's gradient."""
    preprocessing: PreprocessingConfig = PreprocessingConfig()
    """Observation and reward scaling."""
    evaluation: EvaluationConfig = EvaluationConfig()
    """Evaluation while training."""
    measurement: MeasurementConfig = MeasurementConfig()
    """Measuring the gradient's noise while training."""
    probe: ProbeConfig = ProbeConfig()
    """Judging a training batch's gradient from the batch itself."""
    snapshots: SnapshotConfig = SnapshotConfig()
    """Policies kept for later measurement."""
    checkpoint: CheckpointConfig = CheckpointConfig()
    """Saving."""
    log_every: Positive = 5_000
    """Environment steps per member between log lines."""
    device: str = "cpu"
    """cpu, cuda, or auto (cuda where there is one)."""
    threads: Annotated[int | Literal["auto"], BeforeValidator(_threads)] = "auto"
    """Torch threads. auto: one for every 1,024 rows of an update, at most as many as cores (one in comparisons, whose
    variants train side by side)."""
    executor: Literal["auto", "eager", "program", "compile", "cudagraph"] = "auto"
    """How updates are run: operation by operation (eager), as a program, which repeats recorded operations and gives the same
    bits (CPU), compiled by torch (torch-native environments; needs a C++ compiler, and seconds to minutes at the start), or as
    CUDA graphs. auto: program on a CPU, else eager."""
    plugins: list[str] = []
    """Plug-ins this run was made with (a record: they are only ever loaded by --plugin)."""

    @field_validator("seeds")
    @classmethod
    def _seeds(cls, value: int | list[int]) -> int | list[int]:
        listed = list(range(value)) if isinstance(value, int) else value
        if not listed or len(set(listed)) != len(listed) or min(listed) < 0:
            raise ValueError(f"seeds must be at least one, different and not negative, not {value}")
        return value

    @model_validator(mode="after")
    def _bounds(self) -> Config:
        _within("discount", self.discount, 0, 1)
        _within("learning_rate", self.learning_rate, 0, math.inf)
        _within("entropy_weight", self.entropy_weight, 0, math.inf)
        if isinstance(self.agent, OnPolicyConfig | BpttConfig):
            _within("agent.returns.lam", self.agent.returns.lam, 0, 1)
            if self.agent.returns.name == "v_trace" and self.agent.normalize_advantages:
                raise ValueError("agent.normalize_advantages is not for v_trace returns: set it to false")
        return self

    @property
    def seed_list(self) -> list[int]:
        return list(range(self.seeds)) if isinstance(self.seeds, int) else self.seeds

    def plain(self) -> dict[str, Any]:
        """The config as YAML and JSON hold it; `Config.read` of it gives the same config."""
        return self.model_dump(mode="json")

    @classmethod
    def read(cls, data: Any, where: str = "config") -> Config:
        """A config from a mapping; PglabError with one sentence on the first thing that is wrong."""
        if isinstance(data, cls):
            return data
        if not isinstance(data, dict):
            raise PglabError(f"{where} must be a mapping of settings, not {type(data).__name__}.")
        try:
            return cls(**data)
        except ValidationError as error:
            message = f"{where}: {first_error(error)}"
            missing = [p for p in data.get("plugins") or [] if isinstance(p, str)]
            if missing and "Unknown" in message:
                message += f" It was made with {', '.join(missing)}: add --plugin {' --plugin '.join(missing)}."
            raise PglabError(message) from None
        except TypeError as error:
            raise PglabError(f"{where}: {error}.") from None


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file's mapping, read safely. PglabError when there is no such file, or it is not a mapping."""
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise PglabError(f"{path}: cannot be read ({error.strerror or error}).") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        line = getattr(getattr(error, "problem_mark", None), "line", None)
        at = f" near line {line + 1}" if line is not None else ""
        raise PglabError(f"{path}: is not valid YAML{at}.") from None
    if not isinstance(data, dict):
        raise PglabError(f"{path}: must hold a mapping of settings, not {type(data).__name__}.")
    return data


def merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """`over` laid on `base`, mapping by mapping. A part given by another name replaces the part, options and all."""
    out = dict(base)
    for key, value in over.items():
        old = out.get(key)
        if isinstance(old, str) and isinstance(value, dict) and key in NAMED:
            old = {"name": old}
        renamed = (
            isinstance(value, dict) and isinstance(old, dict) and value.get("name", old.get("name")) != old.get("name")
        )
        if isinstance(old, dict) and isinstance(value, dict) and not renamed:
            out[key] = merge(old, value)
        elif key in NAMED and isinstance(value, str) and isinstance(old, dict) and old.get("name") == value:
            continue  # the same part by its name alone keeps its options
        else:
            out[key] = value
    return out


NAMED = ("estimator", "baseline", "agent")


def override(data: dict[str, Any], dotted: str, value: Any) -> dict[str, Any]:
    """`data` with the field at a dotted path set: `override(d, "env.num_envs", 16)`. `estimator=name` sets the name."""
    keys = dotted.split(".")
    nested: Any = value
    for key in reversed(keys):
        nested = {key: nested}
    return merge(data, nested)
