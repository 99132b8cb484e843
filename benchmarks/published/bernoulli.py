"""One Bernoulli variable b, E[(b - t)^2] to be minimised in its logit: the toy of REBAR and of RELAX.

Every estimator trains the logit itself, one draw a step, from theta = P(b = 1) = 1/2, and learns what it learns on the
way. Its variance is that of draws of their own at the frozen logit and the frozen control variate.

Sources: Tucker et al. (2017), section 5.1; Grathwohl et al. (2018), the toy experiment of its applications (text and
code in github.com/duvenaud/relax: `paper/generalized_rebar.tex`, `toy.py`, `rebar_toy.py`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from pglab.baselines import BASELINES
from pglab.baselines.base import Batch, baselined
from pglab.distributions import Bernoulli, Distribution
from pglab.estimators import ESTIMATORS, Draw, Signal
from pglab.estimators.base import State
from pglab.estimators.learned import Views
from pglab.estimators.rebar import REBAR
from pglab.gradients import cotangents
from pglab.noise import ChunkedNoise, Noise, Purpose
from pglab.optimizers import OptimizerConfig

TITLE = "One Bernoulli variable (REBAR, RELAX)"
TEMPERATURE = 0.5
RARE = 10
"""Variances count where so many draws of the rarer value are expected: without any there is no variance to see."""
LOWEST = 1e-30
"""Variances below this are shown as this: a baseline can make them exactly 0."""


@dataclass(frozen=True)
class Case:
    """A paper's setting."""

    paper: str
    t: float
    steps: int
    optimizer: OptimizerConfig
    learning_rate: float


CASES = {
    "REBAR": Case("Tucker et al. 2017", 0.45, 5_000, OptimizerConfig(name="sgd"), 0.1),
    "RELAX": Case("Grathwohl et al. 2018", 0.499, 10_000, OptimizerConfig(), 0.01),
}


class ShiftedREBAR(REBAR):
    """REBAR with the relaxation of its authors' toy, sigmoid(z / temperature + logit)."""

    def relaxations(self, views: Views, distribution: Distribution, draw: Draw, state: State) -> Tensor:
        assert isinstance(distribution, Bernoulli)
        plain = super().relaxations(views, distribution, draw, state)
        return torch.sigmoid(torch.logit(plain, eps=1e-6) + distribution.logits)


LEARNING: dict[str, Any] = {"temperature": TEMPERATURE, "estimator_learning_rate": 0.01}
SHIFTED = "rebar, relaxation of its toy"
WAYS: dict[str, tuple[Any, str]] = {
    "score_function": ({"name": "score_function"}, "none"),
    "rebar": ({"name": "rebar", **LEARNING}, "none"),
    SHIFTED: (ShiftedREBAR(**LEARNING), "none"),
    "relax": ({"name": "relax", "hidden": (10,), **LEARNING}, "none"),
    "score_function + moving_average": ({"name": "score_function"}, "moving_average"),
}


