"""Noise that later rounds take back in part: DP-FTRL with a buffered linear Toeplitz matrix (BLT).

Round t releases its sum plus y_t, where y = C^-1 z, z is independent noise and C is lower triangular Toeplitz with the
column c_0 = 1, c_i = sum_j omega_j theta_j^(i-1). What an observer learns of one client is what C x + z tells of that
client's x: one Gaussian for the whole run, as wide against the noise as the largest norm of C x, the sensitivity. The
prefix sums, which are what moves the model, get far less noise than independent noise would give them.

It holds for every client that takes part at most so many times with rounds t and t' at least `separation` apart, for
updates that depend on earlier releases, and for any way to choose cohorts (Denisov et al. 2022, arXiv 2202.08312;
Choquette-Choo et al. 2023, arXiv 2211.06530; Dvijotham et al. 2024, arXiv 2404.16706; McMahan et al. 2024, arXiv
2408.08868). The buffers are as secret as the noise: with them, later rounds' noise can be taken off.
"""

import math
from dataclasses import dataclass
from typing import Final

import numpy as np

from aggregator_service.domain.server_optimizers.states import States
from fl_protocol.dtypes import Float64Array


@dataclass(frozen=True, slots=True)
class Blt:
    """A matrix C: each buffer's decay `theta`, above 0 and at most 1, and its weight `omega`, above 0."""

    theta: tuple[float, ...]
    omega: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Participation:
    """How often one client may take part: in round t and then, at the earliest, in round t + `separation`."""

    num_rounds: int
    separation: int
    max_participations: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CorrelatedNoise:
    """The matrix for a run, which of the shipped ones it is, and what it costs and gives.

    Widths are in units of the noise that protects one participation in one round at the same price: `sensitivity` is
    that of z, `worst_error` the largest standard deviation of the noise in any sum of the first rounds, and
    `independent_error` what it would be with independent noise, which is the better choice where it is smaller.
    """

    blt: Blt
    made_for: Participation
    sensitivity: float
    worst_error: float
    independent_error: float


SHIPPED: Final = {
    Participation(num_rounds=100, separation=100, max_participations=1): Blt(
        (0.9888597, 0.77298813), (0.1460278, 0.32354097)
    ),
    Participation(num_rounds=200, separation=20, max_participations=10): Blt(
        (1.0, 0.90603079), (0.01850523, 0.45682403)
    ),
    Participation(num_rounds=500, separation=100, max_participations=5): Blt(
        (1.0, 0.97790211, 0.64148136), (0.0147661, 0.20128581, 0.27943545)
    ),
    Participation(num_rounds=1000, separation=100, max_participations=10): Blt(
        (0.98607187, 0.62314426), (0.23131855, 0.27253806)
    ),
    Participation(num_rounds=2000, separation=400, max_participations=4): Blt(
        (1.0, 0.99330287, 0.81581379), (0.00914928, 0.11335105, 0.33134305)
    ),
}
"""Optimised for the worst prefix error with jax-privacy; any of them is private for any participation."""


