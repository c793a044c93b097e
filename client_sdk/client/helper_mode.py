"""The client's methods for helper mode, one for each route."""

import secrets

from client_sdk.client.connection import Connection
from client_sdk.endpoints import helper_mode
from client_sdk.transfer import Body
from fl_protocol.helper_mode import (
    HelperToken,
    HelperTokenRequest,
    MaskedRoundReport,
    MaskRequestEntry,
    MaskRequestList,
    Verdict,
)
from fl_protocol.tasks import Receipt


class HelperModeRoutes:
    """What AggregatorClient has for helper mode; requests to helpers are bytes that `fl_protocol.masking` reads."""

    _connection: Connection

    async def put_contribution(self, task_id: str, body: Body) -> Receipt:
        """Sends a masked vector with its sealed seeds, in pieces."""
        return await self._connection.upload(helper_mode.put_contribution(task_id), body)

    async def get_mask_sum(self, run_id: str, number: int) -> MaskedRoundReport:
        """Tells what a closed round was about, and what its helpers have done."""
        return await self._connection.call(helper_mode.get_mask_sum(run_id, number))

    async def create_helper_token(self, request: HelperTokenRequest) -> HelperToken:
        key = secrets.token_hex(16)
        return await self._connection.call(helper_mode.create_helper_token(request, idempotency_key=key))

    async def revoke_helper(self, signing_key: str) -> None:
        await self._connection.call(helper_mode.revoke_helper(signing_key))

    async def list_mask_requests(self, *, wait_seconds: float = 0.0) -> MaskRequestList:
        """Lists what waits for this helper; the server holds the answer until something does."""
        return await self._connection.call(helper_mode.list_mask_requests(wait_seconds=wait_seconds))

    async def get_mask_request(self, request_id: str) -> bytes:
        return await self._connection.call(helper_mode.get_mask_request(request_id))

    async def put_verdict(self, request_id: str, verdict: Verdict) -> None:
        await self._connection.call(helper_mode.put_verdict(request_id, verdict))

    async def put_mask_sum(self, request_id: str, body: Body) -> MaskRequestEntry:
        """Sends a signed sum of masks in pieces."""
        return await self._connection.upload(helper_mode.put_mask_sum(request_id), body)
