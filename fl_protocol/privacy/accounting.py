"""What a run's declared privacy costs a client, and the noise with which it stays within its budget.

The unit is one client identity. Nothing is claimed of how clients are chosen, only that one takes part in at most so
many rounds, which the server enforces at each claim (docs/adr/0025).
"""

import math
from typing import Final, assert_never

from fl_protocol.masked_vectors import ring_of
from fl_protocol.privacy.distributed import skellam_epsilon
from fl_protocol.privacy.releases import Noise, Release, epsilon, gaussian_noise_multiplier, renyi_epsilon
from fl_protocol.privacy.shared_noise import SumSizes, check_shared_noise, sum_releases
from fl_protocol.privacy_claims import Adjacency
from fl_protocol.runs import RunSpec
from fl_protocol.specs.privacy import (
    CentralBltPrivacy,
    CentralGaussianAdaptivePrivacy,
    CentralGaussianPrivacy,
    DistributedSkellamPrivacy,
    ExampleDpsgdPrivacy,
    LocalGaussianPrivacy,
    LocalLaplacePrivacy,
)
from fl_protocol.specs.privacy import (
    num_participations as most_participations,
)
from fl_protocol.specs.protection import NoPrivacy
from fl_protocol.specs.secure_aggregation import min_members

MIN_NOISE_MULTIPLIER: Final = 1e-2
MAX_NOISE_MULTIPLIER: Final = 1e4
_STEPS: Final = 100_000
"""A calibrated noise multiplier is rounded up to five decimals: what is shown is what is used."""
_MOST_LAST_BITS: Final = 100

BudgetedPrivacy = (
    CentralGaussianPrivacy
    | CentralGaussianAdaptivePrivacy
    | CentralBltPrivacy
    | LocalLaplacePrivacy
    | LocalGaussianPrivacy
    | DistributedSkellamPrivacy
)
"""The kinds whose cost follows from the RunSpec and from who took part."""


def calibrated(spec: RunSpec) -> RunSpec:
    """Gives the specification with the noise multiplier that keeps its budget, or as it is where one was chosen.

    Where the clients share the noise, the fewest that a sum may have are filled in too: for its sessions as well.

    A client that takes part as often as selection allows spends at most the target with it.

    Raises ValueError naming the field with which not even one round could be published.
    """
    privacy = spec.privacy
    if isinstance(privacy, NoPrivacy | ExampleDpsgdPrivacy):
        return spec
    if isinstance(privacy, DistributedSkellamPrivacy):
        spec, privacy = _with_survivors(spec, privacy)
    if privacy.noise_multiplier is None:
        spec = _with_multiplier(spec, privacy, _least_multiplier(spec, privacy))
    else:
        _check_first_round(spec, privacy)
    if isinstance(spec.privacy, CentralGaussianAdaptivePrivacy):
        value_noise_multiplier(spec.privacy, quorum=spec.round.quorum)
    elif isinstance(spec.privacy, DistributedSkellamPrivacy):
        check_shared_noise(spec)
        ring_of(spec)
    return spec


def epsilon_spent(spec: RunSpec, *, num_participations: int, num_rounds: int, sums: SumSizes | None = None) -> float:
    """Gives what a client has spent whose updates counted in so many of the rounds published so far.

    Noise that the clients share costs by how many of them shared it: `sums` tells that of the releases, of which the
    worst count; without it all had as few survivors as they may. Other kinds have no use for it.

    0 for none; never less for more. Infinite where the run promises it no bound: without `privacy`, with
    `example_dpsgd` (which protects examples, and which the client itself accounts), and for correlated noise beyond the
    rounds and participations that it was made for. Raises ValueError before the noise is calibrated.
    """
    if not num_participations or not num_rounds:
        return 0.0
    if not _is_bounded(spec, num_participations, num_rounds):
        return math.inf
    if isinstance(spec.privacy, DistributedSkellamPrivacy):
        shared = sum_releases(spec, num_participations=num_participations, sizes=sums)
        return skellam_epsilon(shared, delta=delta_of(spec))
    return epsilon(releases(spec, num_participations=num_participations), delta=delta_of(spec))


