"""Trees of state whose tensors have the member axis first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def repeat_members(tree: Any, replicates: int) -> Any:
    """Every member's tensors `replicates` times in a row."""
    if isinstance(tree, Tensor):
        return tree.repeat_interleave(replicates, 0)
    if isinstance(tree, Mapping):
        return {key: repeat_members(value, replicates) for key, value in tree.items()}
    if isinstance(tree, list):
        return [repeat_members(value, replicates) for value in tree]
    return tree


def take_member(tree: Any, member: int) -> Any:
    """One member's tensors, copied, with a member axis of length 1."""
    if isinstance(tree, Tensor):
        return tree[member : member + 1].clone()
    if isinstance(tree, Mapping):
        return {key: take_member(value, member) for key, value in tree.items()}
    if isinstance(tree, list):
        return [take_member(value, member) for value in tree]
    return tree


def join_members(trees: Sequence[Any]) -> Any:
    """What `take_member` took apart. Tensors that grew since (by time, say) are padded with 0 to the longest."""
    first = trees[0]
    if isinstance(first, Tensor):
        longest = [max(t.shape[d] for t in trees) for d in range(1, first.ndim)]
        padded = []
        for t in trees:
            missing = [n - t.shape[d + 1] for d, n in enumerate(longest)]
            padded.append(F.pad(t, [x for n in reversed(missing) for x in (0, n)]) if any(missing) else t)
        return torch.cat(padded)
    if isinstance(first, Mapping):
        return {key: join_members([t[key] for t in trees]) for key in first}
    if isinstance(first, list):
        return [join_members([t[i] for t in trees]) for i in range(len(first))]
    return trees[-1]
