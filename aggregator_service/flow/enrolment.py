"""How clients and helpers come in and are sent away."""

from dataclasses import dataclass
from datetime import datetime, timedelta

from aggregator_service.domain.records import ClientRecord, TokenKind, TokenRecord
from aggregator_service.flow import idempotency
from aggregator_service.flow.authentication import Principal, hash_token
from aggregator_service.flow.context import Flow
from aggregator_service.flow.idempotency import IdempotentCreate
from aggregator_service.storage import clients, tokens
from aggregator_service.storage.transactions import WriteTx
from fl_protocol.helper_mode import HelperTokenRequest
from fl_protocol.problems import ProblemError, ProblemType
from fl_protocol.tasks import ClientRequest, EnrolmentTokenRequest


@dataclass(frozen=True, slots=True)
class NewClient:
    """A client and the text of its token, which is shown once."""

    client: ClientRecord
    token: str


@dataclass(frozen=True, slots=True)
class NewEnrolmentToken:
    """An enrolment token's text, which is shown once."""

    token: str
    max_uses: int
    expires_at: datetime


async def create_enrolment_token(
    flow: Flow, request: EnrolmentTokenRequest, *, principal: Principal, create: IdempotentCreate | None
) -> NewEnrolmentToken:
    """Makes a token that may create up to `max_uses` clients and nothing else."""
    text = "fqe_" + idempotency.secret_for(create, bearer=principal.bearer, entropy=flow.entropy(32))

    def body(tx: WriteTx) -> NewEnrolmentToken:
        earlier = idempotency.recall(tx, create)
        record = None if earlier is None else tokens.get(tx, earlier)
        if record is None:
            record = TokenRecord(
                token_hash=hash_token(text),
                kind=TokenKind.ENROLMENT,
                client_id=None,
                max_uses=request.max_uses,
                uses=0,
                expires_at=tx.now() + timedelta(seconds=request.expires_in_seconds),
                revoked_at=None,
                created_at=tx.now(),
            )
            tokens.insert(tx, record)
            idempotency.remember(tx, create, record.token_hash)
        return NewEnrolmentToken(text, request.max_uses, record.expires_at or tx.now())

    return await flow.transactions.write("create_enrolment_token", body)


async def enrol_client(
    flow: Flow, request: ClientRequest, *, principal: Principal, create: IdempotentCreate | None
) -> NewClient:
    """Makes a client and its token; an enrolment token pays with one of its uses."""
    client_id = flow.new_id("client")
    text = "fqc_" + idempotency.secret_for(create, bearer=principal.bearer, entropy=flow.entropy(32))

    def body(tx: WriteTx) -> NewClient:
        earlier_id = idempotency.recall(tx, create)
        if earlier_id is not None and (earlier := clients.get(tx, earlier_id)) is not None:
            return NewClient(earlier, text)
        if principal.kind is TokenKind.ENROLMENT and not tokens.spend_use(tx, principal.token_hash):
            raise ProblemError(
                ProblemType.FORBIDDEN, "every use of this enrolment token is spent; ask the operator for a new one"
            )
        client = ClientRecord(client_id, request.name, request.attributes, tx.now(), None, None)
        clients.insert(tx, client)
        tokens.insert(tx, _client_token(client, text))
        idempotency.remember(tx, create, client_id)
        return NewClient(client, text)

    return await flow.transactions.write("enrol_client", body)


async def create_helper_token(
    flow: Flow, request: HelperTokenRequest, *, principal: Principal, create: IdempotentCreate | None
) -> str:
    """Makes a token for the requests of one helper's signing key, and nothing else; gives its text."""
    text = "fqh_" + idempotency.secret_for(create, bearer=principal.bearer, entropy=flow.entropy(32))

    def body(tx: WriteTx) -> str:
        if idempotency.recall(tx, create) is None:
            record = TokenRecord(
                token_hash=hash_token(text),
                kind=TokenKind.HELPER,
                client_id=None,
                max_uses=None,
                uses=0,
                expires_at=None,
                revoked_at=None,
                created_at=tx.now(),
                helper_key=bytes.fromhex(request.signing_key),
            )
            tokens.insert(tx, record)
            idempotency.remember(tx, create, record.token_hash)
        return text

    return await flow.transactions.write("create_helper_token", body)


async def revoke_helper(flow: Flow, signing_key: bytes) -> None:
    """Makes all tokens for a signing key stop working at once; raises `not-found` if there was never one."""

    def body(tx: WriteTx) -> None:
        if not tokens.revoke_of_helper(tx, signing_key):
            raise ProblemError(ProblemType.NOT_FOUND, "there is no token for this signing key")

    await flow.transactions.write("revoke_helper", body)


async def revoke_client(flow: Flow, client_id: str) -> None:
    """Makes a client's token stop working at once; updates it had acknowledged still count."""

    def body(tx: WriteTx) -> None:
        if clients.get(tx, client_id) is None:
            raise ProblemError(ProblemType.NOT_FOUND, f"there is no client {client_id!r}")
        if clients.revoke(tx, client_id):
            tokens.revoke_of_client(tx, client_id)

    await flow.transactions.write("revoke_client", body)


def _client_token(client: ClientRecord, text: str) -> TokenRecord:
    return TokenRecord(
        token_hash=hash_token(text),
        kind=TokenKind.CLIENT,
        client_id=client.client_id,
        max_uses=None,
        uses=0,
        expires_at=None,
        revoked_at=None,
        created_at=client.created_at,
    )
