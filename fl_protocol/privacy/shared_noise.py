"""The noise that the clients of a masked run share: how wide each one's part is, and on which grid it lies.

Skellam variables add up to a Skellam variable of the summed variance, whoever drew them (Agarwal et al. 2021): what a
sum tells depends on how many stayed, and not on who. Each share is as wide as the fewest survivors that a sum may have
need it, less those that may collude: privacy holds at the worst dropout that is admitted, and what more of them add is
counted when a sum is charged. Everything here follows from the RunSpec alone.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from fl_protocol.privacy.distributed import DistributedRelease, rounded_norm
from fl_protocol.runs import RunSpec
from fl_protocol.specs.privacy import DistributedSkellamPrivacy
from fl_protocol.specs.secure_aggregation import min_members, target_members

MAX_PART_VARIANCE: Final = 1e9
"""A share of a larger variance, in steps, is drawn as a sum of several."""
MAX_PARTS: Final = 64

_HEADROOM_WIDTHS: Final = 10
"""A sum's noise lies beyond so many of its standard deviations once in 10^22."""
_LEAST_WIDTH: Final = 2.0**12
"""A client's share is at least so many steps wide: there Skellam noise costs what Gaussian noise does."""
_STEPS_A_ROOT: Final = 8
"""So many steps of the grid for each root of the number of parameters: rounding adds 0.2% to an update's norm."""

SumSizes = Mapping[int, int]
"""How many releases had so many survivors in their smallest sum."""


@dataclass(frozen=True, slots=True)
class SharedNoise:
    """A run's grid, of `scale` steps a unit of the updates, and what one client adds there.

    `stddev` is that of one client's share in steps; `max_norm` the L2 norm in steps of a rounded update, which is what
    the sum is charged for; `headroom` what the noise of the largest session may add to its sum.
    """

    scale: float
    stddev: float
    max_norm: float
    headroom: int

    @property
    def step(self) -> float:
        """The grid's step in the updates' own unit."""
        return 1 / self.scale

    @property
    def variance(self) -> float:
        """The variance of one client's share, in steps."""
        return self.stddev**2


def shared_noise(spec: RunSpec) -> SharedNoise:
    """Gives the grid and the shares of a run whose noise multiplier is known."""
    privacy, multiplier = _privacy(spec)
    scale, share = _scale(spec, privacy, multiplier), _share(spec, privacy, multiplier)
    release = sum_release(spec, num_survivors=min_members(spec))
    return SharedNoise(
        scale=scale,
        stddev=scale * share,
        max_norm=rounded_norm(release) * scale,
        headroom=math.ceil(_HEADROOM_WIDTHS * scale * share * math.sqrt(target_members(spec))),
    )


def sum_release(spec: RunSpec, *, num_survivors: int, count: int = 1) -> DistributedRelease:
    """Gives what `count` sums of so many survivors tell of one: the noise of those that do not collude hides it."""
    privacy, multiplier = _privacy(spec)
    return DistributedRelease(
        clipping_norm=privacy.clipping_norm,
        num_parameters=privacy.max_parameters,
        scale=_scale(spec, privacy, multiplier),
        stddev=_share(spec, privacy, multiplier) * math.sqrt(_honest(privacy, num_survivors)),
        count=count,
    )


def sum_releases(spec: RunSpec, *, num_participations: int, sizes: SumSizes | None = None) -> list[DistributedRelease]:
    """Lists the worst releases that a client with so many participations can have been in.

    Those are the ones of the fewest survivors among `sizes`; what goes beyond them, or all without `sizes`, has as few
    as a sum may have.
    """
    return [
        sum_release(spec, num_survivors=survivors, count=count)
        for survivors, count in _fewest(sizes or {}, num_participations, otherwise=min_members(spec))
    ]


def check_shared_noise(spec: RunSpec) -> None:
    """Raises ValueError for noise so wide on the grid that no client could draw it in a reasonable time."""
    privacy, multiplier = _privacy(spec)
    variance, bound = shared_noise(spec).variance, MAX_PARTS * MAX_PART_VARIANCE
    if variance > bound:
        raise ValueError(
            f"privacy.noise_multiplier {multiplier:g} makes each client's share of the noise {variance:.4g} steps of "
            f"the grid in variance, and at most {bound:.4g} can be drawn; set privacy.max_parameters "
            f"{privacy.max_parameters} to what is trained, or privacy.min_survivors {min_members(spec)} higher"
        )


def _fewest(sizes: SumSizes, num: int, *, otherwise: int) -> Iterator[tuple[int, int]]:
    unknown = max(num - sum(sizes.values()), 0)
    left = num - unknown
    if unknown:
        yield otherwise, unknown
    for survivors in sorted(sizes):
        count = min(sizes[survivors], left)
        left -= count
        if count:
            yield survivors, count


def _scale(spec: RunSpec, privacy: DistributedSkellamPrivacy, multiplier: float) -> float:
    noise_needs = _LEAST_WIDTH * math.sqrt(target_members(spec)) / multiplier
    return max(noise_needs, _STEPS_A_ROOT * math.sqrt(privacy.max_parameters)) / privacy.clipping_norm


def _share(spec: RunSpec, privacy: DistributedSkellamPrivacy, multiplier: float) -> float:
    """Gives the standard deviation of one client's share, in the updates' own unit."""
    return multiplier * privacy.clipping_norm / math.sqrt(_honest(privacy, min_members(spec)))


def _honest(privacy: DistributedSkellamPrivacy, num_survivors: int) -> float:
    return (1 - privacy.assumed_colluders) * num_survivors


def _privacy(spec: RunSpec) -> tuple[DistributedSkellamPrivacy, float]:
    privacy = spec.privacy
    if not isinstance(privacy, DistributedSkellamPrivacy):
        raise ValueError(f"privacy.kind {privacy.kind!r} has no noise that clients share")
    if privacy.noise_multiplier is None:
        raise ValueError("privacy.noise_multiplier is not calibrated")
    return privacy, privacy.noise_multiplier
