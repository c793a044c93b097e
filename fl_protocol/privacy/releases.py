"""What noised releases of a sum cost together: epsilon at a delta, by Google's dp-accounting.

A release is told in absolute figures, its noise and how far one client can move the sum, so that no reader has to guess
which of several conventions a noise multiplier follows; only this module turns them into the library's events.
"""

# dp-accounting takes seconds to import and is in the extra [privacy]: what needs none of it must not wait for it.
# ruff: noqa: PLC0415

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from fl_protocol.privacy_claims import Adjacency

if TYPE_CHECKING:
    from types import ModuleType


class Noise(StrEnum):
    """The distribution of the noise in each coordinate."""

    GAUSSIAN = "gaussian"
    LAPLACE = "laplace"


@dataclass(frozen=True, slots=True)
class PoissonSampling:
    """Each client takes part by a secret coin of its own."""

    probability: float


@dataclass(frozen=True, slots=True)
class TruncatedPoissonSampling:
    """Each of `population` clients by a secret coin of its own, and of more than `cap` a random `cap` are left."""

    probability: float
    population: int
    cap: int


@dataclass(frozen=True, slots=True)
class FixedSizeSampling:
    """A secret draw of `size` of `population` clients without replacement."""

    population: int
    size: int


Sampling = PoissonSampling | TruncatedPoissonSampling | FixedSizeSampling


@dataclass(frozen=True, slots=True)
class Release:
    """`count` sums of clipped updates, each published with its own noise.

    `sigma`: the Gaussian noise's standard deviation, or the scale b of Laplace noise. `sensitivity`: how far the sum
    may lie from that of a neighbouring world, in the L2 norm (Gaussian) or the L1 norm (Laplace): the clipping norm, or
    twice that under REPLACE_ONE. `sampling`: None where nothing is claimed of how clients were chosen.
    """

    noise: Noise
    sigma: float
    sensitivity: float
    adjacency: Adjacency
    sampling: Sampling | None = None
    count: int = 1

    @property
    def noise_multiplier(self) -> float:
        """The noise over the sensitivity under this release's own adjacency."""
        return self.sigma / self.sensitivity


def epsilon(releases: Sequence[Release], *, delta: float) -> float:
    """Gives what releases to the same observer cost together at a delta, composed adaptively.

    In closed form where there is one (Gaussian noise without sampling: Balle and Wang 2018; Laplace noise at delta 0),
    otherwise by the privacy loss distribution, and by Renyi DP for a fixed-size draw, which that does not know.

    Raises ValueError for what neither can account.
    """
    spending = _spending(releases)
    if not spending:
        return 0.0
    if _is_plain(spending, Noise.GAUSSIAN):
        return _gaussian_epsilon(_composed_multiplier(spending), delta)
    if delta == 0 and _is_plain(spending, Noise.LAPLACE):
        return math.fsum(release.count / release.noise_multiplier for release in spending)
    if any(isinstance(release.sampling, FixedSizeSampling) for release in spending):
        return _renyi_epsilon(spending, delta)
    return _pld_epsilon(spending, delta)


def renyi_epsilon(releases: Sequence[Release], *, delta: float) -> float | None:
    """Gives an upper bound of `epsilon` from a second accountant (Mironov 2017), or None for what it does not know."""
    spending = _spending(releases)
    if not spending:
        return 0.0
    if delta == 0:
        return None
    try:
        return _renyi_epsilon(spending, delta)
    except ValueError:
        return None


def gaussian_noise_multiplier(target_epsilon: float, delta: float) -> float:
    """Gives the least noise multiplier with which one release of Gaussian noise costs an epsilon (analytic)."""
    return float(accounting_library().get_sigma_gaussian(target_epsilon, delta))


def concentrated_epsilon(rho: float, *, delta: float) -> float:
    """Gives the epsilon of a mechanism that is rho-zCDP (Bun and Steinke 2016), by Renyi DP of every order."""
    accounting = accounting_library()
    accountant = accounting.rdp.RdpAccountant(neighboring_relation=accounting.NeighboringRelation.REPLACE_SPECIAL)
    accountant.compose(accounting.ZCDpEvent(rho))
    return float(accountant.get_epsilon(delta))


