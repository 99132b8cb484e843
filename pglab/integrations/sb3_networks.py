"""The networks of a stable-baselines3 policy, as pglab's hold them.

Letters: I in, O out (a torch Linear has weights `[O, I]`, pglab `[I, O]`, and biases `[1, O]`), D action factors, K categories.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pglab.environments.contract import ActionSpec
from pglab.errors import PglabError
from pglab.integrations.sb3_files import Stored
from pglab.networks import Parameters

Layers = list[tuple[Tensor, Tensor]]
"""Weights `[O, I]` and bias `[O]` of every linear layer, as torch has them."""
Named = dict[str, Tensor]
"""One copy of a network by the names in `Parameters.shapes`."""

OTHERS = {
    "lstm": "a recurrent policy",
    "features_extractor": "a feature extractor with weights of its own, such as a CNN",
    "shared_net": "layers shared by policy and value network",
    "q_net": "DQN",
    "quantile_net": "QR-DQN",
    "actor.mu.0": "TD3 or DDPG",
    "critic.qf2": "more than two critics",
}
"""What parts of weights' names tell of models that cannot be read."""


@dataclass(frozen=True)
class Networks:
    """The networks of an A2C or PPO model (with `value`) or of a SAC model (with `critics` and `targets`)."""

    policy: Layers
    log_std: Tensor | None = None  # [D]; None where the policy has none, or gives it itself
    value: Layers | None = None
    critics: list[Layers] = field(default_factory=list)
    targets: list[Layers] = field(default_factory=list)


def networks_of(stored: Stored) -> Networks:
    """The networks in a state_dict, known by its names. Raises PglabError, naming what is supported, for any others."""
    left = dict(stored.weights)
    if "actor.mu.weight" in left and "actor.log_std.weight" in left:
        hidden = _sequence(left, "actor.latent_pi", stored)
        (mean, mean_bias), (std, std_bias) = (_linear(left, f"actor.{x}", stored) for x in ("mu", "log_std"))
        # Two heads side by side are one layer.
        head = (torch.cat([mean, std]), torch.cat([mean_bias, std_bias]))
        critics, targets = (
            [_sequence(left, f"{name}.qf{i}", stored) for i in range(2) if f"{name}.qf{i}.0.weight" in left]
            for name in ("critic", "critic_target")
        )
        if not critics or len(critics) != len(targets):
            raise PglabError(
                f"{stored.source} has {len(critics)} critics and {len(targets)} targets: one or two of each are wanted."
            )
        found = Networks([*hidden, head], None, None, critics, targets)
    elif "action_net.weight" in left and "value_net.weight" in left:
        policy = [
            *_sequence(left, "mlp_extractor.policy_net", stored),
            _linear(left, "action_net", stored),
        ]
        value = [*_sequence(left, "mlp_extractor.value_net", stored), _linear(left, "value_net", stored)]
        log_std = left.pop("log_std", None)
        if log_std is not None and log_std.ndim != 1:
            raise PglabError(f"{stored.source} explores by gSDE, which pglab does not have: use_sde must be false.")
        found = Networks(policy, log_std, value)
    else:
        raise _unsupported(stored, list(left))
    if left:
        raise _unsupported(stored, list(left))
    return found


def _unsupported(stored: Stored, names: Sequence[str]) -> PglabError:
    kinds = [kind for part, kind in OTHERS.items() if any(part in name for name in names)]
    what = f"has {kinds[0]}" if kinds else "is of a kind that is not known"
    example = f" (weights {names[0]!r})" if names else " (no weights)"
    return PglabError(
        f"{stored.source} {what}{example}: A2C, PPO and SAC models with an MlpPolicy and no features of their own can be read."
    )


def _linear(left: dict[str, Tensor], name: str, stored: Stored) -> tuple[Tensor, Tensor]:
    weight, bias = left.pop(f"{name}.weight", None), left.pop(f"{name}.bias", None)
    if weight is None or bias is None or weight.ndim != 2 or bias.shape != weight.shape[:1] or not weight.numel():
        raise PglabError(f"{stored.source}: {name} is not a linear layer with a bias, the only kind that can be read.")
    return weight, bias


