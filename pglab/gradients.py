"""From a surrogate to gradients, cut at the distribution's parameters.

The estimator sees the distribution with its parameters as detached leaves; the gradient of its surrogate there, row by
row, is the *cotangent*, and the cotangent is the estimate. Training pushes the weighted cotangents through the network
in one backward pass. A measurement uses these very functions, so no variance can be measured that training lacks.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pglab.distributions import Distribution
from pglab.errors import PglabError
from pglab.estimators.base import Draw, Estimator, Signal, State
from pglab.networks import Parameters


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
    """PglabError when draw or signal lack what the estimator declares it needs."""
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
