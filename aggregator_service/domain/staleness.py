"""How much less an update counts that was made from an older model (FedBuff, Nguyen et al. 2022, arXiv 2106.06639).

A buffer's step is sum(w_i * s(t_i) * delta_i) / sum(w_i): the discount s is left out of the divisor, as in FedBuff,
which divides by the number of updates. Dividing by the discounted weights instead would let a buffer of nothing but
stale updates take a full step.

Discounts are integers over 2^16, so that discounted weights are integers and their sum is exact in any order.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Context, Decimal
from fractions import Fraction
from typing import Final, assert_never

from fl_protocol.specs.staleness import ConstantStaleness, HingeStaleness, PolynomialStaleness
from fl_protocol.specs.strategies import MAX_WEIGHT

FULL: Final = 1 << 16
"""The discount of an update that counts in full."""

_WEIGHT_BITS: Final = (MAX_WEIGHT - 1).bit_length()

# libm's pow may differ by a bit between machines; decimal arithmetic does not.
_EXACT: Final = Context(prec=34)


@dataclass(frozen=True, slots=True)
class Discounted:
    """The weights that floating-point deltas are summed with, and what their sum is divided by."""

    weights: tuple[int, ...]
    total: Fraction


def discount(spec: PolynomialStaleness | ConstantStaleness | HingeStaleness, staleness: int) -> int:
    """Gives s(staleness) * 2^16, rounded half to even and at least 1; staleness counts versions and is at least 0."""
    match spec:
        case ConstantStaleness():
            return FULL
        case PolynomialStaleness():
            factor = _EXACT.power(Decimal(1 + staleness), Decimal(-spec.exponent))
            return max(1, round(Fraction(factor) * FULL))
        case HingeStaleness():
            beyond = max(0, staleness - spec.threshold)
            return max(1, round(FULL / (1 + Fraction(spec.slope) * beyond)))
        case _:
            assert_never(spec)


def discounted(weights: Sequence[int], discounts: Sequence[int]) -> Discounted:
    """Multiplies weights of up to 2^29 with discounts over 2^16; where all are full, the weights stay as they are.

    The products are exact where the largest has at most 29 bits: for weights up to 2^13 always. Larger ones are divided
    by a power of two that makes the largest fit and rounded half to even, which moves each by at most 2^-29 of the
    largest; a weight stays at least 1. The result is a function of the set of pairs, whatever their order.
    """
    common = min((part & -part for part in discounts), default=FULL)
    products = [weight * part // common for weight, part in zip(weights, discounts, strict=True)]
    excess = max(0, (max(products, default=1) - 1).bit_length() - _WEIGHT_BITS)
    return Discounted(
        weights=tuple(max(1, round(Fraction(product, 1 << excess))) for product in products),
        total=Fraction(sum(weights) * (FULL // common), 1 << excess),
    )
