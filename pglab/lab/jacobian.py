"""One network Jacobian for many estimators: per-replicate gradients at frozen parameters.

An estimator is its cotangents at the distribution's parameters. All estimators measured on the same rows share the
network's forward pass and its Jacobian there; what each of them costs is one product per layer. No gradient of a single
row is ever written out: a layer's weights have, for each replicate, the product of its rows' inputs and deltas (the
gradients at the layer's output before the activation).

Letters: T time, P replicates of a batch, N columns (environments), U units (replicates), S rows of a unit, J estimators,
E outputs of the network, H units of a layer, n parameters.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor

from pglab.networks import Parameters, slope
from pglab.policy import Policy

Unit = Literal["column", "batch"]
"""What a replicate is: a column of a batch (an episode, or the episodes one environment plays), or a whole batch."""

Cotangents = Sequence[Tensor]
"""One tensor per name in the distribution's parameters, `[T, P, N, ...]`, weights multiplied in."""

CACHE = 2**22
"""Bytes of deltas held at a time on a CPU, so that a layer's products find them in a cache."""


class Jacobian:
    """The policy at rows `[T, P, N]` under one member's parameters, and the pull-back of cotangents from there.

    Args:
        policy: the network and family.
        parameters: of one member, `[1, n]`.
        obs: `[T, P, N, O]` as the network sees them.
        action_mask: `[T, P, N, D, K]`.
    """

    def __init__(self, policy: Policy, parameters: Parameters, obs: Tensor, action_mask: Tensor | None = None) -> None:
        self.policy, self.parameters = policy, parameters
        self.rows = tuple(obs.shape[:3])
        network = policy.network
        self.weights = [parameters.views[name].detach() for name in network.layer_names]
        t, p, n = self.rows
        with torch.no_grad():
            # Columns one after another, so that a unit's rows lie together whichever it is.
            x = obs.permute(1, 2, 0, 3).reshape(1, p * n * t, obs.shape[-1])
            kept, output = network.run(self.weights, x)
            self.inputs = [x[0], *(network.hidden(h)[0] for h in kept)]  # [P*N*T, H] of every layer
            self.slopes = [slope(network.activation, h)[0] for h in kept]
            self._head = output[0].view(p, n, t, -1).permute(2, 0, 1, 3)  # [T, P, N, E]
            self.distribution = policy.parameterized(parameters.views, self._head, action_mask).detach()
        self._mask = action_mask
        self._basis: dict[bool, list[Tensor]] = {}
        self._kernel: Tensor | None = None

    def pull(self, cotangents: Sequence[Cotangents], unit: Unit, out: Tensor | None = None) -> Tensor:
        """The gradients of all units for every set of cotangents, `[J, U, n]`, for *ascent*, as the parameters lie in
        `Parameters.flat`: the sum over the unit's rows. U is P x N (columns of one batch together) or P. Written to `out`, a
        tensor of this shape, where one is given."""
        j, (t, p, n) = len(cotangents), self.rows
        units, rows = (p * n, t) if unit == "column" else (p, n * t)
        heads, extra = self._at_output(cotangents)  # [J, E, P*N*T], name -> [J, D, P*N*T]
        if out is None:
            out = self.inputs[0].new_empty(j, units, self.parameters.size)
        at, places = 0, {}
        for name, shape in self.parameters.shapes.items():
            size = math.prod(shape)
            places[name] = out[:, :, at : at + size].view(j, units, *shape)
            at += size
        for name, x in extra.items():
            places[name].copy_(x.view(j, -1, units, rows).sum(3).transpose(1, 2).unsqueeze(2))
        last = len(self.policy.network.sizes) - 2
        self._last_layer(places, heads, last, units, rows)
        if last == 0:
            return out
        coefficients, basis = self._reduced(heads)
        for few in self._chunks(units, rows * j):
            u, span = few.stop - few.start, slice(few.start * rows, few.stop * rows)
            for layer in range(last):
                x = self.inputs[layer][span].view(u, rows, -1)  # [u, S, I]
                if len(basis[layer]) == 1:
                    # One delta for all: the numbers multiply the inputs, and the products come out as they are kept.
                    c = coefficients[:, 0, span].view(j, u, rows).permute(1, 2, 0).contiguous()  # [u, S, J]
                    d = basis[layer][0, span].view(u, rows, -1)  # [u, S, H]
                    wide = torch.mul(c.unsqueeze(3), x.unsqueeze(2)).view(u, rows, -1)  # [u, S, J * I]
                    weights = torch.bmm(wide.mT, d).view(u, j, x.shape[2], -1)
                    places[f"weight{layer}"][:, few].copy_(weights.transpose(0, 1))
                    places[f"bias{layer}"][:, few].copy_(torch.bmm(c.mT, d).transpose(0, 1).unsqueeze(2))
                    continue
                delta = self._combined(coefficients[:, :, span], basis[layer][:, span])  # [u*S, J, H]
                # [u, I, S] x [u, S, J * H]: one product for all estimators.
                d = delta.view(u, rows, -1)
                weights = torch.bmm(x.mT, d).view(u, x.shape[2], j, -1)
                places[f"weight{layer}"][:, few].copy_(weights.permute(2, 0, 1, 3))
                places[f"bias{layer}"][:, few].copy_(d.sum(1).view(u, 1, j, -1).permute(2, 0, 1, 3))
        return out

    def inner(self, a: Sequence[Cotangents], b: Sequence[Cotangents]) -> Tensor:
        """Row by row, the inner product of the gradients of two sets of cotangents at the same rows, `[J, T, P, N]`: a K b
        with K the rows' own E x E block of the network's tangent kernel."""
        (head_a, extra_a), (head_b, extra_b) = self._at_output(a), self._at_output(b)
        t, p, n = self.rows
        kernel = self._kernel_blocks()  # [E, E, P*N*T]
        found = torch.zeros_like(head_a[:, 0])  # [J, P*N*T]
        for k in range(kernel.shape[0]):
            found += head_a[:, k] * (kernel[k] * head_b).sum(1)
        for name, x in extra_a.items():
            found += (x * extra_b[name]).sum(1)
        return found.view(-1, p, n, t).permute(0, 3, 1, 2)

    def squared_norms(self, cotangents: Sequence[Cotangents]) -> Tensor:
        """Every row's own squared gradient norm, `[J, T, P, N]`."""
        return self.inner(cotangents, cotangents)

    # -- from the distribution's parameters to the network's output

    def _at_output(self, cotangents: Sequence[Cotangents]) -> tuple[Tensor, dict[str, Tensor]]:
        """The cotangents at the network's output, `[J, E, P*N*T]`, and at parameters outside of its layers, row by row."""
        t, p, n = self.rows
        if self.policy.family in ("categorical", "bernoulli") and self.policy.config.logit_bound is None:
            # The logits are the network's outputs themselves.
            found = self._head.new_empty(len(cotangents), self._head.shape[-1], p, n, t)
            for into, (grad,) in zip(found, cotangents, strict=True):
                into.copy_(grad.reshape(t, p, n, -1).permute(3, 1, 2, 0))
            return found.view(len(cotangents), -1, p * n * t), {}
        names = [name for name in self.parameters.views if name not in self.policy.network.layer_names]
        with torch.enable_grad():
            h = self._head.detach().requires_grad_()
            # One copy for every row of what all rows share, so that each row has a gradient of its own.
            own = {
                name: self.parameters.views[name].detach().expand(t, p, n, -1).clone().requires_grad_()
                for name in names
            }
            distribution = self.policy.parameterized(own, h, self._mask)
            heads = {name: getattr(distribution, name) for name in distribution.parameters}
            wanted = [name for name, head in heads.items() if head.requires_grad]
        j, leaves = len(cotangents), [h, *own.values()]
        kept = [x.new_zeros(j, x.shape[-1], p, n, t) for x in leaves]
        for i, one in enumerate(cotangents):
            seeds = [g for name, g in zip(heads, one, strict=True) if name in wanted]
            pulled = torch.autograd.grad(
                [heads[name] for name in wanted], leaves, seeds, allow_unused=True, retain_graph=i < j - 1
            )
            for into, g in zip(kept, pulled, strict=True):
                if g is not None:
                    into[i].copy_(g.permute(3, 1, 2, 0))
        flat = [x.view(j, -1, p * n * t) for x in kept]
        return flat[0], dict(zip(names, flat[1:], strict=True))

    # -- through the network

    def _last_layer(self, places: dict[str, Tensor], heads: Tensor, last: int, units: int, rows: int) -> None:
        j, e = heads.shape[:2]
        x = self.inputs[last].view(units, rows, -1)
        d = heads.view(j * e, units, rows).transpose(0, 1)  # [U, J*E, S]
        weights = torch.bmm(d, x).view(units, j, e, -1)  # [U, J, E, I]
        places[f"weight{last}"].copy_(weights.permute(1, 0, 3, 2))
        places[f"bias{last}"].copy_(heads.view(j, e, units, rows).sum(3).transpose(1, 2).unsqueeze(2))

    def _chunks(self, units: int, rows: int) -> Iterator[slice]:
        """A few units at a time; `rows` that one has for all estimators together."""
        few = units
        if self.inputs[0].device.type == "cpu":
            few = max(1, CACHE // max(1, rows * max(self.policy.network.sizes) * 4))
        for start in range(0, units, few):
            yield slice(start, min(start + few, units))

    def _combined(self, coefficients: Tensor, basis: Tensor) -> Tensor:
        """Deltas `[rows, J, H]`: `coefficients` `[J, E, rows]` of the `basis` `[E, rows, H]`."""
        c = coefficients.permute(1, 2, 0).contiguous().unsqueeze(-1)  # [E, rows, J, 1]
        found = basis.new_empty(*c.shape[1:3], basis.shape[2])
        torch.mul(c[0], basis[0].unsqueeze(1), out=found)
        for k in range(1, len(basis)):
            found.addcmul_(c[k], basis[k].unsqueeze(1))
        return found

    def _reduced(self, heads: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Coefficients `[J, E', P*N*T]` and a basis of deltas `[E', P*N*T, H]` for every hidden layer.

        Gradients at logits sum to zero over a factor's categories, since a softmax does not change when all of its logits
        do: then the last category's delta is subtracted from the others', and E' is smaller by one per factor.
        """
        if self.policy.family != "categorical":
            return heads, self._of_outputs(False)
        split = heads.view(len(heads), self.policy.action.factors, self.policy.action.categories, -1)
        # Estimator by estimator: beside one of large cotangents, another's sums would look like rounding.
        if bool((split.sum(2).abs().amax((1, 2)) > 1e-5 * split.abs().amax((1, 2, 3))).any()):
            return heads, self._of_outputs(False)
        return split[:, :, :-1].flatten(1, 2), self._of_outputs(True)

    def _of_outputs(self, centred: bool) -> list[Tensor]:
        """The deltas of each output by itself at every hidden layer, `[E, P*N*T, H]`: the network's Jacobian. `centred`:
        less that of the factor's last category, which is left out."""
        if centred not in self._basis:
            found: list[Tensor] = []
            last = len(self.policy.network.sizes) - 2
            for layer in range(last, 0, -1):
                back = self.weights[2 * layer][0].T  # [H', H]
                if layer == last:
                    if centred:
                        split = back.view(self.policy.action.factors, self.policy.action.categories, -1)
                        back = (split[:, :-1] - split[:, -1:]).flatten(0, 1)
                    found.append(back.unsqueeze(1) * self.slopes[layer - 1])  # [E, 1, H] * [rows, H]
                else:
                    later = found[-1]  # [E, rows, H']
                    delta = torch.mm(later.reshape(-1, later.shape[2]), back).view(len(later), -1, back.shape[1])
                    found.append(delta.mul_(self.slopes[layer - 1]))
            self._basis[centred] = found[::-1]
        return self._basis[centred]

    def _kernel_blocks(self) -> Tensor:
        """Each row's tangent kernel with itself, `[E, E, P*N*T]`: sum over layers of (|x|^2 + 1) delta_k . delta_l."""
        if self._kernel is None:
            e = self.policy.network.sizes[-1]
            scale = [x.square().sum(1) + 1 for x in self.inputs]
            kernel = scale[-1].new_zeros(e, e, len(scale[-1]))
            kernel.diagonal(dim1=0, dim2=1).add_(scale[-1].unsqueeze(1))
            for basis, s in zip(self._of_outputs(False), scale[:-1], strict=True):
                for k in range(e):
                    kernel[k] += (basis[k] * basis).sum(2) * s
            self._kernel = kernel
        return self._kernel


def pair_cotangents(grads: Sequence[Tensor], weight: Tensor) -> list[Tensor]:
    """An estimate's cotangents times the rows' weights `[T, P, N]`."""
    return [g * weight.reshape(*weight.shape, *([1] * (g.ndim - weight.ndim))) for g in grads]


def sections(parameters: Parameters) -> dict[str, slice]:
    """Where each layer's parameters lie in a gradient, by name: layer 0, 1, ..., and what belongs to none (log_std)."""
    found: dict[str, slice] = {}
    at = 0
    for name, shape in parameters.shapes.items():
        size = math.prod(shape)
        key = f"layer{name.removeprefix('weight').removeprefix('bias')}" if name[-1].isdigit() else name
        found[key] = slice(found[key].start if key in found else at, at + size)
        at += size
    return found
