"""The client's methods for masked rounds, one for each route."""

from client_sdk.client.connection import Connection
from client_sdk.endpoints import masked
from client_sdk.endpoints.masked import SignedManifest
from client_sdk.transfer import Body
from fl_protocol.manifests import ManifestEntry, ManifestKey
from fl_protocol.sessions import IdentityKey, IdentityKeyRequest, Seat, Session, SessionState, Transcript


class MaskedRoutes:
    """What AggregatorClient has for masked rounds; messages of a session are bytes that `fl_protocol.masking` reads."""

    _connection: Connection

    async def register_identity_key(self, client_id: str, request: IdentityKeyRequest) -> IdentityKey:
        """Registers this client's identity key; raises StateConflictError if another one is there."""
        return await self._connection.call(masked.put_identity_key(client_id, request))

    async def get_identity_key(self, client_id: str) -> IdentityKey:
        return await self._connection.call(masked.get_identity_key(client_id))

    async def get_manifest_key(self) -> ManifestKey:
        return await self._connection.call(masked.get_manifest_key())

    async def list_manifests(self, run_id: str) -> list[ManifestEntry]:
        return await self._connection.gather(lambda cursor: masked.list_manifests(run_id, cursor=cursor))

    async def get_manifest(self, run_id: str, sequence: int) -> SignedManifest:
        """Gives a manifest's exact bytes and their signature, which nobody has checked yet."""
        return await self._connection.call(masked.get_manifest(run_id, sequence))

    async def put_seat(self, task_id: str, advertise: bytes) -> Seat:
        return await self._connection.call(masked.put_seat(task_id, advertise))

    async def get_seat(self, task_id: str, *, wait_seconds: float = 0.0) -> Seat:
        """Tells where a task's seat stands; the server holds the answer while it waits for a session."""
        return await self._connection.call(masked.get_seat(task_id, wait_seconds=wait_seconds))

    async def get_session(
        self, session_id: str, *, state: SessionState | None = None, wait_seconds: float = 0.0
    ) -> Session:
        """Tells where a session stands; the server holds the answer while it is in `state`."""
        return await self._connection.call(masked.get_session(session_id, state=state, wait_seconds=wait_seconds))

    async def get_roster(self, session_id: str) -> bytes:
        return await self._connection.call(masked.get_roster(session_id))

    async def get_certificates(self, session_id: str) -> bytes:
        return await self._connection.call(masked.get_certificates(session_id))

    async def put_shares(self, session_id: str, index: int, shares: bytes) -> Session:
        return await self._connection.call(masked.put_shares(session_id, index, shares))

    async def get_inbox(self, session_id: str, index: int) -> bytes:
        return await self._connection.call(masked.get_inbox(session_id, index))

    async def put_input(self, session_id: str, index: int, body: Body) -> Session:
        """Sends a masked vector in pieces."""
        return await self._connection.upload(masked.put_input(session_id, index), body)

    async def get_survivors(self, session_id: str) -> bytes:
        return await self._connection.call(masked.get_survivors(session_id))

    async def put_signature(self, session_id: str, index: int, signature: bytes) -> Session:
        return await self._connection.call(masked.put_signature(session_id, index, signature))

    async def get_signatures(self, session_id: str) -> bytes:
        return await self._connection.call(masked.get_signatures(session_id))

    async def put_unmask(self, session_id: str, index: int, shares: bytes) -> Session:
        return await self._connection.call(masked.put_unmask(session_id, index, shares))

    async def get_transcript(self, session_id: str) -> Transcript:
        return await self._connection.call(masked.get_transcript(session_id))

    async def list_sessions(self, run_id: str, number: int) -> list[Session]:
        return await self._connection.gather(lambda cursor: masked.list_sessions(run_id, number, cursor=cursor))
