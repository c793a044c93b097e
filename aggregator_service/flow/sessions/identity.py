"""Identity keys: the Ed25519 key by which a client's peers know it, registered once."""

from dataclasses import dataclass

from aggregator_service.domain.sessions.records import IdentityKeyRecord
from aggregator_service.flow.context import Flow
from aggregator_service.storage import clients, identity_keys
from aggregator_service.storage.transactions import WriteTx
from fl_protocol.problems import ProblemError, ProblemType
from fl_protocol.sessions import IdentityKeyRequest


@dataclass(frozen=True, slots=True)
class RegisteredKey:
    """A client's key; `is_new` unless it was registered before."""

    key: IdentityKeyRecord
    is_new: bool


async def register(flow: Flow, request: IdentityKeyRequest, *, client_id: str, caller_id: str) -> RegisteredKey:
    """Registers a client's key; raises `forbidden` for another client's and `state-conflict` for a second one."""
    if client_id != caller_id:
        raise ProblemError(ProblemType.FORBIDDEN, "a client registers its own identity key only")
    public_key = bytes.fromhex(request.public_key)
    certificate = None if request.certificate is None else bytes.fromhex(request.certificate)

    def body(tx: WriteTx) -> RegisteredKey:
        earlier = identity_keys.get(tx, client_id)
        if earlier is None:
            key = IdentityKeyRecord(client_id, public_key, certificate, tx.now())
            identity_keys.insert(tx, key)
            return RegisteredKey(key, is_new=True)
        if (earlier.public_key, earlier.certificate) != (public_key, certificate):
            raise ProblemError(
                ProblemType.STATE_CONFLICT,
                "another identity key, or certificate of it, is registered for this client; enrol a new client for a "
                "new one",
            )
        return RegisteredKey(earlier, is_new=False)

    return await flow.transactions.write("register_identity_key", body)


async def get_key(flow: Flow, client_id: str) -> IdentityKeyRecord:
    """Gives a client's key; raises `not-found`."""
    found = await flow.transactions.read_one("get_identity_key", lambda tx: identity_keys.get(tx, client_id))
    if found is None:
        known = await flow.transactions.read_one("get_client", lambda tx: clients.get(tx, client_id))
        missing = f"there is no client {client_id!r}" if known is None else "the client has registered no identity key"
        raise ProblemError(ProblemType.NOT_FOUND, missing)
    return found
