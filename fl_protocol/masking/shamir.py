"""Shamir's secret sharing over GF(2^256 + 297), the smallest prime that every secret of 32 bytes lies below.

Member v of a session holds the share at x = v + 1, so that no share is the secret itself. A share is 33 bytes,
big-endian (Shamir 1979).
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Final

from fl_protocol.masking.errors import ShareError
from fl_protocol.masking.keys import Secret

PRIME: Final = 2**256 + 297
SECRET_BYTES: Final = 32
SHARE_BYTES: Final = 33
COEFFICIENT_BYTES: Final = 48
"""Of 48 random bytes, reduced, every element of the field is as likely as any other to within 2^-127."""


def coefficients(entropy: Secret) -> tuple[int, ...]:
    """Makes t - 1 random elements of the field of 48 (t - 1) random bytes, for one secret."""
    if len(entropy) % COEFFICIENT_BYTES:
        raise ShareError(
            "entropy",
            value=len(entropy),
            bound=COEFFICIENT_BYTES,
            what=f"{len(entropy)} bytes of entropy; each coefficient takes {COEFFICIENT_BYTES}",
        )
    starts = range(0, len(entropy), COEFFICIENT_BYTES)
    return tuple(int.from_bytes(entropy[at : at + COEFFICIENT_BYTES], "big") % PRIME for at in starts)


def split(secret: Secret, members: Sequence[int], *, coefficients: Sequence[int]) -> dict[int, bytes]:
    """Gives each member its share of a secret of 32 bytes; t = len(coefficients) + 1 of them join to it.

    `coefficients` are elements of the field, fresh for each secret, that of x^1 first.
    """
    if len(secret) != SECRET_BYTES:
        raise ShareError(
            "secret",
            value=len(secret),
            bound=SECRET_BYTES,
            what=f"a secret has {SECRET_BYTES} bytes, not {len(secret)}",
        )
    falling = (*reversed(coefficients), int.from_bytes(secret, "big"))
    return {member: _evaluate(falling, member + 1).to_bytes(SHARE_BYTES, "big") for member in members}


def join(shares: Mapping[int, Secret], *, threshold: int) -> bytearray:
    """Gives the secret back of the shares of at least `threshold` members, of which the lowest members' count.

    Raises ShareError if they are too few, not elements of the field, or join to something longer than a secret: then
    at least one of them is not what the dealer made.
    """
    if len(shares) < threshold:
        raise ShareError(
            "shares",
            value=len(shares),
            bound=threshold,
            what=f"{len(shares)} shares of a secret; {threshold} are needed",
        )
    members = tuple(sorted(shares)[:threshold])
    values = (element(shares[member]) for member in members)
    total = sum(weight * value for weight, value in zip(_weights_at_zero(members), values, strict=True)) % PRIME
    if total.bit_length() > 8 * SECRET_BYTES:
        raise ShareError(
            "shares", value=len(shares), bound=threshold, what="the shares of a secret do not belong together"
        )
    return bytearray(total.to_bytes(SECRET_BYTES, "big"))


def element(share: Secret) -> int:
    """Gives a share's element of the field; raises ShareError for bytes that are none."""
    value = int.from_bytes(share, "big")
    if len(share) != SHARE_BYTES or value >= PRIME:
        raise ShareError(
            "share",
            value=len(share),
            bound=SHARE_BYTES,
            what=f"a share is {SHARE_BYTES} bytes of a number below 2^256 + 297; this one has {len(share)}",
        )
    return value


def _evaluate(falling: Sequence[int], x: int) -> int:
    """Evaluates a polynomial at a small x by Horner's rule; growing by x's bits is cheaper than a division a step."""
    value = 0
    for coefficient in falling:
        value = value * x + coefficient
    return value % PRIME


@lru_cache(maxsize=1024)
def _weights_at_zero(members: tuple[int, ...]) -> tuple[int, ...]:
    """Gives Lagrange's weights at x = 0; of a session most secrets are joined from the same members' shares."""
    places = [member + 1 for member in members]
    numerators, denominators = [], []
    for place in places:
        numerator = denominator = 1
        for other in places:
            if other != place:
                numerator = numerator * other % PRIME
                denominator = denominator * (other - place) % PRIME
        numerators.append(numerator)
        denominators.append(denominator)
    inverses = _inverses(denominators)
    return tuple(numerator * inverse % PRIME for numerator, inverse in zip(numerators, inverses, strict=True))


def _inverses(values: Sequence[int]) -> list[int]:
    """Inverts many elements with one inversion (Montgomery's trick)."""
    products = [1]
    for value in values:
        products.append(products[-1] * value % PRIME)
    inverse = pow(products[-1], -1, PRIME)
    inverses = []
    for value, before in zip(reversed(values), reversed(products[:-1]), strict=True):
        inverses.append(inverse * before % PRIME)
        inverse = inverse * value % PRIME
    return inverses[::-1]
