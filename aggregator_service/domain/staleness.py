"""How much less an update counts that was made from an older model (FedBuff, Nguyen et al. 2022, arXiv 2106.06639).

A buffer's step is sum(w_i * s(t_i) * delta_i) / sum(w_i): the discount s is left out of the divisor, as in FedBuff,
which divides by the number of updates. Dividing by the discounted weights instead would let a buffer of nothing but
stale updates take a full step.
"""

from collections.abc import Sequence
from decimal import Context, Decimal
from fractions import Fraction
from typing import Final, assert_never

from fl_protocol.specs.staleness import ConstantStaleness, HingeStaleness, PolynomialStaleness, StalenessSpec

# libm's pow may differ by a bit between machines; decimal arithmetic does not.
_DECIMAL: Final = Context(prec=40)


def discount(spec: StalenessSpec, staleness: int) -> Fraction:
    """Gives s(staleness), above 0 and at most 1: exact for `hinge`, to 40 digits for `polynomial`.

    `staleness` counts versions and is at least 0; `polynomial` and `hinge` are those of FedAsync (Xie et al. 2019).
    """
    match spec:
        case ConstantStaleness():
            return Fraction(1)
        case PolynomialStaleness():
            return Fraction(_DECIMAL.power(Decimal(1 + staleness), Decimal(-spec.exponent)))
        case HingeStaleness():
            return 1 / (1 + Fraction(spec.slope) * max(0, staleness - spec.threshold))
        case _:
            assert_never(spec)


def discounted(contributions: Sequence[tuple[int, int]], spec: StalenessSpec) -> list[float]:
    """Gives what each delta is multiplied by, for updates that are told as (weight, staleness).

    It is rounded once to float64: a full one is the weight itself, any other has a relative error of 2^-53.
    """
    discounts = {staleness: discount(spec, staleness) for _, staleness in contributions}
    return [float(weight * discounts[staleness]) for weight, staleness in contributions]
