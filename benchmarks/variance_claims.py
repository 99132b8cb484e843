"""Published claims about gradient variance, measured by the variance laboratory.

    python benchmarks/variance_claims.py --figure docs/figures/variance_claims.png --out benchmarks/variance_claims

Three claims, on tasks that train in a minute: how the cosine between gradients grows with the batch (Ilyas et al. 2020), what
a baseline that depends on the action could add to one that depends on the state (Tucker et al. 2018), and that
reparameterization usually, but not always, has lower variance than the score function (Mohamed et al. 2020).
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import reporting
import torch
from pglab_envs import LQR
from torch import Tensor

import pglab
from pglab.agents import OnPolicyAgent
from pglab.environments.torch_native import TorchEnvironment
from pglab.lab.decomposition import Decomposition, Interval, decompose
from pglab.lab.measuring import Measured, measure
from pglab.lab.quality import quality
from pglab.lab.replicates import Replicates
from pglab.lab.subject import Subject, of_config, of_run
from pglab.lab.variance_report import curve_of, with_interval
from pglab.tracking.files import atomic_write

ON_POLICY: dict[str, dict[str, Any]] = {
    "CartPole-v1": {
        "env": {"id": "CartPole-v1", "num_envs": 128},
        "agent": {"steps": 16, "returns": {"name": "gae", "lam": 0.95}},
        "learning_rate": 3e-3,
        "preprocessing": {"reward_scale": 0.1},
        "total_steps": 300_000,
    },
    "Pendulum-v1": {
        "env": {"id": "Pendulum-v1", "num_envs": 128},
        "agent": {"steps": 16, "returns": {"name": "gae", "lam": 0.95}, "normalize_advantages": False},
        "discount": 0.95,
        "learning_rate": 3e-3,
        "policy": {"log_std": 0.0},
        "preprocessing": {"reward_scale": 0.1, "observation_scale": [1, 1, 0.125]},
        "total_steps": 600_000,
    },
}
CRITIC: dict[str, Any] = {
    "env": {"id": "Pendulum-v1", "num_envs": 1},
    "agent": {"name": "actor_critic", "auto_entropy": True, "replay": {"batch_size": 256, "warmup": 500}},
    "estimator": "pathwise",
    "entropy_weight": 0.1,
    "learning_rate": 1e-3,
    "preprocessing": {"reward_scale": 0.1, "observation_scale": [1, 1, 0.125]},
    "total_steps": 8_000,
}
FREQUENCIES = (0.5, 0.9, 1.5, 3.0)


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--work", type=Path, default=Path("runs/variance_claims"), help="where the runs are kept")
    p.add_argument("--figure", type=Path)
    p.add_argument("--out", type=Path)
    p.add_argument("--episodes", type=int, default=256, help="episodes of a decomposition")
    options = p.parse_args()
    torch.set_num_threads(1)
    began = time.perf_counter()
    curves = {name: ilyas(name, options.work) for name in ON_POLICY}
    parts = tucker(options.work, options.episodes)
    usual, unusual = reparameterization(options.work)
    text = "\n\n".join([said_curves(curves), said_parts(parts), said_ratios(usual, unusual)])
    record = {
        **reporting.provenance(),
        "seconds": time.perf_counter() - began,
        "ilyas": {n: [_curve(m) for m in ms] for n, ms in curves.items()},
        "tucker": {n: {b: p["sums"] for b, p in d.plain()["baselines"].items()} for n, d in parts.items()},
        "reparameterization": {"critic": usual, "cosine": unusual},
    }
    reporting.write(
        options.out, "Published claims about gradient variance", f"{reporting.origin(record)}\n\n{text}", record
    )
    print(text)
    if options.figure:
        draw(curves, parts, usual, unusual, options.figure)


def _run(name: str, config: dict[str, Any], work: Path) -> Path:
    folder = work / name
    if not (folder / "results.json").exists():
        pglab.train({"seeds": [100], "baseline": "value", **config, "snapshots": {"at": [0, 0.5, 1]}}, folder)
    return folder


# -- Ilyas et al. 2020


def ilyas(name: str, work: Path) -> list[Measured]:
    """Gradients of 2,048 state-action pairs at three snapshots of an actor-critic with V as baseline."""
    run = _run(f"on_policy-{name}", ON_POLICY[name], work)
    return list(measure(run, pairs=["score_function/value"], replicates=128, reference=4096))


def _curve(m: Measured) -> dict[str, Any]:
    points = curve_of(m)
    return {
        "stage": m.subject.stage,
        "pairs": [p.steps for p in points],
        "pairwise": [float(p.pairwise[0]) for p in points],
        "half": [float(p.pairwise_half[0]) for p in points],
        "cosine_to_grad_J": [None if p.cosine is None else float(p.cosine[0]) for p in points],
    }


def said_curves(curves: dict[str, list[Measured]]) -> str:
    rows, header = [], None
    for name, ms in curves.items():
        for m in ms:
            points = curve_of(m)
            header = ["snapshot", *(f"{p.steps:,.0f} pairs" for p in points)]
            cells = [f"{p.pairwise[0]:.2f} ± {p.pairwise_half[0]:.2f}" for p in points]
            rows.append([f"{name}, {m.subject.stage}", *cells])
    assert header is not None
    return (
        "## The cosine between gradients grows with the batch\n\n"
        "Claimed (Ilyas et al. 2020, “A closer look at deep policy gradients”, figure 1; Humanoid, Walker2d and Hopper): with the "
        "2,000 state-action pairs that agents use, gradients are poorly correlated, the less the later in training, and need far "
        "more pairs to agree. Values are in their figure only and are not read off here. Here: mean pairwise cosine of "
        "independent gradients, `score_function` with V (GAE, lambda 0.95).\n\n" + reporting.table(header, rows)
    )


# -- Tucker et al. 2018


def tucker(work: Path, episodes: int) -> dict[str, Decomposition]:
    """The parts of the variance on the LQG point mass with exact values, and on CartPole with a learned V."""
    linear: dict[str, Any] = {
        "env": {"id": "LQR-v0", "kwargs": {"preset": "point_mass"}},
        "agent": {"collect": "episodes", "reduction": "mean_over_episodes"},
        "policy": {"hidden": [], "log_std": -4.6},
        "seeds": [100],
    }
    (start,) = of_config(pglab.Config.read(linear))
    found = {
        "LQG point mass": decompose(
            start,
            episodes,
            ("none", ("V(s)", stationary(start)), ("V(s, t)", exact_value(start))),
            states_per_step=max(16, episodes // 4),
        )
    }
    run = _run("on_policy-CartPole-v1", ON_POLICY["CartPole-v1"], work)
    (middle,) = of_run(run, [0.5], [0])
    found["CartPole-v1, middle of training"] = decompose(middle, episodes, ("none", "value"), states_per_step=8)
    return found


def exact_value(subject: Subject) -> Any:
    """V_t(s) of the LQG under the subject's policy, by the backward recursion of its quadratic form."""
    made = subject.environment(1)
    assert isinstance(made, TorchEnvironment)
    assert isinstance(made.env, LQR)
    env = made.env
    views = subject.agent.policy_parameters.views
    k = views["weight0"][0].detach().double().T
    k0 = views["bias0"][0, 0].detach().double()
    spread = torch.diag((2 * views["log_std"][0, 0].detach().double()).exp())
    gamma = float(subject.agent.hyper("discount")[0, 0])
    a, b, q, r = env.A, env.B, env.Q, env.R
    f, f0 = a + b @ k, b @ k0
    noise = b @ spread @ b.T + env.noise**2 * torch.eye(len(a), dtype=a.dtype)
    p, p0, c = torch.zeros_like(a), torch.zeros(len(a), dtype=a.dtype), torch.zeros((), dtype=a.dtype)
    values = []
    for _ in range(env.max_episode_steps):
        c = k0 @ r @ k0 + (r @ spread).trace() + gamma * (f0 @ p @ f0 + 2 * p0 @ f0 + (p @ noise).trace() + c)
        p0 = k.T @ r @ k0 + gamma * f.T @ (p @ f0 + p0)
        p = q + k.T @ r @ k + gamma * f.T @ p @ f
        values.append((p, p0, c))
    values = values[::-1]
    ps, p0s, cs = (torch.stack([v[i] for v in values]) for i in range(3))

    def value(obs: Tensor, t: Tensor) -> Tensor:
        s, at = obs.double(), t.clamp_max(len(ps) - 1)
        quadratic = torch.einsum("...i,...ij,...j->...", s, ps[at], s)
        return -(quadratic + 2 * (p0s[at] * s).sum(-1) + cs[at]).float()

    return value


