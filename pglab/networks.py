"""Population-stacked networks: every parameter has a leading member axis, every layer is one batched product.

Letters: P members, C copies per member (2 for twin critics), B rows, I in, O out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from pglab.noise import Noise, Purpose, generator

Activation = Literal["tanh", "relu", "elu", "silu"]
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "tanh": torch.tanh,
    "relu": torch.relu,
    "elu": torch.nn.functional.elu,
    "silu": torch.nn.functional.silu,
}
MINUS_ONE = torch.tensor(-1.0)
CACHED = 2**21
"""Bytes of one layer's values that a backward pass holds at a time on a CPU."""
NARROW = 16
"""Products with fewer columns than this are computed transposed on a CPU, where BLAS is up to ten times faster so."""


class Parameters:
    """All parameters of a population's network in one tensor `flat` `[P, C * n]`, with named views into it.

    One tensor makes optimizer steps, clipping, target updates and copies one operation each. The views are the leaves of
    the network's graph; `backward` writes the gradient of all of them into `grad` `[P, C * n]`.
    """

    def __init__(
        self, shapes: dict[str, tuple[int, ...]], flat: Tensor, copies: int = 1, trainable: bool = True
    ) -> None:
        self.shapes, self.flat, self.copies, self.trainable = shapes, flat, copies, trainable
        self.size = sum(math.prod(shape) for shape in shapes.values())
        self.grad = torch.zeros_like(flat) if trainable else None
        self.views: dict[str, Tensor] = {}
        members = flat.shape[0]
        stacked, at = flat.detach().view(members, copies, self.size), 0
        for name, shape in shapes.items():
            n = math.prod(shape)
            view = stacked[:, :, at : at + n].view(members, copies, *shape).flatten(0, 1)  # [P*C, ...]
            self.views[name] = view.requires_grad_(trainable)
            at += n

    def backward(self, outputs: list[Tensor], seeds: list[Tensor] | None = None) -> Tensor:
        """The gradient of `outputs` (weighted by `seeds`; a scalar needs none) at the parameters, in `grad`, replacing
        what was there."""
        assert self.grad is not None
        members = len(self.flat)
        leaves = list(self.views.values())
        if seeds is not None:
            outputs = [_Against.apply(len(outputs), *outputs, *seeds)]
        found = torch.autograd.grad(outputs, leaves, allow_unused=True)
        parts = [torch.zeros_like(v) if g is None else g for g, v in zip(found, leaves, strict=True)]
        torch.cat([g.reshape(members, self.copies, -1) for g in parts], 2, out=self.grad.view(members, self.copies, -1))
        return self.grad

    def flattened(self, parts: Sequence[Tensor]) -> Tensor:
        """One tensor per view, in their order, as they lie in `flat`, `[P, C * n]`."""
        members = len(self.flat)
        return torch.cat([g.reshape(members, self.copies, -1) for g in parts], 2).view(members, -1)

    @property
    def version(self) -> int:
        """A number that grows whenever the parameters are written to."""
        return self.flat._version

    def repeated(self, replicates: int) -> Parameters:
        """Each member's parameters `replicates` times in a row."""
        return Parameters(self.shapes, self.flat.repeat_interleave(replicates, 0), self.copies, self.trainable)

    def frozen_copy(self) -> Parameters:
        """A copy that takes no gradient (a target network)."""
        return Parameters(self.shapes, self.flat.clone(), self.copies, trainable=False)