def choose(participation: Participation) -> CorrelatedNoise:
    """Gives the shipped matrix with the least worst error for these participations; for a listed run that is its own.

    More participations than the separation leaves room for count as what it leaves room for.
    """
    rounds, separation = participation.num_rounds, participation.separation
    possible = min(participation.max_participations, -(-rounds // separation))
    wanted = Participation(num_rounds=rounds, separation=separation, max_participations=possible)
    return min((_weigh(blt, made_for, wanted) for made_for, blt in SHIPPED.items()), key=lambda one: one.worst_error)


def coefficients(blt: Blt, num_rounds: int) -> Float64Array:
    """Gives the first column of C."""
    column = np.ones(num_rounds)
    column[1:] = _powers(np.array(blt.theta), num_rounds - 1) @ np.array(blt.omega)
    return column


def inverse_coefficients(blt: Blt, num_rounds: int) -> Float64Array:
    """Gives the first column of C^-1: what `step` makes of a one followed by zeros.

    The buffers go from round to round by the matrix diag(theta) - 1 omega'; its eigenvalues give all powers at once.
    """
    theta, omega = np.array(blt.theta), np.array(blt.omega)
    values, vectors = np.linalg.eig(np.diag(theta) - omega)
    weights = (omega @ vectors) * np.linalg.solve(vectors, np.ones(theta.size))
    column = np.ones(num_rounds)
    column[1:] = -(_powers(values, num_rounds - 1) @ weights)
    return column


def square_root_coefficients(num_bands: int, num_rounds: int) -> Float64Array:
    """Gives the column of the banded square root (BSR; Kalinin & Lampert 2024), which has no parameters.

    It is the series of (1 - x)^(-1/2), cut off after so many bands: 1, 1/2, 3/8, 5/16, ...
    """
    column = np.zeros(num_rounds)
    orders = np.arange(1, min(num_bands, num_rounds))
    column[: orders.size + 1] = np.cumprod(np.concatenate(([1.0], (2 * orders - 1) / (2 * orders))))
    return column


def sensitivity(column: Float64Array, participation: Participation) -> float:
    """Gives the largest norm of C x for a client's x of norm at most 1 a round, for the column of `num_rounds` rounds.

    Where the column nowhere rises and is nowhere negative, the worst rounds are 0, b, 2b, ... with the same update in
    each: sqrt(sum_t (sum_{i<k} c_{t-ib})^2) (Kalinin & Lampert 2024, arXiv 2405.13763). It is rounded up to a multiple
    of 2^-30, so that the last bits of a machine's arithmetic do not change the noise.
    """
    if column.size != participation.num_rounds:
        raise ValueError(f"a column of {column.size} rounds does not describe a run of {participation.num_rounds}")
    if np.any(np.diff(column) > 0) or column[-1] < 0:
        raise ValueError("the formula for the sensitivity needs a column that nowhere rises and is nowhere negative")
    separation, most = participation.separation, participation.max_participations
    padded = np.zeros(-(-column.size // separation) * separation)
    padded[: column.size] = column
    summed = np.cumsum(padded.reshape(-1, separation), axis=0)
    summed[most:] -= summed[:-most].copy()
    return math.ceil(np.linalg.norm(summed.reshape(-1)[: column.size]) * 2**30) / 2**30


def worst_prefix_stddev(inverse: Float64Array) -> float:
    """Gives the largest standard deviation of y_0 + ... + y_t over all t, for standard normal z."""
    return float(np.linalg.norm(np.cumsum(inverse)))


def init(blt: Blt, num_elements: int) -> States:
    """Gives the buffers before the first round: as many zeros a buffer as there are elements."""
    return tuple(np.zeros(num_elements) for _ in blt.theta)


def step(blt: Blt, z: Float64Array, *, buffers: States) -> tuple[Float64Array, States]:
    """Gives one round's y and the new buffers, from the round's independent standard normals.

    y = z - sum_j omega_j B_j, and then B_j = theta_j B_j + y. No element looks at another one.
    """
    noise, scaled = z.copy(), np.empty_like(z)
    for omega, buffer in zip(blt.omega, buffers, strict=True):
        np.multiply(buffer, omega, out=scaled)
        np.subtract(noise, scaled, out=noise)
    kept = tuple(theta * buffer for theta, buffer in zip(blt.theta, buffers, strict=True))
    for buffer in kept:
        np.add(buffer, noise, out=buffer)
    return noise, kept


def _weigh(blt: Blt, made_for: Participation, wanted: Participation) -> CorrelatedNoise:
    cost = sensitivity(coefficients(blt, wanted.num_rounds), wanted)
    gives = cost * worst_prefix_stddev(inverse_coefficients(blt, wanted.num_rounds))
    return CorrelatedNoise(
        blt=blt,
        made_for=made_for,
        sensitivity=cost,
        worst_error=gives,
        independent_error=math.sqrt(wanted.max_participations * wanted.num_rounds),
    )


def _powers(bases: Float64Array, num_powers: int) -> Float64Array:
    return bases ** np.arange(num_powers)[:, np.newaxis]
