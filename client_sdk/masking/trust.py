"""Whom a client masks with: what it believes of its peers' identity keys, by the run's trust and by its own lists."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from client_sdk.errors import UsageError
from client_sdk.masking.files import read_whole
from fl_protocol.specs.secure_aggregation import IdentityTrust

CLIENT_ID: Final = re.compile(r"client_([0-9a-f]{32})", re.ASCII)
KEY_BYTES: Final = 32

_LINE: Final = re.compile(r"(client_[0-9a-f]{32})\s+([0-9a-f]{64})", re.ASCII)
_KEY: Final = re.compile(r"[0-9a-f]{64}", re.ASCII)

Keys = Mapping[bytes, bytes]
"""A client's 16 bytes -> its identity key."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerTrust:
    """What a client brings to judge its peers and its server by; with nothing, the run's own trust decides alone.

    `roster` is a pinned list: nobody else may be in a session of this client's, whatever the run says; with
    `min_known_peers` so many of the other members must be on it, and the rest need not be unless the run says so.
    `authority` is the Ed25519 key of whoever certifies identities, and `server_key` that of the server's manifests;
    where it is not given, the first one that is seen is remembered. `helper_keys` are sealing keys of helpers that this
    client knows: a run in helper mode must have one of them.
    """

    roster: Keys | None = None
    authority: bytes | None = None
    server_key: bytes | None = None
    min_known_peers: int = 0
    require_complete_graph: bool = False
    helper_keys: frozenset[bytes] = frozenset()

    def __post_init__(self) -> None:
        for name in ("authority", "server_key"):
            key = getattr(self, name)
            if key is not None and len(key) != KEY_BYTES:
                raise UsageError(f"{name} has {len(key)} bytes; an Ed25519 public key has {KEY_BYTES}")
        for key in self.helper_keys:
            if len(key) != KEY_BYTES:
                raise UsageError(f"helper_keys has one of {len(key)} bytes; an X25519 public key has {KEY_BYTES}")


def client_id_bytes(client_id: str) -> bytes:
    """Gives the 16 bytes of a client's identifier, by which the protocol knows it."""
    found = CLIENT_ID.fullmatch(client_id)
    if found is None:
        raise UsageError(f"{client_id[:80]!r} is no client's identifier: client_ and 32 hexadecimal digits")
    return bytes.fromhex(found[1])


def load_roster(path: Path) -> dict[bytes, bytes]:
    """Reads a pinned roster: a line `client_... PUBLIC_KEY` for each client, # begins a comment; raises UsageError."""
    content = read_whole(Path(path))
    if content is None:
        raise UsageError(f"there is no roster {path}")
    found: dict[bytes, bytes] = {}
    for number, line in enumerate(content.decode("utf-8", errors="replace").splitlines(), start=1):
        text = line.partition("#")[0].strip()
        if not text:
            continue
        entry = _LINE.fullmatch(text)
        if entry is None:
            raise UsageError(
                f"{path}, line {number}: a client's identifier and its public key of 64 hexadecimal digits belong there"
            )
        client_id = client_id_bytes(entry[1])
        if client_id in found:
            raise UsageError(f"{path}, line {number}: {entry[1]} is there twice")
        found[client_id] = bytes.fromhex(entry[2])
    return found


def parse_key(text: str, *, what: str) -> bytes:
    """Reads a public key of 64 hexadecimal digits; raises UsageError."""
    if _KEY.fullmatch(text.strip().lower()) is None:
        raise UsageError(f"{what} is no public key of 64 hexadecimal digits")
    return bytes.fromhex(text.strip())


def effective_trust(declared: IdentityTrust, trust: PeerTrust) -> IdentityTrust:
    """Says by what this client judges its peers: its own lists where it has them, else what the run declares.

    Raises UsageError where the run declares a list or an authority that this client was not given.
    """
    if trust.roster is not None:
        return "pinned"
    if trust.authority is not None:
        return "ca"
    if declared == "pinned":
        raise UsageError(
            "the run's secure_aggregation.identity_trust is 'pinned': give this client the pinned roster of its peers "
            "(--roster)"
        )
    if declared == "ca":
        raise UsageError(
            "the run's secure_aggregation.identity_trust is 'ca': give this client the public key of the authority "
            "that certifies its peers (--authority)"
        )
    return declared
