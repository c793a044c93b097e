"""A client's part of a round in helper mode: one message."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from client_sdk.client import AggregatorClient
from client_sdk.errors import UsageError
from client_sdk.masked_round.seating import OnInput
from client_sdk.masked_round.threads import in_thread
from client_sdk.masking.contribution import contribution, helpers_of
from client_sdk.masking.identity import Identity
from client_sdk.masking.terms import Contributed, MaskedRound
from client_sdk.masking.trust import PeerTrust
from client_sdk.masking.update import MaskedUpdate
from client_sdk.session.progress import HelpersTrusted, Progress, UpdateAccepted
from client_sdk.transfer import Body
from fl_protocol.specs.secure_aggregation import HelperSecureAggregation
from fl_protocol.tasks import Task


@dataclass(slots=True, kw_only=True)
class Contributing:
    """Masks an update, seals its seeds to the run's helpers and sends both, once."""

    client: AggregatorClient
    folder: Path
    identity: Identity
    tell: Callable[[Progress], None]
    task: Task
    round_: MaskedRound

    async def run(self, update: MaskedUpdate, *, on_input: OnInput) -> Contributed:
        """Sends the update; `on_input` is told the message's digest before it leaves."""
        made = await in_thread(
            functools.partial(contribution, update, round_=self.round_, identity=self.identity, folder=self.folder)
        )
        try:
            await on_input(made.digest)
            body = Body(made.pieces, made.num_bytes, made.sha256)
            receipt = await self.client.put_contribution(self.task.task_id, body)
        finally:
            made.vector.file.close()
        self.tell(UpdateAccepted(self.task, receipt, receipt.num_bytes))
        return Contributed(receipt)


def check_helpers(task: Task, round_: MaskedRound, trust: PeerTrust) -> HelpersTrusted:
    """Tells whom the client relies on; raises UsageError if it was given keys and none of them is a helper's.

    One honest helper is enough, so that one which the client knows by its own means is.
    """
    masked, helpers = round_.spec.secure_aggregation, helpers_of(round_)
    known = [helper.name for helper in helpers if bytes.fromhex(helper.sealing_key) in trust.helper_keys]
    if trust.helper_keys and not known:
        raise UsageError(
            "none of the run's helpers ("
            + ", ".join(f"{helper.name} {helper.sealing_key}" for helper in helpers)
            + ") has a sealing key that this client was given as --helper-key: nobody whom it knows would keep its mask"
        )
    identity_trust = masked.identity_trust if isinstance(masked, HelperSecureAggregation) else "server"
    return HelpersTrusted(task, tuple(helper.name for helper in helpers), tuple(known), identity_trust)
