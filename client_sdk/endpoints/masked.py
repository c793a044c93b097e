"""The routes of masked rounds: identity keys, manifests, seats, sessions and their messages. Performs no I/O."""

import base64
import binascii
import re
from dataclasses import dataclass
from typing import Final

from client_sdk.endpoints.exchange import Answer, Item, Message, Page, Request, message_of, page_of, path
from client_sdk.errors import UntrustedAnswerError
from fl_protocol import routes
from fl_protocol.manifests import SIGNATURE_HEADER, ManifestEntry, ManifestKey
from fl_protocol.messages import RequestMessage
from fl_protocol.sessions import IdentityKey, IdentityKeyRequest, Seat, Session, SessionState, Transcript

OCTET_STREAM: Final = "application/octet-stream"

_SIGNATURE: Final = re.compile(r"ed25519;([0-9a-f]{16});([A-Za-z0-9+/]{86}==)", re.ASCII)


@dataclass(frozen=True, slots=True)
class SignedManifest:
    """A manifest as the server sent it: its exact bytes, the signature over them, and which key made it."""

    body: bytes
    key_id: str
    signature: bytes


def _get(kind: type[Message], where: str, *, wait_seconds: float = 0.0, **asked: str) -> Request[Message]:
    query = {"wait": f"{wait_seconds:g}"} if wait_seconds else {}
    return Request(
        method="GET",
        path=where,
        query=query,
        wait_seconds=wait_seconds,
        parse=lambda answer: message_of(kind, answer, asked),
    )


def _get_bytes(where: str) -> Request[bytes]:
    return Request(method="GET", path=where, headers={"Accept": OCTET_STREAM}, parse=lambda answer: answer.body)


def _put_bytes(kind: type[Message], where: str, body: bytes, **asked: str) -> Request[Message]:
    return Request(
        method="PUT",
        path=where,
        headers={"Content-Type": OCTET_STREAM},
        body=body,
        statuses=frozenset({200, 201}),
        parse=lambda answer: message_of(kind, answer, asked),
    )


def _put_json(kind: type[Message], where: str, body: RequestMessage, **asked: str) -> Request[Message]:
    return Request(
        method="PUT",
        path=where,
        headers={"Content-Type": "application/json"},
        body=body.model_dump_json().encode(),
        statuses=frozenset({200, 201}),
        parse=lambda answer: message_of(kind, answer, asked),
    )


def _list(kind: type[Item], where: str, **query: str | int | None) -> Request[Page[Item]]:
    given = {name: str(value) for name, value in query.items() if value is not None}
    return Request(method="GET", path=where, query=given, parse=lambda answer: page_of(kind, answer))


def put_identity_key(client_id: str, request: IdentityKeyRequest) -> Request[IdentityKey]:
    """`PUT /v1/clients/{client_id}/identity-key`."""
    return _put_json(IdentityKey, path(routes.IDENTITY_KEY, client_id=client_id), request, client_id=client_id)


def get_identity_key(client_id: str) -> Request[IdentityKey]:
    """`GET /v1/clients/{client_id}/identity-key`."""
    return _get(IdentityKey, path(routes.IDENTITY_KEY, client_id=client_id), client_id=client_id)


def get_manifest_key() -> Request[ManifestKey]:
    """`GET /v1/manifest-key`."""
    return _get(ManifestKey, routes.MANIFEST_KEY)


def list_manifests(run_id: str, *, limit: int | None = None, cursor: str | None = None) -> Request[Page[ManifestEntry]]:
    """`GET /v1/runs/{run_id}/manifests`."""
    where = path(routes.RUN_MANIFESTS, run_id=run_id)
    return _list(ManifestEntry, where, limit=limit, cursor=cursor)


def get_manifest(run_id: str, sequence: int) -> Request[SignedManifest]:
    """`GET /v1/runs/{run_id}/manifests/{sequence}`: the exact bytes, which are what is signed."""
    where = path(routes.RUN_MANIFEST, run_id=run_id, sequence=sequence)
    return Request(method="GET", path=where, parse=_parse_manifest)


def _parse_manifest(answer: Answer) -> SignedManifest:
    found = _SIGNATURE.fullmatch(answer.headers.get(SIGNATURE_HEADER.lower(), "").strip())
    if found is None:
        raise UntrustedAnswerError(
            f"the server sends a manifest without its signature: the header {SIGNATURE_HEADER} is to be "
            "ed25519;KEY_ID;BASE64"
        )
    try:
        signature = base64.b64decode(found[2], validate=True)
    except binascii.Error:
        raise UntrustedAnswerError("the signature of the server's manifest is not base64") from None
    return SignedManifest(answer.body, found[1], signature)


