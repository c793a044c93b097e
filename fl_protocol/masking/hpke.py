"""Sealing to a public key that is known beforehand: HPKE (RFC 9180), base mode, one message a key.

DHKEM(X25519, HKDF-SHA256), HKDF-SHA256, AES-256-GCM: KEM 0x0020, KDF 0x0001, AEAD 0x0002. The sender's ephemeral key
comes in as an argument, so that a test vector can be made; it must be fresh and random for every message.
"""

import hmac
from typing import Final

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

from fl_protocol.masking import keys
from fl_protocol.masking.errors import ShareError
from fl_protocol.masking.keys import KEY_BYTES, NONCE_BYTES, TAG_BYTES, Secret

OVERHEAD_BYTES: Final = KEY_BYTES + TAG_BYTES
"""How much longer a sealed message is: the ephemeral public key before it, the tag behind it."""

_LABEL: Final = b"HPKE-v1"
_KEM_SUITE: Final = b"KEM" + (0x0020).to_bytes(2, "big")
_SUITE: Final = b"HPKE" + b"".join(number.to_bytes(2, "big") for number in (0x0020, 0x0001, 0x0002))
_BASE_MODE: Final = b"\0"


def seal_to(public_key: bytes, plaintext: Secret, *, info: bytes, associated: bytes, ephemeral: Secret) -> bytes:
    """Encrypts to an X25519 public key; gives the ephemeral public key and the ciphertext behind it.

    `ephemeral` are 32 fresh random bytes. Raises KeyRefusedError for a public key of low order.
    """
    enc = keys.agreement_public_key(ephemeral)
    shared = keys.agree(ephemeral, {0: public_key}, field="sealing_key")[0]
    key, nonce = _schedule(_encapsulated(shared, enc=enc, public_key=public_key), info)
    return enc + keys.seal(key, plaintext, nonce=nonce, associated=associated)


def open_sealed(private_key: Secret, sealed: bytes, *, info: bytes, associated: bytes) -> bytearray:
    """Decrypts what `seal_to` made for this key; raises ShareError or KeyRefusedError if anything of it differs."""
    enc, ciphertext = sealed[:KEY_BYTES], sealed[KEY_BYTES:]
    shared = keys.agree(private_key, {0: enc}, field="sealed")[0]
    public_key = keys.agreement_public_key(private_key)
    key, nonce = _schedule(_encapsulated(shared, enc=enc, public_key=public_key), info)
    if len(ciphertext) < TAG_BYTES:
        raise ShareError("sealed", value=len(sealed), bound=OVERHEAD_BYTES, what=f"{len(sealed)} bytes are too short")
    return keys.unseal(key, ciphertext, nonce=nonce, associated=associated)


def _encapsulated(shared: Secret, *, enc: bytes, public_key: bytes) -> bytes:
    """Gives the KEM's shared secret: ExtractAndExpand of section 4.1."""
    pseudorandom = _extract(b"", b"eae_prk", shared, suite=_KEM_SUITE)
    return _expand(pseudorandom, b"shared_secret", enc + public_key, KEY_BYTES, suite=_KEM_SUITE)


def _schedule(shared: bytes, info: bytes) -> tuple[bytes, bytes]:
    """Gives the key and the nonce of the first message: KeySchedule of section 5.1, without a pre-shared key."""
    context = _BASE_MODE + _extract(b"", b"psk_id_hash", b"") + _extract(b"", b"info_hash", info)
    secret = _extract(shared, b"secret", b"")
    return _expand(secret, b"key", context, KEY_BYTES), _expand(secret, b"base_nonce", context, NONCE_BYTES)


def _extract(salt: bytes, label: bytes, material: Secret, *, suite: bytes = _SUITE) -> bytes:
    # An empty salt is as many zeros as the hash is long (RFC 5869, 2.2).
    return hmac.digest(salt or bytes(KEY_BYTES), _LABEL + suite + label + material, "sha256")


def _expand(pseudorandom: bytes, label: bytes, info: bytes, length: int, *, suite: bytes = _SUITE) -> bytes:
    labelled = length.to_bytes(2, "big") + _LABEL + suite + label + info
    return HKDFExpand(SHA256(), length, labelled).derive(pseudorandom)
