"""The learned state value."""

from __future__ import annotations

from torch import Tensor

from pglab.baselines.base import Baseline, BaselineState, Batch, register_baseline


@register_baseline("value")
class Value(Baseline):
    """V(s), learned by the agent's value network on the agent's returns (Sutton et al. 2000; Mnih et al. 2016).

    The prediction is the network's before this batch's update. The network's settings are the agent's (`agent.value`).
    """

    needs = frozenset({"v"})
    paper = "Sutton et al. 2000"

    def predict(self, state: BaselineState, batch: Batch) -> Tensor:
        assert batch.v is not None
        return batch.v