class Training:
    """P logits, a seed each, trained side by side by one estimator; rows are `[1, P, N]`, actions `[1, P, N, 1]`."""

    def __init__(self, case: Case, way: str, seeds: int) -> None:
        part, against = WAYS[way]
        self.case = case
        self.estimator, self.baseline = ESTIMATORS.build(part), BASELINES.build(against)
        self.noise = Noise.of_seeds(range(seeds))
        self.logits = torch.zeros(seeds, 1)  # [P, 1]
        self.optimizer = case.optimizer.initial(self.logits)
        self.rate = torch.full((seeds, 1), case.learning_rate)
        self.learned = self.estimator.initial(self.noise, (1,), 0)
        self.against = self.baseline.initial(seeds, self.logits.device)
        self.chunks = ChunkedNoise(self.noise)

    def value(self, b: Tensor) -> Tensor:
        """Minus the loss, `[..., rows]`: estimates are of the gradient that ascends."""
        return -(b[..., 0] - self.case.t).square()

    def rows(self, chunks: ChunkedNoise, index: int, n: int) -> tuple[Bernoulli, Draw, Signal, Batch]:
        """N draws per member at the current logits, with everything that is known of them."""
        d = Bernoulli(self.logits[None, :, None].expand(1, -1, n, 1))
        u = chunks.take("uniform", Purpose.ACTION, index, (n, 1)).unsqueeze(0)
        extra = {
            name: chunks.take(kind, Purpose.EXTRA, index, (n, *shape), stream).unsqueeze(0)
            for stream, (name, (kind, shape)) in enumerate(self.estimator.extra_noise("uniform", (1,)).items())
        }
        draw = Draw(d.sample(u), u, extra)
        value = self.value(draw.action)
        obs = value.new_zeros(*value.shape, 0)
        batch = Batch(
            obs, value, torch.ones_like(value) > 0, torch.zeros_like(value, dtype=torch.int64), distribution=d
        )
        signal = Signal(value=value, critic=self.value, obs=obs)
        return d, draw, baselined(self.baseline, self.against, batch, signal), batch

    @property
    def state(self) -> dict[str, Any]:
        return {"temperature": TEMPERATURE, **self.learned}

    def step(self, index: int) -> None:
        """One draw per member: a step of the logit, then of what the estimator and the baseline learn."""
        d, draw, signal, batch = self.rows(self.chunks, index, 1)
        (g,), _ = cotangents(self.estimator, d, draw, signal, self.state)
        if self.estimator.learns:
            weight = torch.ones_like(batch.value)
            self.learned, _ = self.estimator.update(self.state, d, draw, signal, weight)
        self.against, _ = self.baseline.update(self.against, batch)
        self.logits = self.logits.clone()
        self.case.optimizer.step(self.logits, -g[0, :, 0], self.optimizer, self.rate)

    def variances(self, index: int, draws: int) -> Tensor:
        """The variance of one estimate for every member, `[P]`, float64; nothing learns."""
        apart = ChunkedNoise(self.noise.apart(Purpose.MEASUREMENT), 1)
        d, draw, signal, _ = self.rows(apart, index, draws)
        (g,), _ = cotangents(self.estimator, d, draw, signal, self.state)
        return g[0, :, :, 0].double().var(1)


def plain_variance(theta: Tensor, t: float) -> Tensor:
    """That of the score function without a baseline, in closed form."""
    one, zero = (1 - t) ** 2, t**2
    return theta * (1 - theta) * (one * (1 - theta) + zero * theta) ** 2