def stationary(subject: Subject) -> Any:
    """A quadratic in s alone, fitted to V_t(s) along episodes: what a V that does not see the time left can know."""
    exact = exact_value(subject)
    agent = subject.agent.replicated(range(1), subject.number, 7)
    assert isinstance(agent, OnPolicyAgent)
    with torch.no_grad():
        rollout = agent.collect(subject.environment(1, 64), (0,))
    s, v = rollout.obs.flatten(0, 2), exact(rollout.obs, rollout.time).flatten()

    def features(obs: Tensor) -> Tensor:
        i, j = torch.triu_indices(obs.shape[-1], obs.shape[-1])
        x = obs.double()
        return torch.cat([torch.ones_like(x[..., :1]), x, x[..., i] * x[..., j]], -1)

    beta = torch.linalg.lstsq(features(s), v.double().unsqueeze(1), driver="gelsd").solution[:, 0]
    return lambda obs, t: (features(obs) @ beta).float()


def said_parts(parts: dict[str, Decomposition]) -> str:
    rows = []
    for name, d in parts.items():
        for baseline, found in d.baselines.items():
            rows.append(
                [
                    f"{name}, {baseline}",
                    *(_shown(found.sums[k]) for k in ("tau", "action", "state", "cross", "total")),
                    f"{found.removable_share_of_steps.value:.1%}",
                ]
            )
    return (
        "## What a baseline that depends on the action could still remove\n\n"
        "Claimed (Tucker et al. 2018, “The mirage of action-dependent baselines”, section 4): with a state baseline, the variance "
        "from what follows the action (Sigma_tau) dominates that from the action itself (Sigma_a), which is all that an "
        "action-dependent baseline can remove; and a V that knows the time left helps. Here: traces summed over time, per "
        "episode; Sigma_a's share is of the sum of the three.\n\n"
        + reporting.table(
            ["task, baseline", "Sigma_tau", "Sigma_a", "Sigma_s", "between steps", "all", "share of Sigma_a"], rows
        )
    )


