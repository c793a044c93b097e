"""What a client knows of a session's members: by its own lists, by a certificate, or because it has met them."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from client_sdk.errors import UsageError
from client_sdk.masking.files import read_object, write_object
from client_sdk.masking.trust import Keys, PeerTrust, client_id_bytes, effective_trust
from fl_protocol.masking.certificates import is_certified
from fl_protocol.masking.errors import MaskingError
from fl_protocol.masking.keys import SIGNATURE_BYTES
from fl_protocol.masking.messages import Roster, parse_roster
from fl_protocol.specs.secure_aggregation import IdentityTrust

PEERS_FILE: Final = "peers.json"


@dataclass(frozen=True, slots=True)
class KnownPeers:
    """What is known of a session's members before its roster is judged."""

    keys: Keys = field(default_factory=dict)
    must_know_all: bool = False


class PeerStore:
    """The identity keys of peers that this client has met, in its state folder."""

    def __init__(self, state_dir: Path) -> None:
        self._path: Final = Path(state_dir) / PEERS_FILE

    def load(self) -> dict[bytes, bytes]:
        """Gives the keys by client; raises UsageError for a damaged file, which must not be taken for an empty one."""
        entries = read_object(self._path) or {}
        try:
            return {client_id_bytes(client): bytes.fromhex(key) for client, key in entries.items()}
        except (TypeError, ValueError):
            raise UsageError(
                f"{self._path} is damaged: it holds the keys of the peers that this client has met; restore it"
            ) from None

    def remember(self, roster: Roster) -> None:
        """Adds the members of a session that this client has accepted."""
        known = self.load()
        found = known | {member.client_id: member.identity_key for member in roster.members}
        if found != known:
            write_object(self._path, {f"client_{client.hex()}": key.hex() for client, key in found.items()})


def known_peers(
    declared: IdentityTrust, trust: PeerTrust, *, met: Keys, roster: bytes, certificates: bytes
) -> KnownPeers:
    """Gives what this client knows of the members of a roster that it has not judged yet."""
    must_know_all = trust.min_known_peers == 0 or declared in ("pinned", "ca")
    match effective_trust(declared, trust):
        case "server":
            return KnownPeers()
        case "tofu":
            return KnownPeers(met)
        case "pinned":
            return KnownPeers(trust.roster or {}, must_know_all)
        case "ca":
            return KnownPeers(_certified(trust.authority or b"", roster, certificates), must_know_all)


def _certified(authority: bytes, roster: bytes, certificates: bytes) -> dict[bytes, bytes]:
    try:
        members = parse_roster(roster).members
    except MaskingError:
        # Whatever judges the roster next says what is wrong with it.
        return {}
    signed = (certificates[at : at + SIGNATURE_BYTES] for at in range(0, len(certificates), SIGNATURE_BYTES))
    return {
        member.client_id: member.identity_key
        for member, certificate in zip(members, signed, strict=False)
        if is_certified(authority, certificate, client_id=member.client_id, identity_key=member.identity_key)
    }
