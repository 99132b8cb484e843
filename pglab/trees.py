"""Trees of state whose tensors have the member axis first."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
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


def where_members(mask: Tensor, new: Any, old: Any) -> Any:
    """`new` for members where `mask` `[P]` (bool) is True, `old` elsewhere; trees of one shape."""
    if isinstance(new, Tensor):
        return torch.where(mask.reshape(-1, *[1] * (new.ndim - 1)), new, old)
    if isinstance(new, Mapping):
        return {key: where_members(mask, value, old[key]) for key, value in new.items()}
    if isinstance(new, list):
        return [where_members(mask, a, b) for a, b in zip(new, old, strict=True)]
    return new


def kept_in_place(old: Any, new: Any) -> Any:
    """`new`, with every tensor written to where the tensor of the same name lies in `old`, so that whoever reads it there
    reads the newest. Where the trees are not of one shape, `new` as it is."""
    pairs: list[tuple[Tensor, Tensor]] = []
    if not _paired(old, new, pairs):
        return new
    moving = [(a, b) for a, b in pairs if a is not b]
    places = {a.untyped_storage().data_ptr() for a, _ in moving}
    # What lies in memory that is about to be written to is read before.
    read = [b.clone() if b.untyped_storage().data_ptr() in places else b for _, b in moving]
    for (a, _), b in zip(moving, read, strict=True):
        a.copy_(b)
    return old


def _paired(old: Any, new: Any, pairs: list[tuple[Tensor, Tensor]]) -> bool:
    """Whether the trees are of one shape; their tensors, side by side."""
    if isinstance(new, Tensor):
        pairs.append((old, new))
        return isinstance(old, Tensor) and old.shape == new.shape and old.dtype == new.dtype
    if isinstance(new, Mapping):
        return (
            isinstance(old, Mapping)
            and old.keys() == new.keys()
            and all(_paired(old[key], value, pairs) for key, value in new.items())
        )
    if isinstance(new, list):
        return (
            isinstance(old, list)
            and len(old) == len(new)
            and all(_paired(a, b, pairs) for a, b in zip(old, new, strict=True))
        )
    return bool(old == new)


def places(tree: Any) -> Iterator[object]:
    """Which tensors a tree holds (their ids), and whatever else it holds: the same for two trees where what reads them makes
    the same operations on the same memory."""
    if isinstance(tree, Tensor):
        yield id(tree)
    elif isinstance(tree, Mapping):
        for value in tree.values():
            yield from places(value)
    elif isinstance(tree, (list, tuple)):
        for value in tree:
            yield from places(value)
    else:
        yield tree if isinstance(tree, (int, float, str)) else id(tree)


def as_dtype(tree: Any, dtype: torch.dtype) -> Any:
    """Floating-point tensors as another floating-point type."""
    if isinstance(tree, Tensor):
        return tree.to(dtype) if tree.is_floating_point() else tree
    if isinstance(tree, Mapping):
        return {key: as_dtype(value, dtype) for key, value in tree.items()}
    if isinstance(tree, list):
        return [as_dtype(value, dtype) for value in tree]
    return tree
