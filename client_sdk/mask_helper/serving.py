"""A helper's loop: it asks the server what waits for it, judges, and answers; it may sit behind any proxy."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, TypeVar

import anyio
import anyio.to_thread

from client_sdk.client import AggregatorClient
from client_sdk.config import Limits
from client_sdk.errors import ServerError, TransportError, UntrustedAnswerError
from client_sdk.mask_helper.helper import MaskHelper
from client_sdk.mask_helper.judgement import HelperRefusalError
from client_sdk.transfer import Body
from fl_protocol.helper_mode import MaskRequestEntry, MaskSumState, Verdict

WAIT_SECONDS: Final = 25.0
MIN_POLL_SECONDS: Final = 0.05
PAUSE_SECONDS: Final = 1.0
"""How long a helper rests after something went wrong."""
MAX_REASON: Final = 500
UNWELCOME: Final = frozenset({401, 403})
"""What the server answers to a token that does not work any more; nothing else ends a helper."""

HELPER_LIMITS: Final = Limits(max_json_bytes=64 << 20, wait_seconds=WAIT_SECONDS)
"""A request names up to 4096 clients with their sealed seeds, behind the round's manifest."""

Tell = Callable[[str], None]
Result = TypeVar("Result")


async def serve(
    client: AggregatorClient, helper: MaskHelper, *, tell: Tell, wait_seconds: float = WAIT_SECONDS
) -> None:
    """Answers what waits for this helper until it is cancelled; `tell` is given a line for each thing it did.

    What the server or the network does wrong is told and tried again. It ends with the ServerError of a token that does
    not work any more, and with UsageError for a log that cannot be written.
    """
    while True:
        began = anyio.current_time()
        try:
            waiting = (await client.list_mask_requests(wait_seconds=wait_seconds)).items
            went_well = all([await _Turn(client, helper, tell).take(entry) for entry in waiting])
        except (TransportError, UntrustedAnswerError, ServerError) as error:
            if isinstance(error, ServerError) and error.status in UNWELCOME:
                raise
            tell(str(error))
            went_well = False
        rest = MIN_POLL_SECONDS - (anyio.current_time() - began)
        await client.sleep(max(rest, 0.0) if went_well else PAUSE_SECONDS)


@dataclass(frozen=True, slots=True)
class _Turn:
    """One look at one request."""

    client: AggregatorClient
    helper: MaskHelper
    tell: Tell

    async def take(self, entry: MaskRequestEntry) -> bool:
        """Judges a request and does what comes of it; False if it is to be looked at again after a rest."""
        try:
            return await self._judge(entry)
        except ServerError as error:
            self.tell(f"{_named(entry)}: {error.detail}")
            if error.status in UNWELCOME:
                raise
            return False

    async def _judge(self, entry: MaskRequestEntry) -> bool:
        data = await self.client.get_mask_request(entry.request_id)
        try:
            judged = await _in_thread(functools.partial(self.helper.judge, data, entry))
        except HelperRefusalError as error:
            return await self._say(entry, Verdict(reason=str(error)[:MAX_REASON]), f"refused: {error}")
        if judged.refused:
            names = "; ".join(f"{client}: {reason}" for client, reason in judged.refused.items())
            return await self._say(entry, Verdict(refused=judged.refused), f"refused {len(judged.refused)}: {names}")
        if entry.phase is MaskSumState.CHECKING:
            return await self._say(entry, Verdict(), f"{entry.num_members} contributions are in order")
        answer = await _in_thread(functools.partial(self.helper.release, judged))
        try:
            await self.client.put_mask_sum(entry.request_id, Body(answer.pieces, answer.num_bytes, answer.sha256))
        finally:
            answer.file.close()
        self.tell(f"{_named(entry)}: told the sum of {entry.num_members} masks")
        return True

    async def _say(self, entry: MaskRequestEntry, verdict: Verdict, line: str) -> bool:
        await self.client.put_verdict(entry.request_id, verdict)
        self.tell(f"{_named(entry)}: {line}")
        return not (verdict.refused or verdict.reason)


def _named(entry: MaskRequestEntry) -> str:
    return f"{entry.run_id} round {entry.round}" + (f" attempt {entry.attempt}" if entry.attempt > 1 else "")


async def _in_thread(call: Callable[[], Result]) -> Result:
    return await anyio.to_thread.run_sync(call, abandon_on_cancel=True)
