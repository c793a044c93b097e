"""How loud the noise of a plan is beside what it learns from: a guide for people, and no part of any guarantee."""

import math
from dataclasses import dataclass
from typing import Final

from fl_protocol.privacy.accounting import value_noise_multiplier
from fl_protocol.privacy.releases import gaussian_noise_multiplier
from fl_protocol.runs import RunSpec
from fl_protocol.specs.privacy import (
    CentralBltPrivacy,
    CentralGaussianAdaptivePrivacy,
    CentralGaussianPrivacy,
    DistributedSkellamPrivacy,
    ExampleDpsgdPrivacy,
    LocalGaussianPrivacy,
    LocalLaplacePrivacy,
    num_participations,
)
from fl_protocol.specs.protection import NoPrivacy
from fl_protocol.specs.secure_aggregation import min_members, target_members
from fl_protocol.specs.selection import fixed_denominator

LOCAL_EPSILONS: Final = (1.0, 4.0, 8.0)
LOCAL_SIZES: Final = (100, 110_000, 10_000_000)


@dataclass(frozen=True, slots=True)
class Loudness:
    """The noise of one round's mean against its signal, both as L2 norms.

    `ratio` is noise over the largest norm that a mean of clipped updates can have; at 1 the noise is as long as the
    longest step. `clients` a round, or else `parameters` to train, would bring it there.
    """

    ratio: float
    clients: int
    parameters: int


@dataclass(frozen=True, slots=True)
class LocalNoise:
    """What Gaussian noise in each message costs: its deviation over the clipping norm, and clients for a ratio of 1."""

    epsilon: float
    noise_stddev: float
    clients: dict[int, int]


def loudness(spec: RunSpec, *, num_parameters: int) -> Loudness:
    """Tells how loud a calibrated run's noise is when so many parameters are trained.

    For correlated noise it is a lower bound of one round's own noise, of which later rounds take back a part.
    """
    clients = fixed_denominator(spec.selection) or float(spec.round.quorum)
    each, is_local = _noise_of_one(spec)
    if is_local:
        return Loudness(
            each * math.sqrt(num_parameters / clients),
            _clients(each**2 * num_parameters),
            math.floor(clients / each**2),
        )
    root = math.sqrt(num_parameters)
    return Loudness(each * root / clients, _clients(each * root), math.floor((clients / each) ** 2))


def local_noise(*, delta: float, sizes: tuple[int, ...] = LOCAL_SIZES) -> list[LocalNoise]:
    """Tabulates what local Gaussian noise needs for one message: any two updates lie up to two clipping norms apart."""
    deviations = {epsilon: 2 * gaussian_noise_multiplier(epsilon, delta) for epsilon in LOCAL_EPSILONS}
    return [
        LocalNoise(epsilon, stddev, {size: round(stddev**2 * size) for size in sizes})
        for epsilon, stddev in deviations.items()
    ]


def _clients(exact: float) -> int:
    """Rounds up, but for what the root and the square have left over."""
    return math.ceil(exact * (1 - 1e-12))


def _noise_of_one(spec: RunSpec) -> tuple[float, bool]:
    """Gives the noise's standard deviation in each coordinate over the clipping norm, and whether each message has it.

    A Laplace variable of scale b has the standard deviation b times the root of 2.
    """
    privacy = spec.privacy
    match privacy:
        case NoPrivacy() | ExampleDpsgdPrivacy():
            raise ValueError(f"privacy.kind {privacy.kind!r} adds no noise to an update")
        case CentralGaussianAdaptivePrivacy():
            return value_noise_multiplier(privacy, quorum=spec.round.quorum), False
        case _:
            multiplier = privacy.noise_multiplier
    if multiplier is None:
        raise ValueError("privacy.noise_multiplier is not calibrated")
    match privacy:
        case CentralGaussianPrivacy():
            return multiplier, False
        case DistributedSkellamPrivacy(assumed_colluders=colluders):
            each = multiplier / math.sqrt((1 - colluders) * min_members(spec))
            # In one session more clients are more survivors too; more sessions leave each client's share as it is.
            is_one_session = target_members(spec) >= spec.round.cohort_size
            return (each * math.sqrt(spec.round.quorum), False) if is_one_session else (each, True)
        case CentralBltPrivacy():
            return multiplier * math.sqrt(num_participations(spec)), False
        case LocalGaussianPrivacy():
            return 2 * multiplier, True
        case LocalLaplacePrivacy():
            return 2 * multiplier * math.sqrt(2), True
