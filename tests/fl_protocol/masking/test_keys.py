"""Keys: every use has its own, points of low order are nobody's, and what was sealed opens only where it belongs."""

import hashlib
import hmac
import itertools
import os

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from fl_protocol.masking import keys
from fl_protocol.masking.errors import KeyRefusedError, ShareError

SECRET, SID = bytes(range(32)), hashlib.sha256(b"sid").digest()
LOW_ORDER = [
    "0000000000000000000000000000000000000000000000000000000000000000",
    "0100000000000000000000000000000000000000000000000000000000000000",
    "e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800",
    "5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157",
    "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
]
"""The points of order 1, 2, 4 and 8, and two of them once more with coordinates that are not reduced (RFC 7748)."""


def hkdf(secret, salt, info):
    """RFC 5869 for one block of output, by hand."""
    extracted = hmac.digest(salt, secret, "sha256")
    return hmac.digest(extracted, info + b"\x01", "sha256")


def u32(value):
    return value.to_bytes(4, "big")


def test_keys_are_derived_with_the_labels_of_the_protocol():
    assert keys.share_key(SECRET, session_id=SID, sender=3, receiver=258) == hkdf(
        SECRET, SID, b"flsa/v1/share-key\0" + u32(3) + u32(258)
    )
    assert keys.pair_mask_key(SECRET, session_id=SID, member=258, peer=3) == hkdf(
        SECRET, SID, b"flsa/v1/pair-mask\0" + u32(3) + u32(258)
    )
    assert keys.self_mask_key(SECRET, session_id=SID, member=258) == hkdf(
        SECRET, SID, b"flsa/v1/self-mask\0" + u32(258)
    )
    assert keys.helper_mask_key(SECRET, context=SID, helper=7) == hkdf(SECRET, SID, b"flsa/v1/helper-mask\0" + u32(7))


def test_session_members_direction_and_use_each_make_another_key():
    sessions = [SID, hashlib.sha256(b"other").digest()]
    members = list(itertools.permutations((0, 1, 2, 256), 2))
    derived = [keys.share_key(SECRET, session_id=sid, sender=u, receiver=v) for sid in sessions for u, v in members]
    derived += [
        keys.pair_mask_key(SECRET, session_id=sid, member=u, peer=v) for sid in sessions for u, v in members if u < v
    ]
    derived += [keys.self_mask_key(SECRET, session_id=sid, member=u) for sid in sessions for u in (0, 1, 2, 256)]
    derived += [keys.helper_mask_key(SECRET, context=sid, helper=u) for sid in sessions for u in (0, 1, 2, 256)]
    assert len(set(derived)) == len(derived) == 2 * (12 + 6 + 4 + 4)
    one, other = (keys.pair_mask_key(SECRET, session_id=SID, member=u, peer=v) for u, v in ((1, 2), (2, 1)))
    assert one == other


def test_a_context_is_of_every_byte_of_the_manifest():
    assert keys.context(b"{}") == hashlib.sha256(b"flsa/v1/ctx\0{}").digest()
    assert keys.context(b"{}") != keys.context(b"{} ")


def test_both_sides_agree_and_a_public_key_is_not_the_private_one():
    privates = {member: os.urandom(32) for member in range(4)}
    publics = {member: keys.agreement_public_key(private) for member, private in privates.items()}
    secrets = {member: keys.agree(private, publics) for member, private in privates.items()}
    for one, other in itertools.combinations(privates, 2):
        assert secrets[one][other] == secrets[other][one]
    assert not set(publics.values()) & set(privates.values())
    assert secrets[0][1] != secrets[0][2]


@pytest.mark.parametrize("point", LOW_ORDER)
@pytest.mark.parametrize("high_bit", [0, 0x80])
def test_points_of_low_order_are_refused(point, high_bit):
    """With such a point everybody shares the same secret; the top bit of the last byte is not looked at."""
    encoded = bytearray.fromhex(point)
    encoded[31] |= high_bit
    with pytest.raises(KeyRefusedError, match="low order"):
        keys.check_agreement_key(bytes(encoded))
    with pytest.raises(KeyRefusedError, match=r"roster.mask_key.9.*low order"):
        keys.agree(os.urandom(32), {9: bytes(encoded)}, field="roster.mask_key")


@pytest.mark.parametrize("size", [0, 31, 33])
def test_what_is_no_key_is_refused_like_one_of_low_order(size):
    with pytest.raises(KeyRefusedError, match="32 bytes"):
        keys.check_agreement_key(bytes([9]) * size)
    assert not keys.is_signed(bytes(size), b"", bytes(64))


def test_signatures_are_of_one_key_and_one_message():
    private = os.urandom(32)
    public = keys.identity_public_key(private)
    signature = keys.sign(private, b"message")
    assert keys.is_signed(public, b"message", signature)
    assert not keys.is_signed(public, b"messagf", signature)
    assert not keys.is_signed(keys.identity_public_key(os.urandom(32)), b"message", signature)
    for wrong in (b"", signature[:-1], signature + b"\0", bytes(64)):
        assert not keys.is_signed(public, b"message", wrong)
    assert keys.fingerprint(public) == hashlib.sha256(public).digest()


def test_what_was_sealed_opens_only_with_its_key_nonce_and_association():
    key, nonce = os.urandom(32), os.urandom(12)
    sealed = keys.seal(key, b"shares", nonce=nonce, associated=b"here")
    assert keys.unseal(key, sealed, nonce=nonce, associated=b"here") == b"shares"
    flipped = bytes([sealed[0] ^ 1]) + sealed[1:]
    for changed in (
        {"key": os.urandom(32)},
        {"ciphertext": flipped},
        {"ciphertext": sealed[:-1]},
        {"ciphertext": b""},
        {"nonce": os.urandom(12)},
        {"associated": b"there"},
    ):
        arguments = {"key": key, "ciphertext": sealed, "nonce": nonce, "associated": b"here"} | changed
        with pytest.raises(ShareError, match="does not open"):
            keys.unseal(arguments.pop("key"), arguments.pop("ciphertext"), **arguments)


def test_ten_thousand_sessions_repeat_no_mask_key():
    """Of two members who meet again and again under one context, with fresh keys each time."""
    seen = set()
    for _ in range(10_000):
        entropy = os.urandom(96)
        one = X25519PrivateKey.from_private_bytes(entropy[:32])
        public = X25519PrivateKey.from_private_bytes(entropy[32:64]).public_key()
        session_id = hashlib.sha256(public.public_bytes_raw()).digest()
        seen.add(keys.pair_mask_key(one.exchange(public), session_id=session_id, member=0, peer=1))
        seen.add(keys.self_mask_key(entropy[64:], session_id=session_id, member=0))
    assert len(seen) == 20_000