def _shown(x: Interval) -> str:
    return with_interval((x.value, x.low, x.high, True))


# -- reparameterization


def reparameterization(work: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """NSR ratios of the score function to the pathwise estimator: with one learned critic on Pendulum, and on cos(k z)."""
    run = _run("critic-Pendulum-v1", {**CRITIC, "baseline": "none"}, work)
    usual = []
    names = ["pathwise", "score_function", "score_function/critic_mean"]
    for m in measure(run, pairs=names, replicates=256, reference=64):
        trace = (
            m.to_critic.ratios(0)["total"]["trace_ratio"]
            if m.to_critic
            else m.quality.ratios(0)["total"]["trace_ratio"]
        )
        for j, name in enumerate(names[1:], 1):
            usual.append({"task": f"Pendulum-v1, {m.subject.stage}", "pair": name, "ratio": list(trace[j])})
    unusual = []
    d = pglab.Gaussian(torch.zeros(1) + 0.3, torch.zeros(1))
    for k in FREQUENCIES:

        def f(z: Tensor, k: float = k) -> Tensor:
            return torch.cos(k * z).sum(-1)

        both = [
            pglab.estimate_gradient(name, d, f, num_samples=16_384, seed=0)["mean"]
            for name in ("pathwise", "score_function")
        ]
        replicates = Replicates(2, 1)
        replicates.add(torch.stack(both).float())
        ratio = quality(replicates, {"mean": slice(0, 1)}).ratios(0)["total"]["trace_ratio"]
        unusual.append({"task": f"E cos({k:g} z)", "pair": "score_function", "ratio": list(ratio[1])})
    return usual, unusual


def said_ratios(usual: list[dict[str, Any]], unusual: list[dict[str, Any]]) -> str:
    rows = [[r["task"], f"`{r['pair']}`", with_interval(tuple(r["ratio"]))] for r in [*usual, *unusual]]
    return (
        "## Reparameterization usually has lower variance than the score function, but not always\n\n"
        "Claimed (Mohamed et al. 2020, “Monte Carlo gradient estimation in machine learning”, sections 3 and 9): the pathwise "
        "estimator usually has the lower variance; on functions that oscillate fast within the distribution it has the higher "
        "one. Here: trace of the estimator's covariance over that of `pathwise`, on the same states and draws (Pendulum: given "
        "the states, with the critic that training had learned; cos(k z): z normal about 0.3, gradient at the mean). Below 1, "
        "the score function is the less noisy one.\n\n"
        + reporting.table(["task", "estimator", "variance over pathwise"], rows)
    )


# -- drawing


def draw(
    curves: dict[str, list[Measured]],
    parts: dict[str, Decomposition],
    usual: list[dict[str, Any]],
    unusual: list[dict[str, Any]],
    path: Path,
) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from pglab.lab.figures import DASHES, MARKERS, PALETTE

    figure = Figure(figsize=(11.5, 4.2), layout="constrained", dpi=130)
    FigureCanvasAgg(figure)
    left, middle, right = figure.subplots(1, 3)
    for i, (name, ms) in enumerate(curves.items()):
        for j, m in enumerate(ms):
            c = _curve(m)
            left.errorbar(
                c["pairs"], c["pairwise"], c["half"], color=PALETTE[j], linestyle=DASHES[i], marker=MARKERS[i], markersize=3,
                linewidth=1, capsize=1.5, label=f"{name}, {m.subject.stage}",
            )  # fmt: skip
    left.set(xscale="log", ylim=(-0.2, 1.05), xlabel="state-action pairs per gradient", ylabel="mean pairwise cosine")
    left.set_title("Ilyas et al.: agreement grows with the batch", fontsize=8.5, loc="left")
    ticks = [2048 * 2**k for k in range(6)]
    left.set_xticks(ticks, [f"{t // 1024}k" for t in ticks])
    left.minorticks_off()
    left.legend(fontsize=6, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.17), ncols=2)
    bars = [(name, b, p) for name, d in parts.items() for b, p in d.baselines.items()]
    for i, (_, _, p) in enumerate(bars):
        shares = np.array([max(0.0, p.sums[k].value) for k in ("tau", "action", "state")])
        shares = shares / shares.sum()
        at = 0.0
        for k, share in enumerate(shares):
            label = ("continuations (tau)", "actions", "states")[k] if i == 0 else None
            middle.barh(-i, share, left=at, color=PALETTE[k], label=label)
            at += share
    middle.set_yticks([-i for i in range(len(bars))], [f"{n.partition(',')[0]}, {b}" for n, b, _ in bars], fontsize=6.5)
    middle.set_xlabel("share of the per-step variance")
    middle.set_title("Tucker et al.: what is left to the action", fontsize=8.5, loc="left")
    middle.legend(fontsize=6, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.17), ncols=3)
    everything = [*usual, *unusual]
    for i, r in enumerate(everything):
        value, low, high, _ = r["ratio"]
        right.plot([low, high], [-i, -i], color=PALETTE[0 if i < len(usual) else 1], linewidth=1.2)
        right.plot([value], [-i], "o", color=PALETTE[0 if i < len(usual) else 1], markersize=3.5)
    labels = [f"{r['task']}, {r['pair']}" for r in everything]
    right.set_yticks([-i for i in range(len(everything))], labels, fontsize=6)
    right.axvline(1, color="0.4", linewidth=0.8, linestyle="--")
    right.set(xscale="log", xlabel="variance over that of pathwise")
    right.set_title("Mohamed et al.: usually above 1", fontsize=8.5, loc="left")
    for ax in (left, middle, right):
        ax.tick_params(labelsize=6.5)
        ax.xaxis.label.set_size(7.5)
        ax.yaxis.label.set_size(7.5)
        ax.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, lambda file: figure.savefig(file, format="png"))


if __name__ == "__main__":
    main()
