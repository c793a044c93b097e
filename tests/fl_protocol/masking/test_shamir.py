"""Secrets are shared so that t shares give them back, t - 1 tell nothing, and what is no share is refused."""

import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fl_protocol.masking import shamir
from fl_protocol.masking.errors import ShareError

SECRETS = st.binary(min_size=32, max_size=32)


def shared(secret, members, threshold):
    return shamir.split(secret, members, coefficients=shamir.coefficients(os.urandom(48 * (threshold - 1))))


def test_the_field_is_prime():
    """Miller-Rabin with the first twenty primes as bases."""
    odd, twos = shamir.PRIME - 1, 0
    while odd % 2 == 0:
        odd, twos = odd // 2, twos + 1
    for base in (2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47, 53, 59, 61, 67, 71):
        powers = [pow(base, odd << at, shamir.PRIME) for at in range(twos)]
        assert powers[0] == 1 or shamir.PRIME - 1 in powers


@settings(max_examples=40, deadline=None)
@given(secret=SECRETS, data=st.data())
def test_any_t_shares_join_to_the_secret(secret, data):
    members = data.draw(st.lists(st.integers(0, 9999), min_size=1, max_size=20, unique=True))
    threshold = data.draw(st.integers(1, len(members)))
    shares = shared(secret, members, threshold)
    some = data.draw(st.permutations(members))[: data.draw(st.integers(threshold, len(members)))]
    assert shamir.join({member: shares[member] for member in some}, threshold=threshold) == secret


@pytest.mark.parametrize("secret", [bytes(32), b"\xff" * 32])
def test_the_smallest_and_the_largest_secret(secret):
    assert shamir.join(shared(secret, range(5), 3), threshold=3) == secret


def test_with_a_share_too_few_every_secret_is_as_possible_as_the_real_one():
    """For any candidate there is one polynomial through it and the t - 1 known shares: solve for its coefficients."""
    members, threshold = (2, 5, 9, 14), 5
    known = shared(os.urandom(32), members, threshold)
    for candidate in (bytes(32), os.urandom(32), b"\xff" * 32):
        # Through (0, candidate) and the known shares there is a polynomial of degree 4; its value anywhere else is the
        # share that would make the candidate the secret.
        points = {0: int.from_bytes(candidate, "big")} | {
            member + 1: int.from_bytes(share, "big") for member, share in known.items()
        }
        place = 21
        value = 0
        for x, y in points.items():
            weight = 1
            for other in points:
                if other != x:
                    weight = weight * (place - other) * pow(x - other, -1, shamir.PRIME) % shamir.PRIME
            value = (value + weight * y) % shamir.PRIME
        fitting = known | {place - 1: value.to_bytes(33, "big")}
        assert shamir.join(fitting, threshold=threshold) == candidate


def test_the_last_share_of_each_member_is_spread_over_the_field():
    """The top bit of 257 is set in 297 of 2^256 shares, so it never is; all others are coins."""
    secret = bytes(32)
    ones = [0] * 257
    draws = 2000
    for _ in range(draws):
        (share,) = shared(secret, [3], 2).values()
        value = int.from_bytes(share, "big")
        for bit in range(257):
            ones[bit] += value >> bit & 1
    assert ones[256] == 0
    # Six standard deviations of 2000 coins.
    assert all(abs(count - draws / 2) < 6 * (draws / 4) ** 0.5 for count in ones[:256])


@pytest.mark.parametrize(
    "shares",
    [
        {0: bytes(33)},
        {0: bytes(33), 1: bytes(32)},
        {0: bytes(33), 1: bytes(34)},
        {0: bytes(33), 1: b""},
        {0: bytes(33), 1: shamir.PRIME.to_bytes(33, "big")},
        {0: bytes(33), 1: b"\xff" * 33},
    ],
)
def test_what_is_no_share_is_refused(shares):
    with pytest.raises(ShareError):
        shamir.join(shares, threshold=2)


def test_shares_that_join_to_more_than_a_secret_are_refused():
    """Of wrong shares only one in 2^248 joins to 2^256 or above; this one is made to."""
    polynomial = [2**256 + 5, 1]
    shares = {x - 1: ((polynomial[0] + x * polynomial[1]) % shamir.PRIME).to_bytes(33, "big") for x in (1, 2)}
    with pytest.raises(ShareError, match="do not belong together"):
        shamir.join(shares, threshold=2)


def test_secrets_and_entropy_of_the_wrong_length_are_refused():
    with pytest.raises(ShareError, match="32 bytes, not 31"):
        shamir.split(bytes(31), [0], coefficients=[])
    with pytest.raises(ShareError, match="47 bytes of entropy"):
        shamir.coefficients(bytes(47))
