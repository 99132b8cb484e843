"""Per-replicate gradients: pglab's shared Jacobian against a loop of backward passes and PyTorch's own recipes.

    python benchmarks/per_replicate.py --out benchmarks/per_replicate

The work: a policy of 4-64-64-2 (tanh), 1,024 episodes of 200 steps, the gradient of every episode at the network's parameters,
for one estimator and for twelve (the same scores with other values, as baselines make them). In turns, the median of several
rounds; all with the same torch threads, and all written to the same memory.

- loop: one forward and one backward pass per episode and estimator
- vmap(grad): PyTorch's per-sample-gradient recipe, functional_call under vmap, in chunks
- vmap(vjp): one forward pass, vector-Jacobian products over all cotangents, by vmap over episodes
- Gram: only the squared norms, from products of inputs and of deltas between an episode's steps (no gradient is formed)
- pglab: `pglab.lab.jacobian.Jacobian`
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import reporting
import torch
from torch import Tensor
from torch.func import functional_call, grad, vjp, vmap

from pglab.devices import keep_memory
from pglab.distributions import Categorical
from pglab.environments.contract import ActionSpec
from pglab.lab.jacobian import Jacobian
from pglab.lab.replicates import Replicates
from pglab.noise import Noise
from pglab.policy import Policy, PolicyConfig

STEPS, EPISODES, MANY = 200, 1024, 12
CHUNK = 64


class Work:
    """Observations, actions and values, and the same network for everyone."""

    def __init__(self, episodes: int = EPISODES) -> None:
        torch.manual_seed(0)
        self.policy = Policy(PolicyConfig(), 4, ActionSpec("discrete", (2,)), "gaussian")
        self.parameters = self.policy.initial(Noise.of_seeds([0]))
        self.obs = torch.randn(STEPS, 1, episodes, 4)
        index = torch.randint(2, (STEPS, 1, episodes))
        self.action = torch.nn.functional.one_hot(index, 2).float().unsqueeze(-2)  # [T, 1, E, 1, 2]
        self.values = torch.randn(MANY, STEPS, 1, episodes)
        layers: list[torch.nn.Module] = []
        for i, (a, b) in enumerate([(4, 64), (64, 64), (64, 2)]):
            linear = torch.nn.Linear(a, b)
            with torch.no_grad():
                linear.weight.copy_(self.parameters.views[f"weight{i}"][0].T)
                linear.bias.copy_(self.parameters.views[f"bias{i}"][0, 0])
            layers += [linear, torch.nn.Tanh()] if i < 2 else [linear]
        self.net = torch.nn.Sequential(*layers)
        self.leaves = dict(self.net.named_parameters())
        # Episodes first, as the recipes want them.
        self.x = self.obs[:, 0].transpose(0, 1).contiguous()  # [E, T, 4]
        self.a = self.action[:, 0, :, 0].transpose(0, 1).contiguous()  # [E, T, 2]
        self.v = self.values[:, :, 0].transpose(1, 2).contiguous()  # [J, E, T]

    def as_flat(self, parts: dict[str, Tensor] | list[Tensor]) -> Tensor:
        """Gradients `[..., out, in]` and `[..., out]` as they lie in pglab's flat tensor."""
        found = parts.values() if isinstance(parts, dict) else parts
        lead = next(iter(found)).ndim - 2
        return torch.cat([(g.mT if g.ndim == lead + 2 else g).flatten(lead) for g in found], -1)


def loss(w: Work, parameters: dict[str, Tensor], x: Tensor, a: Tensor, v: Tensor) -> Tensor:
    logits = functional_call(w.net, parameters, (x,))
    return ((torch.log_softmax(logits, -1) * a).sum(-1) * v).sum()


def loop(w: Work, sets: int, out: Tensor) -> Tensor:
    leaves = list(w.leaves.values())
    for j in range(sets):
        for i, (x, a, v) in enumerate(zip(w.x, w.a, w.v[j], strict=True)):
            value = ((torch.log_softmax(w.net(x), -1) * a).sum(-1) * v).sum()
            out[j, i] = w.as_flat(list(torch.autograd.grad(value, leaves)))
    return out


def vmap_grad(w: Work, sets: int, out: Tensor) -> Tensor:
    parameters = {k: p.detach() for k, p in w.leaves.items()}
    one = grad(lambda p, x, a, v: loss(w, p, x, a, v))
    each = vmap(one, in_dims=(None, 0, 0, 0), chunk_size=CHUNK)
    for j in range(sets):
        out[j] = w.as_flat(each(parameters, w.x, w.a, w.v[j]))
    return out


def vmap_vjp(w: Work, sets: int, out: Tensor) -> Tensor:
    parameters = {k: p.detach() for k, p in w.leaves.items()}

    def episode(x: Tensor, a: Tensor, v: Tensor) -> dict[str, Tensor]:
        _, pull = vjp(lambda p: (torch.log_softmax(functional_call(w.net, p, (x,)), -1) * a).sum(-1), parameters)
        return vmap(lambda c: pull(c)[0])(v)  # v: [J, T]

    found = vmap(episode, chunk_size=CHUNK)(w.x, w.a, w.v[:sets].transpose(0, 1))  # [E, J, ...]
    out[:] = w.as_flat(found).transpose(0, 1)
    return out


def logits(j: Jacobian) -> Tensor:
    assert isinstance(j.distribution, Categorical)
    return j.distribution.logits