def renyi_epsilon_spent(spec: RunSpec, *, num_participations: int, num_rounds: int) -> float | None:
    """Gives `epsilon_spent` by the second accountant, to be no less than it; None where that has no account.

    Skellam noise has Renyi's account for its first, and no second.
    """
    if isinstance(spec.privacy, DistributedSkellamPrivacy):
        return None
    if not num_participations or not num_rounds:
        return 0.0
    if not _is_bounded(spec, num_participations, num_rounds):
        return math.inf
    return renyi_epsilon(releases(spec, num_participations=num_participations), delta=delta_of(spec))


def releases(spec: RunSpec, *, num_participations: int) -> list[Release]:
    """Lists what is published of a client that took part so often, in units of the clipping norm.

    Correlated noise is one release however often the client took part (Denisov et al. 2022).
    """
    privacy = spec.privacy
    if isinstance(privacy, NoPrivacy | ExampleDpsgdPrivacy | DistributedSkellamPrivacy):
        raise ValueError(f"privacy.kind {privacy.kind!r} has no account of a client's updates by their number alone")
    multiplier = privacy.noise_multiplier
    if multiplier is None:
        raise ValueError("privacy.noise_multiplier is not calibrated")
    if isinstance(privacy, LocalLaplacePrivacy | LocalGaussianPrivacy):
        noise = Noise.LAPLACE if isinstance(privacy, LocalLaplacePrivacy) else Noise.GAUSSIAN
        # Any two updates are neighbours for whoever reads the message itself: they may lie two clipping norms apart.
        return [Release(noise, 2 * multiplier, 2.0, Adjacency.REPLACE_ONE, count=num_participations)]
    count = 1 if isinstance(privacy, CentralBltPrivacy) else num_participations
    return [Release(Noise.GAUSSIAN, multiplier, 1.0, Adjacency.ZERO_OUT, count=count)]


def delta_of(spec: RunSpec) -> float:
    """Gives the delta of a run's promise; 0 for Laplace noise and where there is none."""
    privacy = spec.privacy
    return 0.0 if isinstance(privacy, NoPrivacy | LocalLaplacePrivacy) else privacy.delta


def count_stddev(privacy: CentralGaussianAdaptivePrivacy, *, quorum: int) -> float:
    """Gives the standard deviation of the noise on the count of updates that were not clipped."""
    return quorum / 20 if privacy.count_stddev is None else privacy.count_stddev


def value_noise_multiplier(privacy: CentralGaussianAdaptivePrivacy, *, quorum: int) -> float:
    """Gives the multiplier of the noise on the sum with which sum and count together cost one Gaussian of the run's.

    The count of bits minus a half has sensitivity 1/2, so its own multiplier is twice its standard deviation
    (Andrew et al. 2021, theorem 1). Raises ValueError where the count alone would cost as much.
    """
    multiplier, stddev = privacy.noise_multiplier, count_stddev(privacy, quorum=quorum)
    if multiplier is None:
        raise ValueError("privacy.noise_multiplier is not calibrated")
    if multiplier >= 2 * stddev:
        whose = "privacy.count_stddev" if privacy.count_stddev is not None else "privacy.count_stddev (quorum / 20)"
        raise ValueError(
            f"{whose} {stddev:g} lets the count of unclipped updates alone spend what privacy.noise_multiplier "
            f"{multiplier:g} allows for everything; it must be above half of that ({multiplier / 2:g}), "
            f"which is a quorum above {math.floor(10 * multiplier)} by default"
        )
    return float((multiplier**-2 - (2 * stddev) ** -2) ** -0.5)


def _is_bounded(spec: RunSpec, participations: int, rounds: int) -> bool:
    match spec.privacy:
        case NoPrivacy() | ExampleDpsgdPrivacy():
            return False
        case CentralBltPrivacy():
            return participations <= most_participations(spec) and rounds <= spec.num_rounds
        case _:
            return True


