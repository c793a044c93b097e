"""A helper's two keys, which it makes itself and which never leave its own folder."""

import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from client_sdk.errors import UsageError
from client_sdk.masking.files import check_private, read_object, write_object
from fl_protocol.identifiers import NAME_PATTERN
from fl_protocol.masking import keys
from fl_protocol.specs.secure_aggregation import MaskHelper as MaskHelperSpec

FILE_NAME: Final = "helper.json"

_HEX32: Final = re.compile(r"[0-9a-f]{64}", re.ASCII)


@dataclass(frozen=True, slots=True)
class HelperKeys:
    """A helper's name and its private keys: X25519 for what clients seal to it, Ed25519 for what it says."""

    name: str
    sealing: bytes = field(repr=False)
    signing: bytes = field(repr=False)

    @classmethod
    def fresh(cls, name: str) -> "HelperKeys":
        """Draws new keys."""
        if re.fullmatch(NAME_PATTERN, name) is None:
            raise UsageError(f"{name[:80]!r} is no name: a letter, then up to 63 letters, digits, dots, - and _")
        return cls(name, os.urandom(keys.KEY_BYTES), os.urandom(keys.KEY_BYTES))

    @property
    def sealing_key(self) -> bytes:
        return keys.agreement_public_key(self.sealing)

    @property
    def signing_key(self) -> bytes:
        return keys.identity_public_key(self.signing)

    @property
    def public(self) -> MaskHelperSpec:
        """What a run's `secure_aggregation.helpers` says of this helper."""
        return MaskHelperSpec(name=self.name, sealing_key=self.sealing_key.hex(), signing_key=self.signing_key.hex())


class HelperKeyStore:
    """The keys in a helper's folder; a folder is one helper's only."""

    def __init__(self, folder: Path) -> None:
        self.path: Final = Path(folder) / FILE_NAME

    def create(self, name: str) -> HelperKeys:
        """Makes fresh keys; raises UsageError if this folder has some, which are never replaced."""
        if read_object(self.path) is not None:
            raise UsageError(f"{self.path} holds a helper's keys already; seeds are sealed to them, so they stay")
        made = HelperKeys.fresh(name)
        write_object(
            self.path,
            {
                "name": made.name,
                "sealing_private_key": made.sealing.hex(),
                "signing_private_key": made.signing.hex(),
                **made.public.model_dump(exclude={"name"}),
            },
        )
        return made

    def load(self) -> HelperKeys:
        """Reads the keys; raises UsageError if there are none, or for a file that is damaged or not private."""
        entry = read_object(self.path)
        if entry is None:
            raise UsageError(f"there are no keys at {self.path}; make them with `fedquorum helper keygen`")
        check_private(self.path)
        texts = [entry.get(name) for name in ("sealing_private_key", "signing_private_key")]
        name = entry.get("name")
        found = [text for text in texts if isinstance(text, str) and _HEX32.fullmatch(text)]
        if len(found) != len(texts) or not isinstance(name, str):
            raise UsageError(f"{self.path} is damaged: it holds no helper's keys; restore it from a copy")
        return HelperKeys(name, *map(bytes.fromhex, found))
