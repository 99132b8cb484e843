"""One baseline per action factor, from the critic given the other factors."""

from __future__ import annotations

import torch
from torch import Tensor

from pglab.baselines.base import Baseline, BaselineState, Batch, register_baseline
from pglab.distributions import Categorical
from pglab.errors import PglabError


@register_baseline("action_dependent")
class ActionDependent(Baseline):
    """b_d(s, a^-d), for factor d of the action: the critic with factor d marginalised and the others as they were drawn
    (Wu et al. 2018).

    Finite factors are enumerated, b_d = sum_k p_d(k) Q(s, (a^-d, k)); of continuous ones the mode is put in, a Gaussian's
    mean, b_d = Q(s, (a^-d, mu_d)) (eq. 32), before tanh where the action is squashed. Unbiased for policies whose factors are
    independent given the state, as all of them are here: b_d reads no more of the action than what factor d's score is
    independent of. The optimum weights factor d's values by its squared score; this leaves that out, as the paper does.
    With one factor it is the state baseline `critic_mean`. D x K evaluations of the critic per row, D for continuous ones.
    """

    needs = frozenset({"critic", "distribution", "action"})
    per_factor = True
    paper = "Wu et al. 2018, eq. 32"

    def predict(self, state: BaselineState, batch: Batch) -> Tensor:
        assert batch.critic is not None
        assert batch.distribution is not None
        assert batch.action is not None
        d, critic, action = batch.distribution, batch.critic, batch.action
        with torch.no_grad():
            if d.kind == "continuous":
                put, p = d.mode().unsqueeze(0), action.new_ones(1, *action.shape)  # [1, *rows, D]
            elif isinstance(d, Categorical):
                k = action.shape[-1]
                one = torch.eye(k, dtype=action.dtype, device=action.device)  # [K, K]
                put = one.view(k, *[1] * (action.ndim - 1), k).expand(k, *action.shape)  # [K, *rows, D, K]
                p = d.probs().movedim(-1, 0)  # [K, *rows, D]
            elif d.kind == "binary":
                put = torch.stack([torch.zeros_like(action), torch.ones_like(action)])
                log_odds = d.logits  # type: ignore[attr-defined]
                p = torch.sigmoid(torch.stack([-log_odds, log_odds]))
            else:
                raise PglabError(f"action_dependent cannot marginalise a factor of {type(d).__name__}.")
            found = []
            for i in range(p.shape[-1]):
                chosen = torch.arange(p.shape[-1], device=action.device) == i  # [D]
                chosen = chosen.view(-1, *[1] * (d.event_ndim - 1))
                q = critic(d.executed(torch.where(chosen, put, action)))  # [K, *rows]
                if q.shape != p.shape[:-1]:
                    raise PglabError(f"The critic gave shape {list(q.shape)}; {list(p.shape[:-1])} is wanted.")
                found.append((q * p[..., i]).sum(0))
            return torch.stack(found, -1)
