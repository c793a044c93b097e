"""A client's masked rounds over the network: the manifest before it trains, a session afterwards."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from client_sdk.client import AggregatorClient
from client_sdk.errors import NotFoundError, SessionRefusedError
from client_sdk.masked_round.contributing import Contributing, check_helpers
from client_sdk.masked_round.review import Reviewer
from client_sdk.masked_round.seating import OnInput, OnSum, Seating
from client_sdk.masked_round.threads import in_thread
from client_sdk.masking.answered import AnsweredRounds
from client_sdk.masking.identity import Identity
from client_sdk.masking.terms import Contributed, Counted, Failed, MaskedRound
from client_sdk.masking.trust import PeerTrust
from client_sdk.masking.update import MaskedUpdate
from client_sdk.session.progress import Progress, SessionFailed
from fl_protocol.runs import RunSpec
from fl_protocol.sessions import SeatState
from fl_protocol.specs.secure_aggregation import HelperSecureAggregation
from fl_protocol.tasks import Task

MAX_FRESH_SESSIONS: Final = 3
"""How often an update is enrolled again, with fresh keys, after a session that failed."""
JITTER_SECONDS: Final = 5.0


@dataclass(slots=True, kw_only=True)
class MaskedRounds:
    """One client's masked rounds of one run; what it must keep is in `state_dir`, which is this client's alone."""

    client: AggregatorClient
    run_id: str
    state_dir: Path
    folder: Path
    client_id: str | None
    trust: PeerTrust
    tell: Callable[[Progress], None]
    identity: Identity | None = None

    async def review(self, task: Task, spec: RunSpec) -> MaskedRound:
        """Checks who this client is and what its manifest says, before anything is trained (rule C1).

        Raises ManifestError, or UsageError for what this client was not given.
        """
        reviewer = Reviewer(self.client, self.run_id, self.state_dir, self.trust)
        identity = await reviewer.identity(self.client_id)
        round_ = await reviewer.manifest(task, spec)
        if isinstance(spec.secure_aggregation, HelperSecureAggregation):
            self.tell(check_helpers(task, round_, self.trust))
        else:
            reviewer.check_certified(identity, round_)
        if self.identity is None:
            await reviewer.register(identity)
            self.identity = identity
        return round_

    async def is_spent(self, task: Task) -> bool:
        """Tells whether this client has answered for the task's round before, so that it is done with it (rule C8)."""
        return await in_thread(functools.partial(AnsweredRounds(self.state_dir, self.run_id).is_spent, task))

    async def is_under_way(self, task: Task) -> bool:
        """Tells whether the session in which this client answered may still count it."""
        try:
            seat = await self.client.get_seat(task.task_id)
        except NotFoundError:
            return False
        return seat.state is SeatState.SEATED

    async def aggregate(
        self, task: Task, round_: MaskedRound, *, update: MaskedUpdate, on_input: OnInput, on_sum: OnSum
    ) -> Counted | Contributed | Failed:
        """Takes an update through a session, and through a fresh one where that failed before this client answered.

        In helper mode it is sent once and for all.

        `on_input` is told the input's digest before it is sent, `on_sum` of how many clients the sum is once that is
        known. Raises SessionRefusedError for what the server may not
        ask for, TranscriptError where the sum is not of what was sent.
        """
        if isinstance(round_.spec.secure_aggregation, HelperSecureAggregation):
            return await self._contribute(task, round_, update=update, on_input=on_input)
        left = MAX_FRESH_SESSIONS
        while True:
            if await self.is_spent(task):
                return Failed(f"this client has answered for round {task.round} before", may_retry=False)
            ended = await self._once(task, round_, update=update, on_input=on_input, on_sum=on_sum, is_last=not left)
            if isinstance(ended, Counted) or not ended.may_retry:
                return ended
            pause = self.client.jitter(JITTER_SECONDS) if left else None
            self.tell(SessionFailed(task, ended.reason, pause))
            if pause is None:
                return ended
            await self.client.sleep(pause)
            left -= 1

    async def _contribute(
        self, task: Task, round_: MaskedRound, *, update: MaskedUpdate, on_input: OnInput
    ) -> Contributed:
        if self.identity is None:
            raise RuntimeError("a masked round is reviewed before it is aggregated")
        contributing = Contributing(
            client=self.client,
            folder=self.folder,
            identity=self.identity,
            tell=self.tell,
            task=task,
            round_=round_,
        )
        return await contributing.run(update, on_input=on_input)

    async def _once(
        self, task: Task, round_: MaskedRound, *, update: MaskedUpdate, on_input: OnInput, on_sum: OnSum, is_last: bool
    ) -> Counted | Failed:
        if self.identity is None:
            raise RuntimeError("a masked round is reviewed before it is aggregated")
        seating = Seating(
            client=self.client,
            run_id=self.run_id,
            state_dir=self.state_dir,
            folder=self.folder,
            identity=self.identity,
            trust=self.trust,
            tell=self.tell,
            task=task,
            round_=round_,
            update=update,
            on_input=on_input,
            on_sum=on_sum,
        )
        try:
            return await seating.run()
        except SessionRefusedError as error:
            # Shares that do not open may be a peer's doing; every other refusal is the server's.
            if error.rule != "C4" or is_last:
                raise
            return Failed(str(error), may_retry=True)
