"""No baseline."""

from __future__ import annotations

from pglab.baselines.base import Baseline, BaselineState, Batch, register_baseline


@register_baseline("none")
class NoBaseline(Baseline):
    """Nothing is subtracted."""

    paper = "Williams 1992"

    def predict(self, state: BaselineState, batch: Batch) -> None:
        return None
