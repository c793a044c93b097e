"""Keys and signatures of a session: Ed25519, X25519, HKDF-SHA256 and AES-256-GCM, all over raw bytes.

Every derived key and every signature depends on the session or on the round's context, and each use has its own label:
nothing of one session, direction or purpose is of use in another (privacy.md 3.1, 3.6, 3.7).
"""

import hashlib
import struct
from collections.abc import Mapping
from typing import Final

from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from fl_protocol.masking.errors import KeyRefusedError, ShareError

PROTOCOL: Final = "flsa/v1"
KEY_BYTES: Final = 32
SIGNATURE_BYTES: Final = 64
NONCE_BYTES: Final = 12
TAG_BYTES: Final = 16
DIGEST_BYTES: Final = 32

Secret = bytes | bytearray
"""Bytes that nobody else may know; a bytearray can be overwritten when it is done with."""

_ANY_PRIVATE_KEY: Final = X25519PrivateKey.from_private_bytes(bytes(range(32)))
"""Whose secret is nobody's business: it only tells points of low order from others."""


def tag(name: str) -> bytes:
    """Gives the bytes that set one use of a hash, key or signature apart from all others."""
    return f"{PROTOCOL}/{name}\0".encode("ascii")


def u32(value: int) -> bytes:
    """Gives a member's index or a count as 4 bytes, big-endian."""
    return struct.pack(">I", value)


def tagged_hash(name: str, *parts: bytes) -> bytes:
    """Gives SHA-256 of a tag and what follows it."""
    return hashlib.sha256(b"".join((tag(name), *parts))).digest()


def context(manifest: bytes) -> bytes:
    """Gives a round's context: what every signature and key depends on, of the exact bytes of its manifest."""
    return tagged_hash("ctx", manifest)


def fingerprint(identity_key: bytes) -> bytes:
    """Gives SHA-256 of an identity's public key."""
    return hashlib.sha256(identity_key).digest()


def identity_public_key(private_key: Secret) -> bytes:
    """Gives the Ed25519 public key of a private key of 32 random bytes."""
    return Ed25519PrivateKey.from_private_bytes(private_key).public_key().public_bytes_raw()


def sign(private_key: Secret, message: bytes) -> bytes:
    """Signs a message, which starts with its tag."""
    return Ed25519PrivateKey.from_private_bytes(private_key).sign(message)


def is_signed(public_key: bytes, message: bytes, signature: bytes) -> bool:
    """Tells whether a signature of a message is that key's; a key or signature of the wrong form signs nothing."""
    try:
        Ed25519PublicKey.from_public_bytes(public_key).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True


def agreement_public_key(private_key: Secret) -> bytes:
    """Gives the X25519 public key of a private key of 32 random bytes."""
    return X25519PrivateKey.from_private_bytes(private_key).public_key().public_bytes_raw()


def agree(private_key: Secret, public_keys: Mapping[int, bytes], *, field: str = "public_key") -> dict[int, bytearray]:
    """Gives the secrets that an X25519 private key shares with members' public ones; keys are derived of them.

    Raises KeyRefusedError for a point of low order, with which everybody shares the same secret.
    """
    private = X25519PrivateKey.from_private_bytes(private_key)
    return {
        member: bytearray(_agree(private, public_key, field=f"{field}.{member}"))
        for member, public_key in public_keys.items()
    }


def check_agreement_key(public_key: bytes, *, field: str = "public_key") -> None:
    """Raises KeyRefusedError for an X25519 public key that nobody may use: of low order, or not of 32 bytes."""
    _agree(_ANY_PRIVATE_KEY, public_key, field=field)


def share_key(secret: Secret, *, session_id: bytes, sender: int, receiver: int) -> bytes:
    """Derives the key that encrypts the sender's shares to the receiver, of the secret of their share keys."""
    return _derive(secret, salt=session_id, info=tag("share-key") + u32(sender) + u32(receiver))


def pair_mask_key(secret: Secret, *, session_id: bytes, member: int, peer: int) -> bytes:
    """Derives the key of the mask that two members add and subtract, of the secret of their mask keys."""
    return _derive(secret, salt=session_id, info=tag("pair-mask") + u32(min(member, peer)) + u32(max(member, peer)))


def self_mask_key(seed: Secret, *, session_id: bytes, member: int) -> bytes:
    """Derives the key of a member's own mask of its seed of 32 random bytes."""
    return _derive(seed, salt=session_id, info=tag("self-mask") + u32(member))


def helper_mask_key(seed: Secret, *, context: bytes, helper: int) -> bytes:
    """Derives the key of the mask whose seed a helper is told."""
    return _derive(seed, salt=context, info=tag("helper-mask") + u32(helper))


def seal(key: Secret, plaintext: Secret, *, nonce: bytes, associated: bytes) -> bytes:
    """Encrypts and authenticates with AES-256-GCM; the nonce is 12 fresh random bytes."""
    return AESGCM(key).encrypt(nonce, plaintext, associated)


def unseal(key: Secret, ciphertext: bytes, *, nonce: bytes, associated: bytes) -> bytearray:
    """Decrypts what `seal` made; raises ShareError if anything of it, its key or its association differs."""
    try:
        return bytearray(AESGCM(key).decrypt(nonce, ciphertext, associated))
    except (InvalidTag, ValueError):
        raise ShareError(
            "shares",
            value=len(ciphertext),
            bound=None,
            what="a sealed record does not open: it was changed, or made for another session or member",
        ) from None


def _agree(private_key: X25519PrivateKey, public_key: bytes, *, field: str) -> bytes:
    try:
        return private_key.exchange(X25519PublicKey.from_public_bytes(public_key))
    except ValueError:
        raise KeyRefusedError(
            field,
            value=public_key.hex(),
            bound=KEY_BYTES,
            what=f"{public_key.hex()} is no X25519 public key of {KEY_BYTES} bytes, or a point of low order",
        ) from None


def _derive(secret: Secret, *, salt: bytes, info: bytes) -> bytes:
    return HKDF(algorithm=SHA256(), length=KEY_BYTES, salt=salt, info=info).derive(secret)
