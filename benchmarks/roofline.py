"""The roofline: the matrix products and tanh of one step of the anchor work, and nothing else.

The anchor work is advantage actor-critic on CartPole-v1: separate 64-64 tanh networks for policy and value, 64
environments x 32 steps per update. Per environment step of one member that is

    policy forward, in the rollout, 64 rows per member and vector step      8,960 FLOP   128 tanh
    value forward, for the advantages, at the whole batch                   8,832 FLOP   128 tanh
    policy and value forward, for the gradient, at the whole batch         17,792 FLOP   256 tanh
    policy and value backward, at the whole batch                          34,560 FLOP

70.1 kFLOP (71.2 kFLOP if a backward pass is counted as two forward passes: nobody needs the gradient at the observations)
and 512 tanh. With one step on the whole batch the third line computes again what the first two did; `--reuse` leaves it
out, 52.4 kFLOP and 256 tanh. There is no environment, noise, sampling, advantages, derivative of tanh, loss, clipping or
optimizer.

Several layouts are tried before the clock starts and the fastest is taken: one product for the whole population
(`[P, rows, in] x [P, in, out]`) or member after member; products with one or two columns as they are or transposed. tanh
is `torch.tanh`, or the cheaper 2 sigmoid(2x) - 1, whose 2x costs nothing within the product.

    python benchmarks/roofline.py --members 16 --tanh sigmoid
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from itertools import pairwise
from typing import Any

import torch
from slices import Slices, told
from torch import Tensor

ENVS, STEPS, WARM = 64, 32, 3
POLICY, VALUE = (4, 64, 64, 2), (4, 64, 64, 1)
NARROW = 16
"""Products with fewer columns can be computed transposed."""


def flop(reuse: bool) -> int:
    """Floating-point operations per environment step that are carried out here."""
    forward = [2 * sum(a * b for a, b in pairwise(sizes)) for sizes in (POLICY, VALUE)]
    backward = 2 * sum(forward) - 2 * sum(sizes[0] * sizes[1] for sizes in (POLICY, VALUE))
    return sum(forward) * (1 if reuse else 2) + backward


class Network:
    """Weights of a population's network, and its activations and gradients at so many rows per member, all allocated.

    Tensors are `[P, rows, columns]`, or without P for one member.
    """

    def __init__(self, sizes: tuple[int, ...], members: int, rows: int, transposed: bool, by_sigmoid: bool) -> None:
        def columns(n: int) -> Tensor:
            # Few columns are stored as rows where products are computed transposed.
            return torch.randn(members, n, rows).mT if self._narrow(n) else torch.randn(members, rows, n)

        self.transposed, self.by_sigmoid = transposed, by_sigmoid
        pairs = list(pairwise(sizes))
        self.weights = [torch.randn(members, a, b) / a**0.5 for a, b in pairs]
        self.biases = [torch.zeros(members, 1, b) for _, b in pairs]
        self.weight_grads = [
            torch.empty(members, b, a).mT if self._narrow(b) else torch.empty(members, a, b) for a, b in pairs
        ]
        self.x = [torch.randn(members, rows, sizes[0]), *[columns(n) for n in sizes[1:]]]
        self.grads = [torch.randn(members, rows, sizes[0]), *[columns(n) for n in sizes[1:]]]
        self.minus_one = torch.tensor(-1.0)

    def _narrow(self, columns: int) -> bool:
        return self.transposed and columns < NARROW

    def member(self, p: int) -> Network:
        """One member, as views without the member axis."""
        one = object.__new__(Network)
        for name, value in vars(self).items():
            setattr(one, name, [t[p] for t in value] if isinstance(value, list) else value)
        return one

    def forward(self) -> None:
        """Products and tanh of a forward pass."""
        product = torch.baddbmm if self.x[0].ndim == 3 else torch.addmm
        last = len(self.weights) - 1
        for i, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            x, y = self.x[i], self.x[i + 1]
            if self._narrow(weight.shape[-1]):
                product(bias.mT, weight.mT, x.mT, out=y.mT)
            elif i == last:
                product(bias, x, weight, out=y)
            elif self.by_sigmoid:
                product(bias, x, weight, beta=2, alpha=2, out=y)
                torch.add(self.minus_one, y.sigmoid_(), alpha=2, out=y)
            else:
                product(bias, x, weight, out=y).tanh_()

    def backward(self) -> None:
        """Products of a backward pass from the gradient at the output, none at the input."""
        product = torch.bmm if self.x[0].ndim == 3 else torch.mm
        for i in range(len(self.weights) - 1, -1, -1):
            x, g, weight, found = self.x[i], self.grads[i + 1], self.weights[i], self.weight_grads[i]
            if self._narrow(weight.shape[-1]):
                product(g.mT, x, out=found.mT)
            else:
                product(x.mT, g, out=found)
            if i and weight.shape[-1] == 1 and self.transposed:
                torch.mul(g, weight.mT, out=self.grads[i])
            elif i:
                product(g, weight.mT, out=self.grads[i])


Part = tuple[Network, Network, Network]
"""Policy in the rollout, policy and value at the whole batch."""


class Roofline:
    """The work of one update of so many members, in the fastest layout."""

    def __init__(self, members: int, by_sigmoid: bool, reuse: bool) -> None:
        self.members, self.reuse = members, reuse
        layouts: dict[str, list[Part]] = {}
        for transposed in (False, True):
            whole: Part = (
                Network(POLICY, members, ENVS, transposed, by_sigmoid),
                Network(POLICY, members, ENVS * STEPS, transposed, by_sigmoid),
                Network(VALUE, members, ENVS * STEPS, transposed, by_sigmoid),
            )
            name = ", few columns transposed" if transposed else ""
            layouts[f"stacked{name}"] = [whole]
            layouts[f"by member{name}"] = [
                (whole[0].member(p), whole[1].member(p), whole[2].member(p)) for p in range(members)
            ]
        self.seconds = dict.fromkeys(layouts, float("inf"))
        for _ in range(8):
            for layout, parts in layouts.items():
                began = time.perf_counter()
                self._update(parts)
                self.seconds[layout] = min(self.seconds[layout], time.perf_counter() - began)
        self.layout = min(self.seconds, key=self.seconds.__getitem__)
        self._parts = layouts[self.layout]

    def _update(self, parts: list[Part]) -> None:
        for rollout, policy, value in parts:
            for _ in range(STEPS):
                rollout.forward()
            value.forward()
            if not self.reuse:
                value.forward()
                policy.forward()
            value.backward()
            policy.backward()

    def update(self) -> int:
        """The work of one update; the environment steps of all members it stands for."""
        self._update(self._parts)
        return self.members * ENVS * STEPS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--members", type=int, default=1, help="members (default: 1)")
    parser.add_argument("--tanh", choices=["exact", "sigmoid"], default="exact")
    parser.add_argument("--reuse", action="store_true", help="use the first forward passes for the gradient")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="torch threads (default: all cores)")
    parser.add_argument("--rounds", type=int, default=5, help="timed runs (default: 5)")
    parser.add_argument("--seconds", type=float, default=2.0, help="of each timed run (default: 2)")
    parser.add_argument("--serve", action="store_true", help="run slices as asked for on standard input")
    options = parser.parse_args()

    runs: list[dict[str, Any]] = []
    lengths, answer = told() if options.serve else (iter([options.seconds] * options.rounds), runs.append)
    torch.set_num_threads(options.threads)
    work = Roofline(options.members, options.tanh == "sigmoid", options.reuse)
    about = {
        "members": options.members,
        "tanh": options.tanh,
        "reuse": options.reuse,
        "threads": options.threads,
        "layout": work.layout,
        "layouts": {name: round(seconds, 6) for name, seconds in work.seconds.items()},
        "flop_per_step": flop(options.reuse),
    }
    slices, done = Slices(lengths, answer, about, WARM), 0
    while True:
        done += work.update()
        if slices.between(done):
            break
    if not options.serve:
        rates = [run["work"] / run["seconds"] for run in runs[1:]]
        median = statistics.median(rates)
        found = {"steps_per_second": median, "gflop_per_second": median * flop(options.reuse) / 1e9, "runs": rates}
        print(json.dumps({**about, **found}, indent=2))


if __name__ == "__main__":
    main()
