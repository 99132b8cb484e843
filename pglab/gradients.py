"""From a surrogate to gradients, cut at the distribution's parameters.

The estimator sees the distribution with its parameters as detached leaves; the gradient of its surrogate there, row by
row, is the *cotangent*, and the cotangent is the estimate. Training pushes the weighted cotangents through the network
in one backward pass. A measurement uses these very functions, so no variance can be measured that training lacks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pglab.distributions import Distribution
from pglab.errors import PglabError
from pglab.estimators.base import Draw, Estimator, Signal, State
from pglab.networks import Parameters, Recorded, by_member, by_row
from pglab.policy import Policy


def check_shapes(distribution: Distribution, draw: Draw, signal: Signal) -> None:
    """Refuse every shape that could broadcast silently. Reads shapes only. Raises PglabError."""
    rows = tuple(distribution.batch_shape)
    event = tuple(distribution.noise_shape[len(rows) :])
    wanted: list[tuple[str, Tensor | None, tuple[tuple[int, ...], ...]]] = [
        ("draw.action", draw.action, ((*rows, *event),)),
        ("draw.noise", draw.noise, ((*rows, *event),)),
        ("signal.value", signal.value, (rows,)),
        ("signal.baseline", signal.baseline, (rows, (*rows, event[0]))),
        ("signal.behaviour_log_prob", signal.behaviour_log_prob, (rows,)),
    ]
    if signal.obs is not None:
        wanted.append(("signal.obs", signal.obs, ((*rows, signal.obs.shape[-1]),)))
    for name, tensor, shapes in wanted:
        if tensor is not None and tuple(tensor.shape) not in shapes:
            allowed = " or ".join(str(list(shape)) for shape in shapes)
            raise PglabError(f"{name} has shape {list(tensor.shape)}; the distribution's rows want {allowed}.")
        if tensor is not None and not tensor.is_floating_point():
            raise PglabError(f"{name} has dtype {tensor.dtype}; a floating-point tensor is wanted.")
    for name in distribution.parameters:
        if getattr(distribution, name).shape != distribution.noise_shape:
            raise PglabError(
                f"{type(distribution).__name__}.{name} has shape {list(getattr(distribution, name).shape)}; the rows want "
                f"{[*rows, *event]}: expand it."
            )


def check_needs(estimator: Estimator, distribution: Distribution, draw: Draw, signal: Signal) -> None:
    """PglabError when the estimator does not serve the family, or draw or signal lack what it declares it needs."""
    if not estimator.serves(type(distribution)):
        raise PglabError(
            f"Estimator {estimator.name!r} does not serve {type(distribution).__name__}, only {estimator.served()}."
        )
    if "value" in estimator.needs and signal.value is None:
        raise PglabError(f"Estimator {estimator.name!r} needs signal.value, f of the drawn action.")
    if any(need.startswith("critic") for need in estimator.needs) and signal.critic is None:
        raise PglabError(f"Estimator {estimator.name!r} needs signal.critic, a callable f.")
    rows = distribution.batch_shape
    wanted = estimator.extra_noise(distribution.noise_kind, tuple(distribution.noise_shape[len(rows) :]))
    for name, (kind, shape) in wanted.items():
        found = draw.extra.get(name)
        if found is None or found.shape != (*rows, *shape):
            given = "is missing" if found is None else f"has shape {list(found.shape)}"
            raise PglabError(
                f"draw.extra[{name!r}] {given}; estimator {estimator.name!r} wants {kind} noise {[*rows, *shape]}."
            )


def surrogate(
    estimator: Estimator, distribution: Distribution, draw: Draw, signal: Signal, state: State | None = None
) -> Tensor:
    """The estimator's surrogate with every shape checked, `[*rows]`. Raises PglabError on a shape that does not fit."""
    check_shapes(distribution, draw, signal)
    check_needs(estimator, distribution, draw, signal)
    value = estimator.surrogate(distribution, draw, signal, state or {})
    if value.shape != distribution.batch_shape:
        raise PglabError(
            f"Estimator {estimator.name!r} gave a surrogate of shape {list(value.shape)}; "
            f"one number per row is wanted, {list(distribution.batch_shape)}."
        )
    return value


