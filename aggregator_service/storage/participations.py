"""How often clients have taken part in a run: by the updates that were accepted, and by sums that nobody counted.

A session that was aborted after members had begun to unmask it has let go of its sum, whatever became of the round.
"""

from typing import Final

import sqlalchemy as sa

from aggregator_service.storage.tables import rounds, session_members, sessions, updates
from aggregator_service.storage.transactions import ReadTx
from fl_protocol.rounds import RoundState
from fl_protocol.sessions import SessionState

_ANSWERED: Final = sa.select(session_members.c.session_id).where(session_members.c.unmask_digest.is_not(None))
_TAKEN_PART: Final = sa.union_all(
    sa.select(
        updates.c.client_id,
        updates.c.round_id,
        sa.case((rounds.c.state != RoundState.ABANDONED.value, 1), else_=0).label("counts"),
    )
    .select_from(updates.join(rounds, rounds.c.round_id == updates.c.round_id))
    .where(updates.c.run_id == sa.bindparam("run_id")),
    sa.select(session_members.c.client_id, sa.literal(""), sa.literal(0))
    .select_from(session_members.join(sessions, sessions.c.session_id == session_members.c.session_id))
    .where(
        sessions.c.run_id == sa.bindparam("run_id"),
        sessions.c.state == SessionState.ABORTED.value,
        session_members.c.input_digest.is_not(None),
        sessions.c.session_id.in_(_ANSWERED),
    ),
).subquery()
_COUNTED: Final = sa.func.sum(_TAKEN_PART.c.counts).label("counted")
_EACH: Final = sa.select(_COUNTED, sa.func.count().label("accepted")).group_by(_TAKEN_PART.c.client_id)
_OF_CLIENT: Final = _EACH.where(_TAKEN_PART.c.client_id == sa.bindparam("client_id"))
_IN_ROUND: Final = sa.func.sum(sa.case((_TAKEN_PART.c.round_id == sa.bindparam("besides"), 1), else_=0))
_CLIENTS: Final = _EACH.having(_IN_ROUND == 0).subquery()
_SPREAD: Final = sa.select(_CLIENTS.c.counted, sa.func.max(_CLIENTS.c.accepted)).group_by(_CLIENTS.c.counted)


def of_client(tx: ReadTx, run_id: str, client_id: str) -> tuple[int, int]:
    """Gives how many updates of a client count in a run, and how many were let out: in abandoned rounds too."""
    row = tx.connection.execute(_OF_CLIENT, {"run_id": run_id, "client_id": client_id}).one_or_none()
    return (0, 0) if row is None else (row.counted, row.accepted)


def spread(tx: ReadTx, run_id: str, *, besides: str | None = None) -> list[tuple[int, int]]:
    """Gives, for each number of updates that count of some client, the most that such a client has let out.

    `besides` leaves out the clients that the round of that id has counted.
    """
    rows = tx.connection.execute(_SPREAD, {"run_id": run_id, "besides": besides or "none"})
    return [(counted, accepted) for counted, accepted in rows]