def accounting_library() -> "ModuleType":
    """Imports Google's dp-accounting, or raises ModuleNotFoundError that names the extra which brings it."""
    try:
        import dp_accounting  # type: ignore[import-untyped]
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "privacy accounting needs dp-accounting; install fedquorum[privacy]", name=error.name
        ) from error
    return dp_accounting  # type: ignore[no-any-return]


def _spending(releases: Iterable[Release]) -> list[Release]:
    spending = [release for release in releases if release.count]
    adjacencies = sorted({release.adjacency for release in spending})
    if len(adjacencies) > 1:
        raise ValueError(f"releases under {' and '.join(adjacencies)} have no epsilon together; state them under one")
    return spending


def _is_plain(releases: Iterable[Release], noise: Noise) -> bool:
    return all(release.noise is noise and release.sampling is None for release in releases)


def _composed_multiplier(releases: Sequence[Release]) -> float:
    """Gives the noise multiplier of the one Gaussian mechanism that Gaussian releases without sampling make up."""
    if len(releases) == 1:
        return releases[0].noise_multiplier / math.sqrt(releases[0].count)
    return 1 / math.sqrt(math.fsum(release.count / release.noise_multiplier**2 for release in releases))


@lru_cache(maxsize=4096)
def _gaussian_epsilon(noise_multiplier: float, delta: float) -> float:
    return float(accounting_library().get_epsilon_gaussian(noise_multiplier, delta))


def _pld_epsilon(releases: Sequence[Release], delta: float) -> float:
    """Composes by the privacy loss distribution, which the library rounds so that it never says too little."""
    from dp_accounting.pld import PLDAccountant  # type: ignore[import-untyped]

    relation = _relation(releases)
    # Under REPLACE_ONE the library takes a multiplier for noise over clipping norm, and doubles the sensitivity itself.
    factor = 2 if relation is accounting_library().NeighboringRelation.REPLACE_ONE else 1
    composed = _composed(PLDAccountant(neighboring_relation=relation), releases, factor=factor)
    return float(composed.get_epsilon(delta))


def _renyi_epsilon(releases: Sequence[Release], delta: float) -> float:
    """Composes by Renyi DP.

    Under REPLACE_ONE dp-accounting 0.6 takes a multiplier for noise over sensitivity here, unlike its documentation and
    its other accountant (google/differential-privacy issue 378), so nothing may be doubled.
    """
    from dp_accounting.rdp import RdpAccountant  # type: ignore[import-untyped]

    composed = _composed(RdpAccountant(neighboring_relation=_relation(releases)), releases, factor=1)
    return float(composed.get_epsilon(delta))


def _relation(releases: Sequence[Release]) -> Any:
    relations = accounting_library().NeighboringRelation
    if all(release.sampling is None for release in releases):
        # A multiplier over the sensitivity says everything: the library shall neither double it nor refuse it.
        return relations.REPLACE_SPECIAL
    return {
        Adjacency.ZERO_OUT: relations.REPLACE_SPECIAL,
        Adjacency.ADD_OR_REMOVE_ONE: relations.ADD_OR_REMOVE_ONE,
        Adjacency.REPLACE_ONE: relations.REPLACE_ONE,
    }[releases[0].adjacency]


def _composed(accountant: Any, releases: Sequence[Release], *, factor: float) -> Any:
    for release in releases:
        event = _event(release, release.noise_multiplier * factor)
        if not accountant.supports(event):
            raise ValueError(
                f"{type(accountant).__name__} has no account of {release.noise} noise under {release.adjacency} "
                f"with {release.sampling or 'no sampling'}"
            )
        accountant.compose(event, release.count)
    return accountant


def _event(release: Release, noise_multiplier: float) -> Any:
    accounting = accounting_library()
    if release.noise is Noise.LAPLACE:
        event = accounting.LaplaceDpEvent(noise_multiplier)
    else:
        event = accounting.GaussianDpEvent(noise_multiplier)
    match release.sampling:
        case None:
            return event
        case PoissonSampling(probability):
            return accounting.PoissonSampledDpEvent(probability, event)
        case FixedSizeSampling(population, size):
            return accounting.SampledWithoutReplacementDpEvent(population, size, event)
        case TruncatedPoissonSampling(probability, population, cap):
            if release.noise is not Noise.GAUSSIAN:
                return accounting.UnsupportedDpEvent()
            return accounting.TruncatedSubsampledGaussianDpEvent(population, probability, cap, noise_multiplier)
