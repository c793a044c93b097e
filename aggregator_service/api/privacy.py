"""What a run promises about its clients' data, and what it has cost."""

from fastapi import APIRouter

from aggregator_service.api.bodies import BoundedRoute
from aggregator_service.api.dependencies import (
    DEFAULT_LIMIT,
    Caller,
    Cursor,
    FlowDependency,
    Identifier,
    Limit,
    allow,
    decode_cursor,
    encode_cursor,
)
from aggregator_service.api.problems import describe
from aggregator_service.api.rendering import Page, render_ledger_entry, render_privacy
from aggregator_service.domain.records import TokenKind
from aggregator_service.flow import budget
from fl_protocol import routes
from fl_protocol.privacy_reports import LedgerEntry, PrivacyReport
from fl_protocol.problems import ProblemType

router = APIRouter(tags=["privacy"], route_class=BoundedRoute)

_FOUND = describe(ProblemType.NOT_FOUND)


@router.get(routes.RUN_PRIVACY, summary="Look at a run's privacy", responses=_FOUND)
@allow(TokenKind.OPERATOR, TokenKind.CLIENT)
async def get_privacy(flow: FlowDependency, _caller: Caller, run_id: Identifier) -> PrivacyReport:
    """Tells what the run promises, to whom, who must be trusted for it, and how much of its budget is spent."""
    return render_privacy(await budget.standing(flow, run_id))


@router.get(routes.RUN_LEDGER, summary="List a run's privacy ledger", responses=_FOUND)
@allow(TokenKind.OPERATOR, TokenKind.CLIENT)
async def list_ledger(
    flow: FlowDependency, _caller: Caller, run_id: Identifier, limit: Limit = DEFAULT_LIMIT, cursor: Cursor = None
) -> Page[LedgerEntry]:
    """Lists what each round reserved, spent or gave back, as a chain of hashes."""
    (after,) = (0,) if cursor is None else decode_cursor(cursor, int)
    found = await budget.list_entries(flow, run_id, after_sequence=after, limit=limit)
    next_cursor = encode_cursor(found[-1].sequence) if len(found) == limit else None
    return Page(items=[render_ledger_entry(entry) for entry in found], next_cursor=next_cursor)