def _least_multiplier(spec: RunSpec, privacy: BudgetedPrivacy) -> float:
    """Gives the least multiplier, rounded up, with which the most participations stay within the target."""
    participations, target = most_participations(spec), privacy.target_epsilon
    match privacy:
        case LocalLaplacePrivacy():
            exact = participations / target
        case CentralBltPrivacy():
            exact = gaussian_noise_multiplier(target, privacy.delta)
        case DistributedSkellamPrivacy():
            exact = _bisected_multiplier(spec, privacy)
        case CentralGaussianPrivacy() | CentralGaussianAdaptivePrivacy() | LocalGaussianPrivacy():
            exact = math.sqrt(participations) * gaussian_noise_multiplier(target, privacy.delta)
        case _:
            assert_never(privacy)
    least = math.ceil(max(exact, MIN_NOISE_MULTIPLIER) * _STEPS)
    if exact <= MAX_NOISE_MULTIPLIER:
        # Rounding up is enough but for the last bits of a root; the ledger compares without any tolerance.
        for steps in range(least, least + _MOST_LAST_BITS):
            if _all_spent(_with_multiplier(spec, privacy, steps / _STEPS)) <= target:
                return steps / _STEPS
    raise ValueError(
        f"privacy.target_epsilon {target:g} over {participations} participations of a client needs a noise "
        f"multiplier of {exact:.6g}, and at most {MAX_NOISE_MULTIPLIER:g} is offered; set "
        "selection.max_participations lower or the target higher"
    )


def _bisected_multiplier(spec: RunSpec, privacy: BudgetedPrivacy) -> float:
    """Gives the least multiplier, in steps of 1e-5, that keeps the target; raises ValueError where none does."""
    too_small, enough = round(MIN_NOISE_MULTIPLIER * _STEPS) - 1, round(MAX_NOISE_MULTIPLIER * _STEPS)
    least = _all_spent(_with_multiplier(spec, privacy, MAX_NOISE_MULTIPLIER))
    if least > privacy.target_epsilon:
        raise ValueError(
            f"privacy.target_epsilon {privacy.target_epsilon:g} over {most_participations(spec)} participations of a "
            f"client is less than the {least:.4g} that Skellam noise is charged with the largest noise multiplier that "
            f"is offered ({MAX_NOISE_MULTIPLIER:g}); set selection.max_participations lower or the target higher"
        )
    while enough - too_small > 1:
        middle = (too_small + enough) // 2
        if _all_spent(_with_multiplier(spec, privacy, middle / _STEPS)) <= privacy.target_epsilon:
            enough = middle
        else:
            too_small = middle
    return enough / _STEPS


def _all_spent(spec: RunSpec) -> float:
    return epsilon_spent(spec, num_participations=most_participations(spec), num_rounds=spec.num_rounds)


def _check_first_round(spec: RunSpec, privacy: BudgetedPrivacy) -> None:
    first = epsilon_spent(spec, num_participations=1, num_rounds=1)
    if first > privacy.target_epsilon:
        raise ValueError(
            f"privacy.noise_multiplier {privacy.noise_multiplier:g} spends epsilon {first:.6g} with a client's first "
            f"update, and privacy.target_epsilon is {privacy.target_epsilon:g}: no round could be published; leave the "
            "multiplier out to have it calibrated"
        )


def _with_survivors(spec: RunSpec, privacy: DistributedSkellamPrivacy) -> tuple[RunSpec, DistributedSkellamPrivacy]:
    fewest = min_members(spec)
    privacy = privacy.model_copy(update={"min_survivors": fewest})
    masked = spec.secure_aggregation.model_copy(update={"min_members": fewest})
    return spec.model_copy(update={"privacy": privacy, "secure_aggregation": masked}), privacy


def _with_multiplier(spec: RunSpec, privacy: BudgetedPrivacy, multiplier: float) -> RunSpec:
    return spec.model_copy(update={"privacy": privacy.model_copy(update={"noise_multiplier": multiplier})})
