"""Polynomial programming: sum_i |x_i - .45|^p / 128 of 128 binary latents, minimised by straight-through estimators.

The latents are independent and alike, and the objective is a sum over them: one run is 128 runs of one latent, whose
spread gives the standard error. The paper's softmax over two logits is a Bernoulli variable whose logit is their
difference: Adam moves both by the same amount in opposite directions, so its learning rate is doubled here.

Source: Liu, Dong, Liu, Yu & Gao (2023), section 5.1; settings from the authors' code (LiyuanLucasLiu/ReinMax,
`poly/poly_programming.py`).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from pglab_envs.discrete_toys import PolynomialProgram
from torch import Tensor

from pglab.distributions import Bernoulli
from pglab.estimators import ESTIMATORS, Draw, Signal
from pglab.gradients import cotangents
from pglab.noise import ChunkedNoise, Noise, Purpose
from pglab.optimizers import OptimizerConfig

TITLE = "Polynomial programming (ReinMax)"
LATENTS, TARGET, POWERS = 128, 0.45, (1.5, 2.0, 3.0)
BATCH, STEPS, RATE = 64, 8000, 2e-3
WAYS: dict[str, dict[str, Any]] = {
    "straight_through": {"name": "straight_through"},
    "straight_through_gumbel_softmax": {"name": "straight_through_gumbel_softmax"},
    "gumbel_rao": {"name": "gumbel_rao", "samples": 10},
    "gapped_straight_through": {"name": "gapped_straight_through"},
    "reinmax": {"name": "reinmax"},
}
EXACT = "exact gradient"


class Program:
    """The programs of all powers, one member each: rows are `[1, P, B]`, actions `[1, P, B, D]`."""

    def __init__(self, latents: int) -> None:
        self.latents = latents
        self.parts = [PolynomialProgram(D=latents, t=TARGET, p=p) for p in POWERS]

    def value(self, x: Tensor) -> Tensor:
        """`[..., P, B, D]` to `[..., P, B]`: minus the loss."""
        each = [
            part.objective(x.select(-3, k).reshape(-1, self.latents)).reshape(*x.shape[:-3], x.shape[-2])
            for k, part in enumerate(self.parts)
        ]
        return torch.stack(each, -2)

    def exact(self, logits: Tensor) -> Tensor:
        """The gradient of E[value] at `[P, D]`."""
        return torch.stack([part.exact_gradient(x)["logits"] for part, x in zip(self.parts, logits, strict=True)])

    def losses(self, logits: Tensor) -> Tensor:
        """Every latent's expected loss, `[P, D]`."""
        powers = torch.tensor(POWERS, dtype=torch.float64)[:, None]
        theta = torch.sigmoid(logits.double())
        return theta * (1 - TARGET) ** powers + (1 - theta) * TARGET**powers


def start(latents: int) -> Tensor:
    """The difference of two logits within +-.01, the same for all estimators, `[P, D]`."""
    u = Noise.of_seeds([0]).uniform(Purpose.PARAMETERS, (0,), (2, len(POWERS), latents))[0]
    return 0.02 * (u[0] - u[1])


def train(program: Program, way: str, steps: int, every: int) -> dict[str, Any]:
    """One estimator on all powers: losses along training, and each latent's at the end."""
    logits, optimizer = start(program.latents), OptimizerConfig()
    moments, rate = optimizer.initial(logits), torch.full((len(POWERS), 1), RATE)
    estimator = None if way == EXACT else ESTIMATORS.build(WAYS[way])
    noise, found = ChunkedNoise(Noise.of_seeds(range(len(POWERS))), 8), {"step": [], "loss": []}
    for k in range(steps + 1):
        if k % every == 0:
            found["step"].append(k)
            found["loss"].append(program.losses(logits).mean(1).tolist())
        g = program.exact(logits) if estimator is None else estimated(estimator, program, logits, noise, k)
        if k < steps:
            optimizer.step(logits, -g, moments, rate)
    last = program.losses(logits)
    return found | {"final": last.mean(1).tolist(), "error": (last.std(1) / last.shape[1] ** 0.5).tolist()}