def curve(case: Case, way: str, seeds: int, steps: int, every: int, draws: int) -> dict[str, Any]:
    """One estimator's training: natural logarithms of variances, their difference to the plain score function's at the
    same theta (both means over seeds; None where too few draws are the rarer value), and where theta ended."""
    training = Training(case, way, seeds)
    found: dict[str, Any] = {"step": [], "log_variance": [], "over_plain": []}
    for k in range(steps + 1):
        if k % every == 0:
            theta = torch.sigmoid(training.logits[:, 0].double())
            log = training.variances(k // every, draws).clamp_min(LOWEST).log()
            seen = torch.minimum(theta, 1 - theta) * draws >= RARE
            found["step"].append(k)
            found["log_variance"].append(mean_of(log, seen))
            found["over_plain"].append(mean_of(log - plain_variance(theta, case.t).log(), seen))
        if k < steps:
            training.step(k)
    loss = theta * (1 - case.t) ** 2 + (1 - theta) * case.t**2
    return found | {"loss": float(loss.mean()), "theta": theta.tolist(), "right": float((theta < 0.5).double().mean())}


def mean_of(x: Tensor, seen: Tensor) -> float | None:
    return float(x[seen].mean()) if seen.any() else None


def run(quick: bool = False) -> dict[str, Any]:
    seeds, draws = (3, 200) if quick else (10, 1000)
    found: dict[str, Any] = {"seeds": seeds, "draws": draws, "cases": {}}
    for name, case in CASES.items():
        steps, points = (100, 10) if quick else (case.steps, 50)
        ways = {way: curve(case, way, seeds, steps, steps // points, draws) for way in WAYS}
        found["cases"][name] = {"t": case.t, "steps": steps, "ways": ways}
    return found


def late(way: dict[str, Any], key: str = "log_variance") -> float:
    """The mean over the later half of what was measured."""
    values = [x for x in way[key] if x is not None]
    return fmean(values[len(values) // 2 :])


def page(record: dict[str, Any]) -> str:
    from reporting import table

    parts = [
        "E[(b - t)^2] is minimised in the logit of theta = P(b = 1), from theta = .5, by the estimator itself with "
        f"one draw a step ({record['seeds']} seeds). REBAR's setting: t = .45, SGD with learning rate .1. RELAX's: t "
        "= .499, Adam with .01. rebar learns eta (from 1) and the temperature (from .5), relax its temperature and "
        "c, a tanh network with 10 hidden units, both by Adam with .01. Natural logarithms of the variance over "
        f"{record['draws']} draws at frozen parameters, mean over the seeds whose theta is not so far out that the "
        f"rarer value is expected less than {RARE} times. *Later half*: mean over the later half of these. *Beside "
        "the score function*: the same, less that of the score function without a baseline at the same theta "
        "(closed form)."
    ]
    for name, case in record["cases"].items():
        rows = []
        for way, found in case["ways"].items():
            at = [found["log_variance"][i] for i in (0, len(found["step"]) // 5, -1)]
            cells = ["" if x is None else f"{x:.2f}" for x in (*at, late(found))]
            ratio = late(found, "over_plain")
            rows.append([way, *cells, f"{ratio:+.2f}", f"{found['loss']:.5f}", f"{found['right']:.0%}"])
        steps = case["steps"]
        header = [
            f"{name}'s setting, t = {case['t']:g}", "ln var, start", f"step {steps // 5:,}", f"step {steps:,}",
            "later half", "beside the score function", "final loss", "theta < .5",
        ]  # fmt: skip
        parts += [table(header, rows), f"The best loss is {case['t'] ** 2:.5f}, at theta = 0."]
    parts.append(
        "Published: curves in figures only (figure 1 of either paper), not read off here. The RELAX paper compares "
        "REINFORCE, REBAR "
        'and RELAX at t = .499, without baselines, and says of RELAX that it achieves "the best performance".'
    )
    parts.append(verdict(record))
    parts.append(
        "Differences from the authors' code: relaxations are sigmoid(z / temperature), where REBAR's toy adds the "
        "logit once more (a row of its own); the conditional draw has noise of its own (REBAR's has z's); c is the "
        "network times a running size of f, and nearly 0 at first; and RELAX's is a function of the relaxed draw "
        "(`toy.py` by default gives it theta and u)."
    )
    return "\n\n".join(parts)


def beside_it(a: float, b: float, margin: float) -> str:
    return "below" if a < b - margin else "above" if a > b + margin else "level with"


def verdict(record: dict[str, Any]) -> str:
    """What was found, from the numbers."""
    said = []
    for name, case in record["cases"].items():
        beside = {way: late(found, "over_plain") for way, found in case["ways"].items()}
        score, rebar, shifted, relax, based = beside.values()
        best = min(score, rebar, shifted)
        sides = ", ".join(f"{found['right']:.0%}" for found in case["ways"].values())
        said.append(
            f"- {name}'s setting: RELAX below REINFORCE and REBAR: "
            f"{'reproduced' if relax < best else 'not reproduced'} ({relax:+.1f} beside {score:+.1f} and "
            f"{min(rebar, shifted):+.1f}). At the same theta REBAR is {beside_it(rebar, score, 0.1)} REINFORCE, "
            f"with its toy's relaxation {beside_it(shifted, score, 0.1)} it. The score function with a moving "
            f"average is {beside_it(based, relax, 1)} RELAX and {beside_it(based, best, 1)} the others. Theta ends "
            f"on the right side in {sides} of the seeds (in the table's order)."
        )
    said.append(
        "- Why: on one Bernoulli variable the control variate given b is a constant times the score, the constant "
        "being c at the threshold z = 0, plus noise; and the best constant leaves no variance at all. REBAR's c is "
        "eta f(1/2) there, nearly 0, so that eta goes to 0; with its toy's relaxation it is eta f(theta), which "
        "nears f(0) as theta falls; RELAX learns the constant. The toy shows that a control variate can be learned, "
        "not that one is needed."
    )
    return "\n".join(said)


def draw(axes: list[Any], record: dict[str, Any]) -> None:
    """Two panels: the variance along training in either setting."""
    from pglab.lab.figures import DASHES, PALETTE

    for panel, (name, case) in zip(axes, record["cases"].items(), strict=True):
        for k, (way, found) in enumerate(case["ways"].items()):
            y = [math.nan if x is None else x for x in found["log_variance"]]
            panel.plot(found["step"], y, color=PALETTE[k], linestyle=DASHES[k % 4], linewidth=1.3, label=way)
        panel.set(xlabel="step", ylabel="ln variance", title=f"{name}'s toy, t = {case['t']:g}")
    axes[-1].legend(fontsize=6)  # the same lines in both