def gram(w: Work, sets: int, out: Tensor | None = None) -> Tensor:
    """Squared norms `[sets, E]`."""
    found = []
    for start in range(0, len(w.x), CHUNK):
        s = slice(start, start + CHUNK)
        j = Jacobian(w.policy, w.parameters, w.obs[:, :, s])
        scores = (w.action[:, :, s] - torch.softmax(logits(j), -1))[..., 0, :]
        c = scores[:, 0].transpose(0, 1)[..., 0]  # [e, T]: the score at the first logit; the second's is its negative
        basis = j._of_outputs(True)
        e = len(c)
        kernel = 0.0
        for i, x in enumerate(j.inputs):
            xs = x.view(e, STEPS, -1)
            if i < len(basis):
                d = basis[i].view(e, STEPS, -1) * c.unsqueeze(-1)
            else:
                d = torch.stack([c, -c], -1)
            kernel = kernel + (xs @ xs.mT + 1) * (d @ d.mT)
        v = w.v[:sets, s]  # [J, e, T]
        found.append(torch.einsum("jet,etu,jeu->je", v, kernel, v))
    return torch.cat(found, 1)


def shared(w: Work, sets: int, out: Tensor) -> Tensor:
    for start in range(0, len(w.x), CHUNK):
        s = slice(start, start + CHUNK)
        _pulled(w, s, sets, out[:, s])
    return out


def _pulled(w: Work, s: slice, sets: int, out: Tensor | None = None) -> Tensor:
    j = Jacobian(w.policy, w.parameters, w.obs[:, :, s])
    scores = w.action[:, :, s] - torch.softmax(logits(j), -1)
    return j.pull([[scores * w.values[i, :, :, s, None, None]] for i in range(sets)], "column", out)


def memory(episodes: int) -> None:
    """Print the most memory (MiB) that streaming so many episodes into `Replicates` took, above the start."""
    w = Work(CHUNK)

    def highest() -> float:
        lines = Path("/proc/self/status").read_text().splitlines()
        return float(next(x for x in lines if x.startswith("VmHWM")).split()[1]) / 1024

    torch.set_num_threads(1)
    _pulled(w, slice(0, CHUNK), MANY)
    before = highest()
    replicates = Replicates(MANY, w.parameters.size)
    for start in range(0, episodes, CHUNK):
        w.values = torch.randn(MANY, STEPS, 1, CHUNK, generator=torch.Generator().manual_seed(start))
        replicates.add(_pulled(w, slice(0, CHUNK), MANY))
    print(highest() - before)


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    p.add_argument("--out", type=Path)
    p.add_argument("--memory", type=int, help=argparse.SUPPRESS)
    options = p.parse_args()
    keep_memory()
    if options.memory:
        memory(options.memory)
        return
    w = Work()
    few = Work(CHUNK)
    n = w.parameters.size
    exact = loop(few, 2, torch.zeros(2, CHUNK, n))
    for name, f in (("vmap(grad)", vmap_grad), ("vmap(vjp)", vmap_vjp), ("pglab", shared)):
        error = float((f(few, 2, torch.zeros(2, CHUNK, n)) - exact).norm() / exact.norm())
        assert error < 1e-5, f"{name} differs from the loop by {error:.1e}"
    assert torch.allclose(gram(few, 2), exact.square().sum(-1), rtol=1e-4)
    contestants: dict[str, Callable[[Work, int, Tensor], Tensor]] = {
        "loop": loop,
        "vmap(grad)": vmap_grad,
        "vmap(vjp)": vmap_vjp,
        "Gram (squared norms only)": gram,
        "pglab": shared,
    }
    out = torch.zeros(MANY, EPISODES, n)  # where everyone writes gradients, its memory touched beforehand
    rows, record = [], {**reporting.provenance(), "seconds": {}}
    for threads in options.threads:
        torch.set_num_threads(threads)
        for sets in (1, MANY):
            seconds: dict[str, list[float]] = {name: [] for name in contestants}
            for _ in range(options.rounds):
                for name, f in contestants.items():
                    # A loop of twelve is twelve loops of one: it is timed once and multiplied.
                    asked = 1 if name == "loop" else sets
                    began = time.perf_counter()
                    f(w, asked, out[:asked])
                    seconds[name].append((time.perf_counter() - began) * sets / asked)
            record["seconds"][f"{threads} threads, {sets} estimators"] = seconds
            base = median(seconds["loop"])
            for name, values in seconds.items():
                m = median(values)
                rows.append([str(threads), str(sets), name, f"{m:.3f}", f"{base / m:.1f}x"])
    kept: dict[str, Any] = {}
    for episodes in (256, 1024, 4096, 16384):
        out = subprocess.run(
            [sys.executable, __file__, "--memory", str(episodes)], capture_output=True, text=True, check=True
        )
        kept[f"{episodes:,}"] = float(out.stdout)
    record["memory_MiB"] = kept
    table = reporting.table(["torch threads", "estimators", "way", "seconds", "speed over the loop"], rows)
    memory_table = reporting.table(["episodes", "MiB above the start"], [[k, f"{v:.0f}"] for k, v in kept.items()])
    text = (
        f"{reporting.origin(record)}\n\n{__doc__.split('`--out')[0].split(chr(10) * 2, 2)[2].strip()}\n\n{table}\n\n"
        f"Peak memory of streaming twelve estimators into `Replicates` ({CHUNK} episodes at a time):\n\n{memory_table}"
    )
    reporting.write(options.out, "Per-replicate gradients", text, record)
    print(table, memory_table, sep="\n\n")


if __name__ == "__main__":
    main()