def cotangents(
    estimator: Estimator,
    distribution: Distribution,
    draw: Draw,
    signal: Signal,
    state: State | None = None,
    entropy_weight: Tensor | float | None = None,
    entropy_noise: Tensor | None = None,
) -> tuple[list[Tensor], Tensor]:
    """The estimate at the distribution's parameters, and the surrogate.

    Returns one `[*rows, ...]` tensor per name in `distribution.parameters`, each of that parameter's shape (row i is an
    estimate of grad E[f] at row i, ascent), and the surrogate `[*rows]`, detached. With `entropy_weight` (broadcast to
    the rows) the gradient of that multiple of the entropy is added: closed form where the family has one, else pathwise
    at `entropy_noise`. Raises PglabError on shapes that do not fit.
    """
    with torch.enable_grad():
        leaf, parameters = distribution.cut()
        value = surrogate(estimator, leaf, draw, signal, state)
        objective = value
        if entropy_weight is not None:
            objective = value + entropy_weight * entropy(leaf, entropy_noise)
            if objective.shape != value.shape:
                raise PglabError(
                    f"The weighted entropy has shape {list(objective.shape)}; rows are {list(value.shape)}."
                )
        found = torch.autograd.grad(objective.sum(), parameters, allow_unused=True)
    grads = [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)]
    return grads, value.detach()


def entropy(distribution: Distribution, noise: Tensor | None = None) -> Tensor:
    """Joint entropy per row, `[*rows]`: closed form, else the family's pathwise estimate at `noise`."""
    if distribution.has_entropy:
        return distribution.entropy().sum(-1)
    if noise is None:
        raise PglabError(f"The entropy of {type(distribution).__name__} is estimated from a draw: noise is needed.")
    return distribution.pathwise_entropy(noise).sum(-1)  # type: ignore[attr-defined]


def push(parameters: Parameters, distribution: Distribution, grads: list[Tensor], weight: Tensor) -> None:
    """Push weight x cotangent from the distribution's parameters through the network into `parameters.grad`, negated for
    *descent*.

    `weight` `[*rows]` holds everything a row is multiplied by: its mask, gamma^t, and one over the number of rows.
    """
    if weight.shape != distribution.batch_shape:
        raise PglabError(f"weight has shape {list(weight.shape)}; rows are {list(distribution.batch_shape)}.")
    heads, seeds = [], []
    for name, grad in zip(distribution.parameters, grads, strict=True):
        head = getattr(distribution, name)
        if head.requires_grad:
            heads.append(head)
            seeds.append(grad * -weight.reshape(*weight.shape, *([1] * distribution.event_ndim)))
    parameters.backward(heads, seeds)


@dataclass(frozen=True)
class RowGradients:
    """The gradients of all rows `[T, P, N]` at the network's parameters, weight x cotangent pushed through it row by row,
    for *ascent*.

    No row's gradient is ever written out, which would take T x P x N x n numbers. A layer's weights have the outer product
    of its input and its delta (the gradient at its output); a bias has the delta; parameters outside of layers (log_std)
    have numbers of their own. Sums over a column's rows, products with a vector and norms are made from these factors.
    """

    parameters: Parameters
    inputs: list[Tensor]  # [P*N, T, I] of every layer
    deltas: list[Tensor]  # [P*N, T, O] of every layer
    extra: dict[str, Tensor]  # [P*N, T, D] by name
    columns: int  # N

    def column_sums(self, times: Tensor | None = None) -> Tensor:
        """`[P, N, n]`: each column's sum over its rows, each row `times` a number (`[T, P, N]`) where given, as the
        parameters lie in `Parameters.flat`."""
        by = None if times is None else times.permute(1, 2, 0).flatten(0, 1).unsqueeze(2)  # [P*N, T, 1]
        parts = {name: (x if by is None else x * by).sum(1) for name, x in self.extra.items()}
        for i, (x, delta) in enumerate(zip(self.inputs, self.deltas, strict=True)):
            g = delta if by is None else delta * by
            parts[f"weight{i}"], parts[f"bias{i}"] = x.mT @ g, g.sum(1)
        flat = torch.cat([parts[name].flatten(1) for name in self.parameters.shapes], 1)  # [P*N, n]
        return flat.view(-1, self.columns, flat.shape[1])

    def along(self, vectors: Tensor) -> Tensor:
        """`[T, P, N]`: every row's product with its column's vector, `[P, N, n]`."""
        sizes = [math.prod(shape) for shape in self.parameters.shapes.values()]
        split = dict(zip(self.parameters.shapes, vectors.flatten(0, 1).split(sizes, 1), strict=True))  # [P*N, size]
        found = self.inputs[0].new_zeros(self.inputs[0].shape[:2])  # [P*N, T]
        for name, x in self.extra.items():
            found = found + (x @ split[name].unsqueeze(2)).squeeze(2)
        for i, (x, delta) in enumerate(zip(self.inputs, self.deltas, strict=True)):
            weight = split[f"weight{i}"].view(len(x), x.shape[2], delta.shape[2])
            found = found + ((torch.bmm(x, weight) + split[f"bias{i}"].unsqueeze(1)) * delta).sum(2)
        return self._by_row(found)

    def squared_norms(self) -> Tensor:
        """`[T, P, N]`: every row's squared norm."""
        found = self.inputs[0].new_zeros(self.inputs[0].shape[:2])  # [P*N, T]
        for x in self.extra.values():
            found = found + x.square().sum(2)
        for x, delta in zip(self.inputs, self.deltas, strict=True):
            found = found + (x.square().sum(2) + 1) * delta.square().sum(2)
        return self._by_row(found)

    def _by_row(self, x: Tensor) -> Tensor:
        return x.view(-1, self.columns, x.shape[1]).permute(2, 0, 1)  # [P*N, T] to [T, P, N]


