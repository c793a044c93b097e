"""Who is calling: a bearer token becomes a principal or a refusal."""

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import partial

from aggregator_service.domain.records import TokenKind, TokenRecord
from aggregator_service.flow.context import Flow
from aggregator_service.storage import asks, tokens
from aggregator_service.storage.asks import Asked, AskRecord
from aggregator_service.storage.transactions import ReadTx, WriteTx
from fl_protocol.problems import ProblemError, ProblemType


@dataclass(frozen=True, slots=True)
class Principal:
    """An authenticated caller; `bearer` is the token's text, held for the length of the request only."""

    kind: TokenKind
    token_hash: str
    client_id: str | None
    bearer: str
    helper_key: bytes | None = None

    def __repr__(self) -> str:
        """Leaves the token's text out of every traceback and log."""
        return f"Principal({self.kind.value}, client_id={self.client_id})"


def hash_token(token: str) -> str:
    """Gives what is stored of a token. It is looked up by this hash, so timing tells nothing about its text."""
    return hashlib.sha256(token.encode()).hexdigest()


async def authenticate(flow: Flow, bearer: str) -> Principal:
    """Finds who a token belongs to; raises `unauthenticated` for one that is unknown, revoked or expired."""
    token_hash = hash_token(bearer)

    def body(tx: ReadTx) -> TokenRecord | None:
        return _in_force(tx, tokens.get(tx, token_hash))

    return _principal(await flow.transactions.read_one("authenticate", body), bearer)


async def authenticate_for_task(flow: Flow, bearer: str, *, task_id: str) -> tuple[Principal, AskRecord | None]:
    """Does the same and reads a task with it, whoever holds it; None where there is no such task.

    Those who ask while others are being looked up are looked up together.
    """
    asked = Asked(hash_token(bearer), task_id)
    token, found = await flow.gatherings.ask("authenticate_for_task", asked, partial(_look_up, flow))
    return _principal(token, bearer), found


def recognise_for_task(flow: Flow, bearer: str, *, task_id: str) -> tuple[Principal, AskRecord] | None:
    """Identifies who answers a task that this process has handed out for the same token, once, without the database.

    Whoever acts on it must ask `not_in_force` in the transaction that makes the answer count.
    """
    token_hash = hash_token(bearer)
    found = flow.handed_out.take(task_id, token_hash=token_hash)
    return None if found is None else (Principal(TokenKind.CLIENT, token_hash, found.task.client_id, bearer), found)


def not_in_force(tx: ReadTx, token_hashes: Collection[str]) -> set[str]:
    """Gives those of some tokens, by their hashes, that are unknown, revoked or expired."""
    known = tokens.get_all(tx, token_hashes)
    return {each for each in token_hashes if _in_force(tx, known.get(each)) is None}


async def _look_up(flow: Flow, asked: Sequence[Asked]) -> list[tuple[TokenRecord | None, AskRecord | None]]:
    def body(tx: ReadTx) -> list[tuple[TokenRecord | None, AskRecord | None]]:
        return [(_in_force(tx, token), found) for token, found in asks.get_all(tx, asked)]

    return await flow.transactions.read("authenticate_for_task", body)


def _in_force(tx: ReadTx, record: TokenRecord | None) -> TokenRecord | None:
    if record is None or record.revoked_at is not None:
        return None
    if record.expires_at is not None and record.expires_at <= tx.now():
        return None
    return record


def _principal(record: TokenRecord | None, bearer: str) -> Principal:
    if record is None:
        raise unauthenticated()
    return Principal(record.kind, record.token_hash, record.client_id, bearer, record.helper_key)


def unauthenticated() -> ProblemError:
    """Gives the problem of a token that nobody has, or has any more."""
    detail = "the bearer token is unknown, revoked or expired; ask the operator for a new one"
    return ProblemError(ProblemType.UNAUTHENTICATED, detail)


async def ensure_operator_token(flow: Flow, configured: str | None) -> str | None:
    """Makes sure an operator can get in; gives the text of a token that was made now, to be shown once."""
    fresh = "fqo_" + flow.entropy(32).hex()

    def body(tx: WriteTx) -> str | None:
        if configured is not None:
            if tokens.get(tx, hash_token(configured)) is None:
                tokens.insert(tx, _operator_token(tx, configured))
            return None
        if tokens.any_operator(tx):
            return None
        tokens.insert(tx, _operator_token(tx, fresh))
        return fresh

    return await flow.transactions.write("ensure_operator_token", body)


def _operator_token(tx: WriteTx, text: str) -> TokenRecord:
    return TokenRecord(
        token_hash=hash_token(text),
        kind=TokenKind.OPERATOR,
        client_id=None,
        max_uses=None,
        uses=0,
        expires_at=None,
        revoked_at=None,
        created_at=tx.now(),
    )
