"""How often clients have taken part in a run, counted from the updates that were accepted of them."""

from typing import Final

import sqlalchemy as sa

from aggregator_service.storage.tables import rounds, updates
from aggregator_service.storage.transactions import ReadTx
from fl_protocol.rounds import RoundState

_COUNTED: Final = sa.func.count().filter(rounds.c.state != RoundState.ABANDONED.value).label("counted")
_EACH: Final = (
    sa.select(_COUNTED, sa.func.count().label("accepted"))
    .select_from(updates.join(rounds, rounds.c.round_id == updates.c.round_id))
    .where(updates.c.run_id == sa.bindparam("run_id"))
    .group_by(updates.c.client_id)
)
_OF_CLIENT: Final = _EACH.where(updates.c.client_id == sa.bindparam("client_id"))
_CLIENTS: Final = _EACH.subquery()
_SPREAD: Final = sa.select(_CLIENTS.c.counted, sa.func.max(_CLIENTS.c.accepted)).group_by(_CLIENTS.c.counted)


def of_client(tx: ReadTx, run_id: str, client_id: str) -> tuple[int, int]:
    """Gives how many updates of a client count in a run, and how many were accepted: those of abandoned rounds too."""
    row = tx.connection.execute(_OF_CLIENT, {"run_id": run_id, "client_id": client_id}).one_or_none()
    return (0, 0) if row is None else (row.counted, row.accepted)


def spread(tx: ReadTx, run_id: str) -> list[tuple[int, int]]:
    """Gives, for each number of updates that count of some client, the most that were accepted of such a client."""
    return [(counted, accepted) for counted, accepted in tx.connection.execute(_SPREAD, {"run_id": run_id})]