def row_gradients(
    policy: Policy,
    parameters: Parameters,
    obs: Tensor,
    grads: list[Tensor],
    weight: Tensor,
    action_mask: Tensor | None = None,
    recorded: Recorded | None = None,
) -> RowGradients:
    """What `push` sums over all of a member's rows, kept apart by row.

    obs: `[T, P, N, O]` as the network sees them. grads: the cotangents of `cotangents`, one per name in the distribution's
    parameters, `[T, P, N, ...]`. weight: `[T, P, N]`, as `push` takes it: everything that training multiplies a row by,
    its mask, gamma^t and one over the number of rows; the columns' sums add up to minus the gradient that `push` leaves.
    recorded: the network's pass over `obs`, used where it still holds.

    One backward pass of the deltas; it holds as much as the network's own backward pass does, and `column_sums` P x N x n.
    """
    network = policy.network
    t, p, n = weight.shape
    weights = [parameters.views[name].detach() for name in network.layer_names]
    with torch.no_grad():
        x = by_member(obs)  # [P, T*N, O]
        if recorded is not None and recorded.holds(parameters):
            kept, output = recorded.hidden, recorded.output
        else:
            kept, output = network.run(weights, x)
    with torch.enable_grad():
        h = by_row(output.detach(), weight.shape).contiguous().requires_grad_()  # [T, P, N, outputs]
        # One copy for every row of what all rows share, so that each row has a gradient of its own.
        own = {
            name: view.detach().expand(t, p, n, view.shape[-1]).clone().requires_grad_()
            for name, view in parameters.views.items()
            if name not in network.layer_names
        }
        distribution = policy.parameterized(own, h, action_mask)
        heads, seeds = [], []
        for name, grad in zip(distribution.parameters, grads, strict=True):
            head = getattr(distribution, name)
            if head.requires_grad:
                heads.append(head)
                seeds.append(grad * weight.reshape(*weight.shape, *([1] * distribution.event_ndim)))
        leaves = [h, *own.values()]
        found = torch.autograd.grad(heads, leaves, seeds, allow_unused=True)
    first, *rest = [torch.zeros_like(v) if g is None else g for g, v in zip(found, leaves, strict=True)]
    with torch.no_grad():
        inputs, deltas = network.factors(weights, x, kept, by_member(first))

    def by_column(y: Tensor) -> Tensor:
        """`[P, T*N, X]` as `[P*N, T, X]`."""
        return y.view(p, t, n, -1).transpose(1, 2).reshape(p * n, t, -1)

    extra = {name: by_column(by_member(g)) for name, g in zip(own, rest, strict=True)}
    return RowGradients(parameters, [by_column(y) for y in inputs], [by_column(y) for y in deltas], extra, n)
