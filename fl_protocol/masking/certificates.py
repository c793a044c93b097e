"""Certificates: an authority's Ed25519 signature that an identity key is a client's."""

from fl_protocol.masking import keys
from fl_protocol.masking.keys import Secret


def certificate_message(client_id: bytes, identity_key: bytes) -> bytes:
    """Gives what a certificate signs: `flsa/v1/certificate` and a zero byte, client_id(16), identity_key(32)."""
    return keys.tag("certificate") + client_id + identity_key


def certify(authority_key: Secret, *, client_id: bytes, identity_key: bytes) -> bytes:
    """Signs a certificate with an authority's private key of 32 bytes."""
    return keys.sign(authority_key, certificate_message(client_id, identity_key))


def is_certified(authority: bytes, certificate: bytes, *, client_id: bytes, identity_key: bytes) -> bool:
    """Tells whether a certificate is that authority's, for this client and this key."""
    return keys.is_signed(authority, certificate_message(client_id, identity_key), certificate)
