"""An authority that vouches for clients' identities with its own Ed25519 key."""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Self

from client_sdk.errors import UsageError
from client_sdk.masking.files import check_private, read_object, write_object
from client_sdk.masking.trust import client_id_bytes
from fl_protocol.masking import keys
from fl_protocol.masking.certificates import certify

FILE_NAME: Final = "authority.json"


@dataclass(frozen=True, slots=True)
class Authority:
    """Whoever has this key decides which identity is whose for all who trust it."""

    private_key: bytes = field(repr=False)

    @classmethod
    def load_or_create(cls, folder: Path) -> Self:
        """Reads the key in a folder, or makes it; raises UsageError for a file that is damaged or not private."""
        path = Path(folder) / FILE_NAME
        entry = read_object(path)
        if entry is None:
            made = cls(os.urandom(keys.KEY_BYTES))
            write_object(path, {"private_key": made.private_key.hex(), "public_key": made.public_key.hex()})
            return made
        check_private(path)
        try:
            found = cls(bytes.fromhex(entry["private_key"]))
            found.public_key  # noqa: B018 - a key of another length has none
        except (KeyError, TypeError, ValueError):
            raise UsageError(f"{path} is damaged: it is no authority's key; restore it from a copy") from None
        return found

    @property
    def public_key(self) -> bytes:
        return keys.identity_public_key(self.private_key)

    def certify(self, client_id: str, identity_key: bytes) -> bytes:
        """Signs that an identity key is a client's."""
        return certify(self.private_key, client_id=client_id_bytes(client_id), identity_key=identity_key)
