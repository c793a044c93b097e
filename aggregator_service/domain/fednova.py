"""FedNova's weights (Wang et al. 2020, arXiv 2007.07481): each delta divided by what its local steps amount to.

With p_i = n_i / n, n = sum of n_j (the strategy's weights), tau_i local steps and the norm a_i of client i, the paper's
step is tau_eff * sum of p_i * delta_i / a_i, where tau_eff = sum of p_j * tau_j. That is a sum with rational weights:

    sum of (n_i / a_i) * delta_i / (n^2 / T),    T = sum of n_j * tau_j.

The factors n_i / a_i and the divisor n^2 / T are computed exactly and rounded once to float64. A factor has then a
relative error of 2^-53, and so has its product with a delta: 2^-52 of a contribution, a thirty-second of what
`exact_sum`'s grid costs it. Weights scaled to integers of 29 bits would lose 2^-30 of the largest of them, and a
contribution with a small weight and a large delta much more than the contract allows.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Context, Decimal
from fractions import Fraction
from typing import Final

_DECIMAL: Final = Context(prec=40)


@dataclass(frozen=True, slots=True)
class NormalisedWeights:
    """What each update's delta is multiplied by, and what their sum is divided by."""

    factors: tuple[float, ...]
    divisor: float


def normalised_weights(contributions: Sequence[tuple[int, int]], *, shrinkage: float) -> NormalisedWeights:
    """Gives the weights of updates that are told as (weight, local steps), in their order; the divisor has none.

    `shrinkage` is learning_rate * mu of a proximal term, below 1: each step keeps 1 - shrinkage of those before it.
    """
    norms = {steps: step_norm(steps, shrinkage=shrinkage) for _, steps in contributions}
    total_weight = sum(weight for weight, _ in contributions)
    weighted_steps = sum(weight * steps for weight, steps in contributions)
    return NormalisedWeights(
        factors=tuple(float(weight / norms[steps]) for weight, steps in contributions),
        divisor=float(Fraction(total_weight**2, weighted_steps)),
    )


def step_norm(local_steps: int, *, shrinkage: float) -> Fraction:
    """Gives the 1-norm of the accumulation vector a_i: the number of steps of plain SGD, less with a proximal term.

    With shrinkage s it is the sum of (1 - s)^k for k from 0 to local_steps - 1, built up by doubling: all terms are
    positive, so nothing cancels; decimal arithmetic gives the same digits on every machine.
    """
    if shrinkage == 0:
        return Fraction(local_steps)
    kept = _DECIMAL.subtract(Decimal(1), Decimal(shrinkage))
    total, power = Decimal(0), Decimal(1)
    for bit in f"{local_steps:b}":
        total = _DECIMAL.multiply(total, _DECIMAL.add(Decimal(1), power))
        power = _DECIMAL.multiply(power, power)
        if bit == "1":
            total = _DECIMAL.add(_DECIMAL.multiply(total, kept), Decimal(1))
            power = _DECIMAL.multiply(power, kept)
    return Fraction(total)