@dataclass(frozen=True)
class MLP:
    """A multi-layer perceptron for a whole population: sizes (input, hidden..., output), one activation between layers.

    Weights are orthogonal with gain sqrt(2) (tanh: 5/3 is not used, as in the common implementations), the last layer's
    with `output_gain`; biases are 0. Each is drawn from its member's own noise.
    """

    sizes: tuple[int, ...]
    activation: Activation = "tanh"
    output_gain: float = 1.0
    stream: int = 0
    """Keeps the initial weights of different networks of one member apart."""

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Parameter shapes of one member: weight{i} (I, O), bias{i} (1, O)."""
        found: dict[str, tuple[int, ...]] = {}
        for i, (a, b) in enumerate(zip(self.sizes[:-1], self.sizes[1:], strict=True)):
            found[f"weight{i}"] = (a, b)
            found[f"bias{i}"] = (1, b)
        return found

    def initial(self, noise: Noise, copies: int = 1, extra: dict[str, np.ndarray] | None = None) -> Parameters:
        """Fresh parameters for every member; `extra` adds named arrays that do not belong to a layer (log_std)."""
        shapes = self.shapes | {name: value.shape for name, value in (extra or {}).items()}
        rows = []
        for member in noise.members:
            for copy in range(copies):
                parts = []
                for i, (a, b) in enumerate(zip(self.sizes[:-1], self.sizes[1:], strict=True)):
                    last = i == len(self.sizes) - 2
                    g = generator(member, Purpose.PARAMETERS, (self.stream, copy, i))
                    parts += [orthogonal(g, a, b, self.output_gain if last else math.sqrt(2)).ravel(), np.zeros(b)]
                parts += [np.ravel(value) for value in (extra or {}).values()]
                rows.append(np.concatenate(parts))
        flat = torch.from_numpy(np.stack(rows).astype(np.float32)).to(noise.device)
        return Parameters(shapes, flat.view(len(noise), -1), copies)

    def __call__(self, views: dict[str, Tensor], x: Tensor, recorded: Recorded | None = None) -> Tensor:
        """`x` `[P*C, B, I]` to `[P*C, B, O]`; may be differentiated any number of times in `views` and `x`.

        With `recorded`, which must be of these very `views` and `x`, nothing is computed that has been already.
        """
        weights = [views[name] for name in self.layer_names]
        if not torch.is_grad_enabled() or not (x.requires_grad or weights[0].requires_grad):
            return self.run(weights, x)[1] if recorded is None else recorded.output
        hidden, output = ([], None) if recorded is None else (recorded.hidden, recorded.output)
        return _Network.apply(self, x, output, len(hidden), *hidden, *weights)

    @cached_property
    def layer_names(self) -> list[str]:
        """Names of weights and biases in order."""
        return [f"{kind}{i}" for i in range(len(self.sizes) - 1) for kind in ("weight", "bias")]

    def plain(self, weights: Sequence[Tensor], x: Tensor) -> Tensor:
        """The same function in operations that torch differentiates: what `run` and `pull` are held to."""
        act, last = ACTIVATIONS[self.activation], len(self.sizes) - 2
        for i in range(last + 1):
            x = torch.baddbmm(weights[2 * i + 1], x, weights[2 * i])
            x = act(x) if i < last else x
        return x

    def run(
        self, weights: Sequence[Tensor], x: Tensor, into: Sequence[Tensor] | None = None
    ) -> tuple[list[Tensor], Tensor]:
        """The forward pass: what `pull` needs of each hidden layer, `[P*C, B, H]`, and the output. `into`, where given,
        is where the hidden layers are written."""
        kept: list[Tensor] = []
        last = len(self.sizes) - 2
        by_sigmoid = self.activation == "tanh" and x.dtype == torch.float32 and x.device.type == "cpu"
        for i in range(last):
            # Only the last operation of a layer writes to `into`: products are fastest on memory without gaps.
            out = None if into is None else into[i]
            z = _affine(x, weights[2 * i], weights[2 * i + 1], 2.0 if by_sigmoid else 1.0)
            mine = z if out is None else out
            if by_sigmoid:
                # tanh(z) = 2 sigmoid(2 z) - 1: on a CPU a fifth of torch.tanh's time, within 2e-7 of it.
                x = torch.add(MINUS_ONE, z.sigmoid_(), alpha=2, out=mine)
                kept.append(x)
            elif self.activation == "tanh":
                x = torch.tanh(z, out=mine)
                kept.append(x)
            elif self.activation == "relu":
                x = torch.clamp_min(z, 0.0, out=mine)
                kept.append(x)
            else:
                kept.append(z if out is None else out.copy_(z))
                x = ACTIVATIONS[self.activation](z)
        return kept, _affine(x, weights[2 * last], weights[2 * last + 1])

    def hidden(self, kept: Tensor) -> Tensor:
        """A hidden layer's values from what `run` keeps of it."""
        return kept if self.activation in ("tanh", "relu") else ACTIVATIONS[self.activation](kept)

    def pull(
        self, weights: Sequence[Tensor], x: Tensor, kept: Sequence[Tensor], cotangent: Tensor, wanted: Sequence[bool]
    ) -> list[Tensor | None]:
        """The backward pass: the vector-Jacobian products of `cotangent` `[P*C, B, O]` with `x` and each of `weights`,
        in this order; None where not `wanted`."""
        found: list[Tensor | None] = [None] * (1 + len(weights))
        g = cotangent
        for i in range(len(self.sizes) - 2, -1, -1):
            if wanted[1 + 2 * i]:
                found[1 + 2 * i] = _outer(x if i == 0 else self.hidden(kept[i - 1]), g)
            if wanted[2 + 2 * i]:
                found[2 + 2 * i] = g.sum(1, keepdim=True)
            if not (any(wanted[1 : 1 + 2 * i]) or wanted[0]):
                break
            g = torch.bmm(g, weights[2 * i].transpose(1, 2)) if g.shape[2] > 1 else g * weights[2 * i].transpose(1, 2)
            if i:
                g = _through(self.activation, g, kept[i - 1])
        else:
            found[0] = g
        return found

    def factors(
        self, weights: Sequence[Tensor], x: Tensor, kept: Sequence[Tensor], cotangent: Tensor
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Every layer's input `[P*C, B, I]` and delta `[P*C, B, O]`, the gradient at its output before the activation for
        `cotangent` at the last: row by row the factors of the weights' gradients."""
        deltas = [cotangent]
        for i in range(len(self.sizes) - 2, 0, -1):
            g = torch.bmm(deltas[-1], weights[2 * i].transpose(1, 2))
            deltas.append(_through(self.activation, g, kept[i - 1]))
        return [x, *(self.hidden(h) for h in kept)], deltas[::-1]

    def pull_in_parts(
        self, weights: Sequence[Tensor], x: Tensor, kept: Sequence[Tensor], cotangent: Tensor, wanted: Sequence[bool]
    ) -> list[Tensor | None]:
        """`pull`, on a CPU a few members at a time where all together overflow its caches."""
        members, rows, _ = x.shape
        few = max(1, CACHED // max(1, rows * max(self.sizes) * x.element_size()))
        if x.device.type != "cpu" or members <= few:
            return self.pull(weights, x, kept, cotangent, wanted)
        parts = [
            self.pull([w[s] for w in weights], x[s], [h[s] for h in kept], cotangent[s], wanted)
            for s in (slice(i, i + few) for i in range(0, members, few))
        ]
        return [None if found[0] is None else torch.cat(found) for found in zip(*parts, strict=True)]


@dataclass(frozen=True)
class Recorded:
    """A forward pass that was made already."""

    hidden: list[Tensor]  # [P, B, H] each
    output: Tensor  # [P, B, O]
    holds: Callable[[Parameters], bool]
    """Whether it is still there, and still what these parameters give."""


class Recorder:
    """Keeps the forward passes of a rollout, step by step, so that its update need not make them again. The memory is
    allocated once and written anew by every rollout."""

    def __init__(self, network: MLP, members: int, steps: int, envs: int, device: torch.device) -> None:
        self._shape = (members, steps, envs)
        *self._hidden, self._output = [torch.empty(members, steps, envs, h, device=device) for h in network.sizes[1:]]
        self.rows = list(zip(*[x.unbind(1) for x in (*self._hidden, self._output)], strict=True))
        """For every step, where its hidden layers and output are kept, `[P, N, ...]` each."""
        self._round = 0

    def begin(self, network: MLP, parameters: Parameters) -> None:
        """A new rollout of this network; what was recorded before no longer holds."""
        self._taken = 0
        self._round += 1
        self._network, self._made_with = network, (parameters, parameters.version)
        self._weights = [parameters.views[name] for name in network.layer_names]

    def step(self, x: Tensor) -> Tensor:
        """The network's output `[P, N, O]` at the next step's `x` `[P, N, I]`."""
        t = self._taken
        *into, mine = self.rows[t]
        self._taken = t + 1
        return mine.copy_(self._network.run(self._weights, x, into)[1])

    def take(self) -> Recorded:
        """The whole rollout, rows `[P, T*N]`; the next one overwrites it."""
        p, t, n = self._shape
        this, made_with = self._round, self._made_with

        def holds(parameters: Parameters) -> bool:
            return self._round == this and made_with[0] is parameters and made_with[1] == parameters.version

        *hidden, output = [x.view(p, t * n, -1) for x in (*self._hidden, self._output)]
        return Recorded(hidden, output, holds)


class _Against(torch.autograd.Function):
    """A number whose gradient at each of `n` outputs is the seed that comes with it. To hand seeds to `torch.autograd.grad`
    itself makes torch import a quarter of a second of symbolic mathematics."""

    @staticmethod
    def forward(ctx: Any, n: int, *tensors: Tensor) -> Tensor:
        ctx.seeds = tensors[n:]
        return tensors[0].new_zeros(())

    @staticmethod
    def backward(ctx: Any, one: Tensor) -> tuple[Tensor | None, ...]:
        return None, *ctx.seeds, *[None] * len(ctx.seeds)


class _Network(torch.autograd.Function):
    """`MLP.run` and `MLP.pull` as one operation of torch's graph."""

    @staticmethod
    def forward(ctx: Any, network: MLP, x: Tensor, output: Tensor | None, recorded: int, *rest: Tensor) -> Tensor:
        hidden, weights = list(rest[:recorded]), rest[recorded:]
        if output is None:
            hidden, output = network.run(weights, x)
        else:
            output = output.view_as(output)
        ctx.network, ctx.count, ctx.recorded = network, len(hidden), recorded
        ctx.save_for_backward(x, *hidden, *weights)
        return output

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor | None, ...]:
        x, *rest = ctx.saved_tensors
        kept, weights = rest[: ctx.count], rest[ctx.count :]
        at = 4 + ctx.recorded
        wanted = [ctx.needs_input_grad[1], *ctx.needs_input_grad[at:]]
        if torch.is_grad_enabled():  # to be differentiated again
            inputs = [t for t, w in zip([x, *weights], wanted, strict=True) if w]
            again = iter(torch.autograd.grad(ctx.network.plain(weights, x), inputs, cotangent, create_graph=True))
            found = [next(again) if w else None for w in wanted]
        else:
            found = ctx.network.pull_in_parts(weights, x, kept, cotangent, wanted)
        return None, found[0], None, None, *[None] * ctx.recorded, *found[1:]


def _affine(x: Tensor, weight: Tensor, bias: Tensor, scale: float = 1.0) -> Tensor:
    """scale (x W + b): `[P, B, I]`, `[P, I, O]`, `[P, 1, O]` to `[P, B, O]`."""
    if weight.shape[2] < NARROW and x.device.type == "cpu":
        bias, x, weight = bias.transpose(1, 2), weight.transpose(1, 2), x.transpose(1, 2)
        return torch.baddbmm(bias, x, weight, beta=scale, alpha=scale).transpose(1, 2)
    return torch.baddbmm(bias, x, weight, beta=scale, alpha=scale)


def _outer(x: Tensor, g: Tensor) -> Tensor:
    """x^T g: `[P, B, I]`, `[P, B, O]` to `[P, I, O]`."""
    if g.shape[2] < NARROW and g.device.type == "cpu":
        return torch.bmm(g.transpose(1, 2), x).transpose(1, 2)
    return torch.bmm(x.transpose(1, 2), g)


def _through(activation: Activation, g: Tensor, kept: Tensor) -> Tensor:
    """`g` times the activation's derivative; `g` is nobody else's and is overwritten where that saves memory."""
    ops = torch.ops.aten
    if activation == "tanh":
        return ops.tanh_backward.grad_input(g, kept, grad_input=g)
    if activation == "relu":
        return ops.threshold_backward.grad_input(g, kept, 0, grad_input=g)
    if activation == "elu":
        return ops.elu_backward(g, 1.0, 1.0, 1.0, False, kept)
    return ops.silu_backward(g, kept)


def slope(activation: Activation, kept: Tensor) -> Tensor:
    """The activation's derivative, from what `MLP.run` keeps of a layer."""
    if activation == "tanh":
        return (kept * kept).neg_().add_(1)
    return _through(activation, torch.ones_like(kept), kept)


def orthogonal(g: np.random.Generator, a: int, b: int, gain: float) -> np.ndarray:
    """A random (semi-)orthogonal `[a, b]` matrix times `gain` (Saxe, McClelland & Ganguli 2014)."""
    q, r = np.linalg.qr(g.standard_normal((max(a, b), min(a, b))))
    q = q * np.sign(np.diag(r))
    return gain * (q if a >= b else q.T)


def by_member(x: Tensor) -> Tensor:
    """Rows `[T, P, N, X]` (or `[P, N, X]`) laid out for a population network, `[P, T*N, X]`."""
    if x.ndim == 3:
        return x
    t, p, n, k = x.shape
    return x.transpose(0, 1).reshape(p, t * n, k)


def by_row(y: Tensor, rows: torch.Size) -> Tensor:
    """The network's output `[P, T*N, Y]` back on rows `[T, P, N, Y]` (or `[P, N, Y]`): a view."""
    if len(rows) == 2:
        return y
    t, p, n = rows
    return y.view(p, t, n, y.shape[-1]).transpose(0, 1)
