"""Identifiers of the resources on the wire: opaque strings that start with a letter and are never reused."""

import re
from typing import Final, NewType

RunId = NewType("RunId", str)
RoundId = NewType("RoundId", str)
TaskId = NewType("TaskId", str)
UpdateId = NewType("UpdateId", str)
ClientId = NewType("ClientId", str)

NAME_PATTERN: Final = r"^[A-Za-z][A-Za-z0-9._-]{0,63}$"
"""Names people give to runs and clients; a name is never used as an identifier or a path."""

DIGEST_PATTERN: Final = r"^sha256:[0-9a-f]{64}$"

_IDENTIFIER: Final = re.compile(r"[a-z]{2,8}_[0-9a-f]{32}", re.ASCII)


def is_identifier(text: str) -> bool:
    """Tells whether a string from outside has the form of an identifier made here."""
    return _IDENTIFIER.fullmatch(text) is not None


def identifier(prefix: str, entropy: bytes) -> str:
    """Makes an identifier such as `run_0f3c...` from 16 random bytes."""
    if len(entropy) != 16:
        raise ValueError(f"an identifier takes 16 bytes of entropy, got {len(entropy)}")
    return f"{prefix}_{entropy.hex()}"