def _sequence(left: dict[str, Tensor], name: str, stored: Stored) -> Layers:
    """The linear layers number 0, 2, 4, ... of a torch Sequential, activations between them; none where it is empty."""
    found: Layers = []
    while f"{name}.{2 * len(found)}.weight" in left:
        found.append(_linear(left, f"{name}.{2 * len(found)}", stored))
    return found


def check_sizes(layers: Layers, inputs: int, outputs: int, what: str, stored: Stored, env_id: str) -> None:
    """PglabError unless the network takes `inputs` numbers to `outputs`, as the environment wants."""
    first, last = layers[0][0].shape[1], layers[-1][0].shape[0]
    if (first, last) != (inputs, outputs):
        raise PglabError(
            f"{stored.source}: its {what} takes {first} numbers to {last}, but {env_id} wants {inputs} to {outputs}."
        )
    for (a, _), (b, _) in itertools.pairwise(layers):
        if a.shape[0] != b.shape[1]:
            raise PglabError(
                f"{stored.source}: a layer of its {what} gives {a.shape[0]} numbers, the next takes {b.shape[1]}."
            )


def hidden_sizes(layers: Layers) -> list[int]:
    """Sizes of the hidden layers."""
    return [weight.shape[0] for weight, _ in layers[:-1]]


def named(layers: Layers, **extra: Tensor) -> Named:
    """A network by pglab's names, with further named tensors."""
    found: Named = {}
    for i, (weight, bias) in enumerate(layers):
        found |= {f"weight{i}": weight.T, f"bias{i}": bias.unsqueeze(0)}
    return found | extra


def mean_scale(action: ActionSpec) -> float:
    """What the output of a Gaussian's network is multiplied by: 1 / half for a bounded box as wide in every direction, so that
    weights, and with them gradients, are in stable-baselines3's units; else 1, and the weights are scaled."""
    if action.low is None or action.high is None:
        return 1.0
    half = (action.high.astype(float) - action.low.astype(float)) / 2
    return 1 / half[0].item() if (half == half[0]).all() else 1.0


def on_policy(networks: Networks, action: ActionSpec) -> Named:
    """The policy of A2C or PPO in pglab's terms: the same distribution over the same actions.

    Logits of factors with fewer categories than the largest are padded to `[D, K]`. A Gaussian over a bounded box, which
    stable-baselines3 has in the environment's units, is that of (a - middle) / half, in which the box is [-1, 1].
    """
    *hidden, (weight, bias) = networks.policy
    if action.kind == "discrete":
        rows = torch.arange(action.factors * action.categories).view(action.factors, action.categories)
        index = torch.cat([row[:n] for row, n in zip(rows, action.sizes, strict=True)])
        wide, wide_bias = weight.new_zeros(rows.numel(), weight.shape[1]), bias.new_zeros(rows.numel())
        wide[index], wide_bias[index] = weight, bias
        return named([*hidden, (wide, wide_bias)])
    if networks.log_std is None:
        return named(networks.policy)
    mean, mean_bias, log_std = weight.double(), bias.double(), networks.log_std.double()
    if action.low is not None and action.high is not None:
        low, high = (torch.from_numpy(x).double() for x in (action.low, action.high))
        half = (high - low) / 2  # [D]
        width = half * mean_scale(action)  # ones, where the box is as wide in every direction
        mean, mean_bias, log_std = mean / width[:, None], (mean_bias - (low + high) / 2) / width, log_std - half.log()
    return named([*hidden, (mean.float(), mean_bias.float())], log_std=log_std.float().unsqueeze(0))


def put(parameters: Parameters, copies: list[Named]) -> None:
    """Write a network's copies (two for twin critics) into a population of one."""
    parts = []
    for copy in copies:
        for name, shape in parameters.shapes.items():
            assert copy[name].shape == shape, (name, copy[name].shape, shape)
            parts.append(copy[name].reshape(-1))
    with torch.no_grad():
        parameters.flat.copy_(torch.cat(parts).unsqueeze(0))
