"""A client's identity: an Ed25519 key that it makes itself and that never leaves its own folder."""

import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from client_sdk.errors import UsageError
from client_sdk.masking.files import check_private, read_object, write_object
from client_sdk.masking.trust import CLIENT_ID, client_id_bytes
from fl_protocol.masking import keys

FILE_NAME: Final = "identity.json"

_HEX32: Final = re.compile(r"[0-9a-f]{64}", re.ASCII)
_HEX64: Final = re.compile(r"[0-9a-f]{128}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Identity:
    """A client's identifier and key; `certificate` is an authority's signature of both, if it has one."""

    client_id: str
    private_key: bytes = field(repr=False)
    certificate: bytes | None = None

    @property
    def public_key(self) -> bytes:
        return keys.identity_public_key(self.private_key)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the public key, for people to compare by telephone."""
        return keys.fingerprint(self.public_key).hex()

    @property
    def roster_line(self) -> str:
        """This client's line in a pinned roster."""
        return f"{self.client_id} {self.public_key.hex()}"

    def sign(self, message: bytes) -> bytes:
        return keys.sign(self.private_key, message)


class IdentityStore:
    """The identity in one client's state folder; a folder is one client's only."""

    def __init__(self, state_dir: Path) -> None:
        self.path: Final = Path(state_dir) / FILE_NAME

    def load(self) -> Identity | None:
        """Reads the identity, None if there is none; raises UsageError for a file that is damaged or not private."""
        entry = read_object(self.path)
        if entry is None:
            return None
        check_private(self.path)
        certificate = entry.get("certificate")
        return Identity(
            self._text(entry.get("client_id"), CLIENT_ID),
            bytes.fromhex(self._text(entry.get("private_key"), _HEX32)),
            None if certificate is None else bytes.fromhex(self._text(certificate, _HEX64)),
        )

    def create(self, client_id: str) -> Identity:
        """Makes a fresh key; raises UsageError if this folder has an identity, which is never replaced."""
        client_id_bytes(client_id)
        if self.load() is not None:
            raise UsageError(f"{self.path} holds an identity already; a client keeps its own for good")
        identity = Identity(client_id, os.urandom(keys.KEY_BYTES))
        self._keep(identity)
        return identity

    def load_or_create(self, client_id: str | None) -> Identity:
        """Reads the identity or makes it; raises UsageError if it is another client's or nobody says whose it is."""
        found = self.load()
        if found is None and client_id is None:
            raise UsageError(
                "the run is masked, and this client's folder holds no identity yet: give the client's identifier as "
                "client_id (--client-id), or make the identity with `fedquorum identity create`"
            )
        if found is None:
            return self.create(client_id or "")
        if client_id not in (None, found.client_id):
            raise UsageError(f"{self.path} is the identity of {found.client_id}, not of {client_id}")
        return found

    def add_certificate(self, certificate: bytes) -> Identity:
        """Adds an authority's certificate; raises UsageError if there is no identity or another certificate."""
        found = self.load()
        if found is None:
            raise UsageError(f"there is no identity at {self.path}")
        if len(certificate) != keys.SIGNATURE_BYTES:
            raise UsageError(f"a certificate has {keys.SIGNATURE_BYTES} bytes, not {len(certificate)}")
        if found.certificate not in (None, certificate):
            raise UsageError(f"{self.path} has another certificate already")
        identity = Identity(found.client_id, found.private_key, certificate)
        self._keep(identity)
        return identity

    def _keep(self, identity: Identity) -> None:
        certificate = None if identity.certificate is None else identity.certificate.hex()
        write_object(
            self.path,
            {
                "client_id": identity.client_id,
                "private_key": identity.private_key.hex(),
                "public_key": identity.public_key.hex(),
                "certificate": certificate,
            },
        )

    def _text(self, value: object, pattern: re.Pattern[str]) -> str:
        if isinstance(value, str) and pattern.fullmatch(value):
            return value
        raise UsageError(f"{self.path} is damaged: it is no identity; restore it from a copy, or enrol as a new client")
