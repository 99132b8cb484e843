"""A stream of replicate gradients, J pairs of estimator and baseline at a time, in bounded memory.

What comes in are **units**: independent, identically distributed gradients at one frozen policy, the same draws for
every pair. One training-size gradient is the mean of `per_gradient` units (the N episodes of a batch; 1 where the
replicate is a whole batch because its rows are coupled). What is kept, however many units come:

- of all units, their count R, mean and centred sum of squares, by Chan, Golub & LeVeque's (1983) merge of chunk
  moments;
- of B groups of consecutive units, the sums and the sums of squares of every parameter. A resampling method needs
  nothing else: groups of independent units are independent, so groups are what is resampled or left out. When there
  would be more than `groups`, adjacent groups are merged, and from there twice as many units go into a group. B is
  then between half of `groups` and all of them;
- the first H training-size gradients whole, for cosines.

Before anything is summed or squared, the **anchor** is subtracted: the mean of the first chunk. Where the noise is
1e-6 of the mean, squares of the gradients themselves would have lost it in float64; squares of anchored ones are of
the size of the noise.

The squares of the groups are stored in float32, added up in float64 chunk by chunk. Each addition to a group rounds
by at most 6e-8 of it; only standard errors and logarithms of variances are made of them, values of traces are made of
the float64 moments. (tests/lab/test_replicates.py holds both to a two-pass float64 computation.)

That is J n (12 B + 4 H + 24) bytes: 500 MB for 30 pairs of 4,610 parameters with all 256 groups and a head of 128. Of
a large network, ask for fewer groups.

For errors against something that changes from unit to unit, such as the exact gradient of the critic at the unit's
own states, feed a second `Replicates` with the differences, gradient minus exact: its mean is the bias with the
states' noise taken out, and its trace the variance that the actions alone cause. Its reference is 0.

Letters: R replicates (units), J pairs, U units of a chunk, B groups, H head, n parameters.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from pglab.errors import PglabError

CHUNK = 1 << 22
"""Float64 numbers [J, U, n] held at a time."""
FEWEST_GROUPS = 16
"""`groups` may not be fewer: half of them must still be enough to resample."""


class Replicates:
    """Moments, groups and head of a stream of units `[J, U, n]`.

    Args:
        pairs: J.
        size: n, parameters.
        per_gradient: units whose mean is one training-size gradient.
        groups: the most groups kept.
        head: the most training-size gradients kept whole.

    Attributes:
        units: R, the units added so far (of every pair).
        anchor: [J, n] float64, what is subtracted from a unit x before it is summed: y = x - anchor.
        offset: [J, n] float64, mean of y.
        m2: [J, n] float64, sum over units of (x - mean)^2.
        counts: [B] int64 on the CPU, units in each group.
        per_group: units in a full group.

    Raises:
        PglabError: where a number is not positive, or `groups` is below 16.
    """

    def __init__(self, pairs: int, size: int, per_gradient: int = 1, groups: int = 256, head: int = 128) -> None:
        for name, number, least in (
            ("pairs", pairs, 1),
            ("size", size, 1),
            ("per_gradient", per_gradient, 1),
            ("groups", groups, FEWEST_GROUPS),
            ("head", head, 0),
        ):
            if number < least:
                raise PglabError(f"Replicates: {name} is {number}, and must be at least {least}.")
        self.pairs, self.size, self.per_gradient, self.most_groups, self.most_head = (
            pairs,
            size,
            per_gradient,
            groups,
            head,
        )
        self.units = 0
        self.per_group = 1
        self.counts = torch.zeros(0, dtype=torch.int64)
        double = torch.float64
        self.anchor, self.offset, self.m2 = (torch.zeros(pairs, size, dtype=double) for _ in range(3))
        # Storage for more groups than are filled, so that it need not grow with every chunk.
        self._sums = torch.zeros(pairs, 0, size, dtype=double)
        self._squares = torch.zeros(pairs, 0, size)
        self._head = torch.zeros(pairs, 0, size)

    @property
    def mean(self) -> Tensor:
        """[J, n] float64, mean of the units."""
        return self.anchor + self.offset

    @property
    def variance(self) -> Tensor:
        """[J, n] float64, unbiased variance of one unit.

        Raises:
            PglabError: for fewer than two units.
        """
        if self.units < 2:
            raise PglabError(f"A variance needs at least 2 replicates, and there are {self.units}.")
        return self.m2 / (self.units - 1)

    @property
    def sums(self) -> Tensor:
        """[J, B, n] float64, sums of anchored units y over each group."""
        return self._sums[:, : len(self.counts)]

    @property
    def squares(self) -> Tensor:
        """[J, B, n] float32, sums of y^2 over each group."""
        return self._squares[:, : len(self.counts)]

    @property
    def head(self) -> Tensor:
        """[J, H, n] float32, the first training-size gradients, not anchored."""
        return self._head

    def add(self, gradients: Tensor) -> None:
        """Take in the next units.

        Args:
            gradients: [J, U, n] float32 on any device (the first chunk's is where everything is kept), U units in
                order. U is a multiple of `per_gradient`, and a training-size gradient never spans two chunks.

        Raises:
            PglabError: for another shape or type, a U that is not a multiple, or a gradient that is not finite; nothing
                is taken in then.
        """
        if gradients.ndim != 3 or gradients.shape[0] != self.pairs or gradients.shape[2] != self.size:
            raise PglabError(
                f"Replicates: gradients have shape {tuple(gradients.shape)}, and [J, U, n] = "
                f"[{self.pairs}, U, {self.size}] is wanted."
            )
        if gradients.dtype != torch.float32:
            raise PglabError(f"Replicates: gradients are {gradients.dtype}, and torch.float32 is wanted.")
        u = gradients.shape[1]
        if u % self.per_gradient:
            raise PglabError(
                f"Replicates: {u} units are not a multiple of the {self.per_gradient} that one gradient is made of."
            )
        if u == 0:
            return
        gradients = gradients.detach()
        finite = torch.isfinite(gradients.sum((1, 2), dtype=torch.float64))
        if not bool(finite.all()):
            raise PglabError(f"Replicates: gradients of pairs {(~finite).nonzero().flatten().tolist()} are not finite.")
        if self.units == 0:
            self._move(gradients.device)
            self.anchor = gradients.mean(1, dtype=torch.float64)
        wanted = min(u // self.per_gradient, self.most_head - self._head.shape[1])
        if wanted > 0:
            first = gradients[:, : wanted * self.per_gradient].unflatten(1, (wanted, self.per_gradient))
            self._head = torch.cat([self._head, first.mean(2, dtype=torch.float64).float()], 1)
        for part in gradients.split(max(1, CHUNK // (self.pairs * self.size)), 1):
            self._take(part.double() - self.anchor[:, None])

    def _take(self, y: Tensor) -> None:
        """Anchored units [J, U, n] into moments and groups."""
        u = y.shape[1]
        mean = y.mean(1)
        total = self.units + u
        delta = mean - self.offset
        self.m2 = self.m2 + (y - mean[:, None]).square().sum(1) + delta.square() * (self.units * u / total)
        self.offset = self.offset + delta * (u / total)
        self.units = total

        while len(self.counts) + self._new_groups(u) > self.most_groups:
            self._coarsen()
        filled, m = len(self.counts), self.per_group
        into_last = min(self._room(), u)
        whole = (u - into_last) // m
        rest = u - into_last - whole * m
        self._reserve(filled + self._new_groups(u))
        for store, values in ((self._sums, y), (self._squares, y.square())):
            last, middle, end = values.split([into_last, whole * m, rest], 1)
            if into_last:
                store[:, filled - 1] += last.sum(1)
            if whole:
                store[:, filled : filled + whole] = middle.unflatten(1, (whole, m)).sum(2)
            if rest:
                store[:, filled + whole] = end.sum(1)
        if into_last:
            self.counts[-1] += into_last
        new = [m] * whole + [rest] * (rest > 0)
        self.counts = torch.cat([self.counts, torch.tensor(new, dtype=torch.int64)])

    def _room(self) -> int:
        """Units that still go into the last group."""
        return self.per_group - int(self.counts[-1]) if len(self.counts) else 0

    def _new_groups(self, units: int) -> int:
        return -(-max(0, units - self._room()) // self.per_group)

    def _reserve(self, groups: int) -> None:
        held = self._sums.shape[1]
        if groups > held:
            more = min(self.most_groups, max(groups, 2 * held)) - held
            self._sums, self._squares = (
                torch.cat([s, s.new_zeros(self.pairs, more, self.size)], 1) for s in (self._sums, self._squares)
            )

    def _coarsen(self) -> None:
        """Each two adjacent groups become one, and a full group has twice the units. An odd last one stays."""
        b = len(self.counts)
        for store in (self._sums, self._squares):
            kept = _by_twos(store[:, :b], 1)
            store[:, : kept.shape[1]] = kept
        self.counts = _by_twos(self.counts, 0)
        self.per_group *= 2

    def _move(self, device: torch.device | str) -> None:
        for name in ("anchor", "offset", "m2", "_sums", "_squares", "_head"):
            setattr(self, name, getattr(self, name).to(device))

    def cpu(self) -> Replicates:
        """The same on the CPU: itself where it is there already, else a copy."""
        if self.anchor.device.type == "cpu":
            return self
        found = copy.copy(self)
        found._move("cpu")
        found.counts = self.counts.clone()
        return found


def merged(a: Replicates, b: Replicates) -> Replicates:
    """Both streams as one, `a` first: as though b's units had been added after a's, save that a group which `a` left
    incomplete stays so. Neither is changed; the result is on a's device, with a's anchor.

    Raises:
        PglabError: where the two differ in pairs, parameters, units per gradient, groups or head.
    """
    for name in ("pairs", "size", "per_gradient", "most_groups", "most_head"):
        if getattr(a, name) != getattr(b, name):
            raise PglabError(
                f"Replicates of different shape cannot be merged: {name} is {getattr(a, name)} and {getattr(b, name)}."
            )
    if not (a.units and b.units):
        found = copy.deepcopy(a if a.units else b)
        return found
    a, b = copy.deepcopy(a), copy.deepcopy(b)
    b._move(a.anchor.device)
    while a.per_group < b.per_group:
        a._coarsen()
    while b.per_group < a.per_group:
        b._coarsen()
    shift = (b.anchor - a.anchor)[:, None]  # what b's anchored units want added to be a's
    count = b.counts.to(shift)[:, None]
    squares = b.squares.double() + 2 * shift * b.sums + count * shift.square()
    a._sums = torch.cat([a.sums, b.sums + count * shift], 1)
    a._squares = torch.cat([a.squares, squares.float()], 1)
    a.counts = torch.cat([a.counts, b.counts])
    while len(a.counts) > a.most_groups:
        a._coarsen()
    a._sums, a._squares = a.sums.clone(), a.squares.clone()
    a._head = torch.cat([a._head, b._head], 1)[:, : a.most_head].clone()
    total = a.units + b.units
    delta = b.offset + shift[:, 0] - a.offset
    a.m2 = a.m2 + b.m2 + delta.square() * (a.units * b.units / total)
    a.offset = a.offset + delta * (b.units / total)
    a.units = total
    return a


def _by_twos(x: Tensor, axis: int) -> Tensor:
    even = x.shape[axis] // 2 * 2
    pairs, left = x.split([even, x.shape[axis] - even], axis)
    return torch.cat([pairs.unflatten(axis, (-1, 2)).sum(axis + 1, dtype=x.dtype), left], axis)
