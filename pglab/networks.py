"""Population-stacked networks: every parameter has a leading member axis, every layer is one batched product.

Letters: P members, C copies per member (2 for twin critics), B rows, I in, O out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from pglab.noise import Noise, Purpose, generator

Activation = Literal["tanh", "relu", "elu", "silu"]
ACTIVATIONS = {
    "tanh": torch.tanh,
    "relu": torch.relu,
    "elu": torch.nn.functional.elu,
    "silu": torch.nn.functional.silu,
}


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
        found = torch.autograd.grad(outputs, leaves, seeds, allow_unused=True)
        parts = [torch.zeros_like(v) if g is None else g for g, v in zip(found, leaves, strict=True)]
        torch.cat([g.reshape(members, self.copies, -1) for g in parts], 2, out=self.grad.view(members, self.copies, -1))
        return self.grad

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

    def __call__(self, views: dict[str, Tensor], x: Tensor) -> Tensor:
        """`x` `[P*C, B, I]` to `[P*C, B, O]`."""
        act = ACTIVATIONS[self.activation]
        last = len(self.sizes) - 2
        for i in range(last + 1):
            x = torch.baddbmm(views[f"bias{i}"], x, views[f"weight{i}"])
            if i < last:
                # The product is nobody else's: where nothing is differentiated, its memory is used again.
                x = torch.tanh_(x) if self.activation == "tanh" and not x.requires_grad else act(x)
        return x


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