def estimated(estimator: Any, program: Program, logits: Tensor, noise: ChunkedNoise, index: int) -> Tensor:
    """The mean estimate of a batch of 64 draws, `[P, D]`."""
    event = (program.latents,)
    d = Bernoulli(logits[None, :, None].expand(1, -1, BATCH, -1))
    u = noise.take("uniform", Purpose.ACTION, index, (BATCH, *event)).unsqueeze(0)
    extra = {
        name: noise.take(kind, Purpose.EXTRA, index, (BATCH, *shape)).unsqueeze(0)
        for name, (kind, shape) in estimator.extra_noise("uniform", event).items()
    }
    (g,), _ = cotangents(estimator, d, Draw(d.sample(u), u, extra), Signal(critic=program.value), {"temperature": 1.0})
    return g[0].mean(1)


def resting_loss(p: float) -> float:
    """The loss where straight-through's mean vanishes, theta f'(1) + (1 - theta) f'(0) = 0: not at the optimum."""
    one, zero = (1 - TARGET) ** (p - 1), TARGET ** (p - 1)
    theta = zero / (one + zero)
    return theta * (1 - TARGET) ** p + (1 - theta) * TARGET**p


def run(quick: bool = False) -> dict[str, Any]:
    latents, steps = (16, 300) if quick else (LATENTS, STEPS)
    program = Program(latents)
    ways = {way: train(program, way, steps, steps // 50) for way in (*WAYS, EXACT)}
    theory = {"best": [TARGET**p for p in POWERS], "straight_through": [resting_loss(p) for p in POWERS]}
    return {"latents": latents, "steps": steps, "powers": POWERS, "ways": ways, "theory": theory}


def page(record: dict[str, Any]) -> str:
    from reporting import table

    rows = [
        [way, *(f"{x:.5f} +- {2 * e:.0e}" for x, e in zip(found["final"], found["error"], strict=True))]
        for way, found in record["ways"].items()
    ]
    rows.append(["best possible", *(f"{x:.5f}" for x in record["theory"]["best"])])
    rows.append(["where straight-through's mean is 0", *(f"{x:.5f}" for x in record["theory"]["straight_through"])])
    return "\n\n".join(
        [
            f"{record['latents']} binary latents, target {TARGET}, batches of {BATCH}, {record['steps']:,} steps of "
            "Adam with .001 on each of two logits, temperature 1 throughout, gumbel_rao with K = 10. Expected loss "
            "at the last logits (exact), +- two standard errors over the latents.",
            table(["final loss", *(f"p = {p:g}" for p in record["powers"])], rows),
            'Published: training curves in a figure, not read off here; the claim of the abstract is "the superiority '
            'of ReinMax over the state of the art", on several tasks. Here all temperatures are 1, the default of the '
            "code, not tuned. "
            + verdict(record),
        ]
    )  # fmt: skip


def verdict(record: dict[str, Any]) -> str:
    said, ways = [], record["ways"]
    for k, p in enumerate(record["powers"]):
        margin = {way: (ways[way]["final"][k], 2 * ways[way]["error"][k]) for way in WAYS}
        own, own_error = margin.pop("reinmax")
        second = min(margin, key=lambda way: margin[way][0])
        word = "reproduced" if own + own_error < margin[second][0] - margin[second][1] else "not reproduced"
        left, theirs = (x - record["theory"]["best"][k] for x in (own, margin[second][0]))
        said.append(
            f"p = {p:g}: {word}, ReinMax ends {left:.2g} above the optimum, the next best, {second}, {theirs:.2g}."
        )
    return " ".join(said) + (
        " The others are not slow: they rest where their mean vanishes, straight-through at the loss of the last "
        "row. With two categories and logits within the gap of 1, gapped_straight_through is straight-through times "
        "a constant, which Adam does not see: its runs are the same."
    )


def draw(axes: list[Any], record: dict[str, Any]) -> None:
    """One panel: what is left above the optimum along training, p = 3."""
    from pglab.lab.figures import DASHES, PALETTE

    (panel,) = axes
    k = len(record["powers"]) - 1
    best = record["theory"]["best"][k]
    for i, (way, found) in enumerate(record["ways"].items()):
        left = [max(row[k] - best, math.ulp(1.0)) for row in found["loss"]]
        panel.plot(found["step"], left, color=PALETTE[i], linestyle=DASHES[i % 4], linewidth=1.3, label=way)
    panel.set(xlabel="step", ylabel="loss less the optimum", yscale="log", title="Polynomial programming, p = 3")
    panel.legend(fontsize=6)