def put_seat(task_id: str, advertise: bytes) -> Request[Seat]:
    """`PUT /v1/tasks/{task_id}/seat`."""
    return _put_bytes(Seat, path(routes.TASK_SEAT, task_id=task_id), advertise, task_id=task_id)


def get_seat(task_id: str, *, wait_seconds: float = 0.0) -> Request[Seat]:
    """`GET /v1/tasks/{task_id}/seat`; held while the seat waits for a session."""
    return _get(Seat, path(routes.TASK_SEAT, task_id=task_id), wait_seconds=wait_seconds, task_id=task_id)


def get_session(session_id: str, *, state: SessionState | None = None, wait_seconds: float = 0.0) -> Request[Session]:
    """`GET /v1/sessions/{session_id}`; held while the session is in `state`."""
    query = {} if state is None else {"wait": f"{wait_seconds:g}", "state": state.value}
    return Request(
        method="GET",
        path=path(routes.SESSION, session_id=session_id),
        query=query,
        wait_seconds=wait_seconds,
        parse=lambda answer: message_of(Session, answer, {"session_id": session_id}),
    )


def get_roster(session_id: str) -> Request[bytes]:
    """`GET /v1/sessions/{session_id}/roster`."""
    return _get_bytes(path(routes.SESSION_ROSTER, session_id=session_id))


def get_certificates(session_id: str) -> Request[bytes]:
    """`GET /v1/sessions/{session_id}/certificates`: 64 bytes for each member, zeros where there is none."""
    return _get_bytes(path(routes.SESSION_CERTIFICATES, session_id=session_id))


def put_shares(session_id: str, index: int, shares: bytes) -> Request[Session]:
    """`PUT /v1/sessions/{session_id}/shares/{index}`."""
    where = path(routes.SESSION_SHARES, session_id=session_id, index=index)
    return _put_bytes(Session, where, shares, session_id=session_id)


def get_inbox(session_id: str, index: int) -> Request[bytes]:
    """`GET /v1/sessions/{session_id}/shares/{index}`: what the neighbours sealed for this member."""
    return _get_bytes(path(routes.SESSION_SHARES, session_id=session_id, index=index))


def put_input(session_id: str, index: int) -> Request[Session]:
    """`PUT /v1/sessions/{session_id}/inputs/{index}`; the body is streamed."""
    where = path(routes.SESSION_INPUT, session_id=session_id, index=index)
    return _put_bytes(Session, where, b"", session_id=session_id)


def get_survivors(session_id: str) -> Request[bytes]:
    """`GET /v1/sessions/{session_id}/survivors`."""
    return _get_bytes(path(routes.SESSION_SURVIVORS, session_id=session_id))


def put_signature(session_id: str, index: int, signature: bytes) -> Request[Session]:
    """`PUT /v1/sessions/{session_id}/consistency/{index}`."""
    where = path(routes.SESSION_SIGNATURE, session_id=session_id, index=index)
    return _put_bytes(Session, where, signature, session_id=session_id)


def get_signatures(session_id: str) -> Request[bytes]:
    """`GET /v1/sessions/{session_id}/consistency`."""
    return _get_bytes(path(routes.SESSION_SIGNATURES, session_id=session_id))


def put_unmask(session_id: str, index: int, shares: bytes) -> Request[Session]:
    """`PUT /v1/sessions/{session_id}/unmask/{index}`."""
    where = path(routes.SESSION_UNMASK, session_id=session_id, index=index)
    return _put_bytes(Session, where, shares, session_id=session_id)


def get_transcript(session_id: str) -> Request[Transcript]:
    """`GET /v1/sessions/{session_id}/transcript`."""
    return _get(Transcript, path(routes.SESSION_TRANSCRIPT, session_id=session_id), session_id=session_id)


def list_sessions(
    run_id: str, number: int, *, limit: int | None = None, cursor: str | None = None
) -> Request[Page[Session]]:
    """`GET /v1/runs/{run_id}/rounds/{number}/sessions`: those of the newest attempt at a round."""
    where = path(routes.ROUND_SESSIONS, run_id=run_id, number=number)
    return _list(Session, where, limit=limit, cursor=cursor)
