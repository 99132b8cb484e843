"""The scale of a value network that is fitted at a frozen policy: its output layer by least squares.

Letters: C copies (twins), B rows, H units of the last hidden layer.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pglab.agents.on_policy import Prepared
from pglab.networks import MLP, Parameters, by_member


class LeastSquares:
    """The output layer of a network (of each copy of a twin) fitted to the values of batches by ridge regression on its last
    hidden layer. C copies."""

    def __init__(self) -> None:
        self.network: MLP | None = None
        self.gram, self.product = torch.zeros(0), torch.zeros(0)
        self.square = self.total = self.count = 0.0

    def add(self, network: MLP, parameters: Parameters, x: Tensor, prepared: Prepared) -> None:
        """Count a batch in: inputs `[1, B, I]`, values and weights those of `prepared`."""
        weights = [parameters.views[name].detach() for name in network.layer_names]
        x = x.expand(len(weights[0]), -1, -1)  # [C, B, I]
        y, w = (by_member(v.unsqueeze(-1))[0, :, 0].double() for v in (prepared.batch.value, prepared.value_weight))
        with torch.no_grad():
            kept, _ = network.run(weights, x)
            last = network.hidden(kept[-1]) if kept else x  # [C, B, H]
        features = torch.cat([last.double(), torch.ones_like(last[..., :1], dtype=torch.float64)], -1)
        weighted = features * w.unsqueeze(1)
        gram, product = weighted.mT @ features, weighted.mT @ y  # [C, H + 1, H + 1], [C, H + 1]
        self.gram, self.product = (gram + self.gram, product + self.product) if self.network else (gram, product)
        self.square += float((w * y * y).sum())
        self.total += float((w * y).sum())
        self.count += float(w.sum())
        self.network, self.parameters = network, parameters

    def solve(self) -> float:
        """Write the layers; returns the share of the values' variance that they explain (copies on average); NaN where these
        do not vary."""
        assert self.network is not None
        n = self.gram.shape[-1]
        scale = self.gram.diagonal(dim1=-2, dim2=-1).mean(-1)[:, None, None]
        ridge = 1e-6 * scale * torch.eye(n, dtype=self.gram.dtype, device=self.gram.device)
        beta = torch.linalg.solve(self.gram + ridge, self.product.unsqueeze(-1)).squeeze(-1)  # [C, H + 1]
        last = len(self.network.sizes) - 2
        with torch.no_grad():
            self.parameters.views[f"weight{last}"].copy_(beta[:, :-1, None])
            self.parameters.views[f"bias{last}"].copy_(beta[:, -1:, None])
        fitted = 2 * (beta * self.product).sum(-1) - torch.einsum("ci,cij,cj->c", beta, self.gram, beta)
        variance = self.square - self.total**2 / self.count
        rest = self.square - float(fitted.mean())
        return 1 - rest / variance if variance > 1e-9 * self.square else math.nan
