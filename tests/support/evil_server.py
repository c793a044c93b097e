"""A scripted server for one victim: its other members are puppets, and it deviates from the protocol as it is told.

The routes of runs, tasks and models are the fake aggregator's. A session is what the pure half of the protocol makes of
it, with the victim among puppets that follow the rules; a hook changes one answer on its way to the victim. Everything
that the victim sends is kept, so that a test can tell what it did not send.
"""

import base64
import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import anyio.lowlevel
import httpx
import numpy as np

from client_sdk.client import AggregatorClient, Seams
from client_sdk.config import DEFAULT_LIMITS
from client_sdk.masking.manifests import digest_of, key_id_of
from client_sdk.testing import FakeAggregator
from client_sdk.testing.state import FakeRun, new_id, new_run
from fl_protocol.arrays import Tensor, encode
from fl_protocol.manifests import Manifest, ManifestReference
from fl_protocol.masked_vectors import manifest_of, render_manifest, ring_of
from fl_protocol.masking import keys, messages, prg, unmasking
from fl_protocol.masking.cohort import Cohort
from fl_protocol.masking.graph import graph_of
from fl_protocol.masking.messages import Advertise, Roster, ShareRecord
from fl_protocol.masking.participant import ADVERTISE_ENTROPY_BYTES, Participant
from fl_protocol.masking.prg import apply_masks
from fl_protocol.masking.ring import Int64Array, pack, signed, to_words, unpack
from fl_protocol.masking.terms import Terms
from fl_protocol.problems import ProblemError, ProblemType
from fl_protocol.rounds import RoundState
from fl_protocol.runs import Run, RunSpec, RunState
from fl_protocol.sessions import AbortCode, Seat, SeatState, Session, SessionState, Transcript, TranscriptMember
from fl_protocol.tasks import Task
from fl_protocol.tensors import parse_header

VICTIM = "client_" + "ee" * 16
Hook = Callable[[Any], Any]
MAX_REQUESTS = 200


@dataclass
class Puppet:
    """Another member, whose every step is right."""

    number: int
    identity: bytes = field(default_factory=lambda: os.urandom(32))
    member: Participant | None = None

    @property
    def client_id(self) -> bytes:
        return bytes([self.number + 1]) * 16

    @property
    def part(self) -> Participant:
        assert self.member is not None
        return self.member

    def enrol(self, terms: Terms) -> Advertise:
        self.member = Participant.enrol(
            terms,
            client_id=self.client_id,
            identity_key=keys.identity_public_key(self.identity),
            signer=self.sign,
            entropy=os.urandom(ADVERTISE_ENTROPY_BYTES),
        )
        return self.member.advertise

    def sign(self, message: bytes) -> bytes:
        return keys.sign(self.identity, message)


@dataclass
class EvilSession:
    """One session of the victim and the puppets."""

    session_id: str
    cohort: Cohort
    index: int
    state: SessionState = SessionState.SHARES
    dealt: dict[int, tuple[ShareRecord, ...]] = field(default_factory=dict)
    inputs: dict[int, bytes] = field(default_factory=dict)
    survivors: bytes = b""
    signatures: dict[int, bytes] = field(default_factory=dict)
    total: Int64Array | None = None
    abort_code: AbortCode | None = None


@dataclass
class Sent:
    """A request of the victim."""

    method: str
    path: str
    body: bytes


class EvilServer(FakeAggregator):
    """Serves one victim.

    `hooks` change what the victim is shown: `task` (Task), `manifest` (Manifest), `signing_key`, `roster` (Roster),
    `inbox` (records), `survivors` (a set), `signatures` (member -> signature), `session` (Session), `seat` (Seat) and
    `transcript` (Transcript). `puppets_see` is what the puppets are shown of the roster; of `vanish_before_input` no
    input arrives.
    """

    def __init__(self, spec: RunSpec, model: Mapping[str, Tensor], *, num_members: int = 5) -> None:
        super().__init__()
        self.hooks: dict[str, Hook] = {}
        self.sent: list[Sent] = []
        self.signing_key = os.urandom(32)
        self.puppets = [Puppet(number) for number in range(num_members - 1)]
        self.vanish_before_input: frozenset[int] = frozenset()
        self.sessions: list[EvilSession] = []
        self.certificates: dict[bytes, bytes] = {}
        self.place = 2
        self.run = self._begin(spec, model)
        self.sequence = 1
        self.previous: str | None = None
        self.manifests: dict[int, tuple[bytes, bytes]] = {}

    def victim(self) -> AggregatorClient:
        """Opens the victim's client, which never really sleeps."""
        token = new_id("token")
        self.clients[token] = "victim"

        async def sleep(seconds: float) -> None:
            await anyio.lowlevel.checkpoint()

        return AggregatorClient(
            "http://localhost",
            token=token,
            limits=replace(DEFAULT_LIMITS, max_attempts=2),
            seams=Seams(transport=self.transport, sleep=sleep, fraction=lambda: 0.0),
        )

    def bodies(self, method: str, pattern: str) -> list[bytes]:
        """Gives the bodies of the victim's requests to a path that matches."""
        return [sent.body for sent in self.sent if sent.method == method and re.search(pattern, sent.path)]

    @property
    def messages_sent(self) -> dict[str, int]:
        """How many messages of each phase the victim has sent, those that it has not sent left out."""
        paths = {"seat": "/seat$"} | {what: f"/{what}/\\d+$" for what in ("shares", "inputs", "consistency", "unmask")}
        counted = {what: len(self.bodies("PUT", pattern)) for what, pattern in paths.items()}
        return {what: count for what, count in counted.items() if count}

    @property
    def session(self) -> EvilSession:
        return self.sessions[-1]

    def _begin(self, spec: RunSpec, model: Mapping[str, Tensor]) -> Run:
        fake = new_run(spec)
        self.runs[fake.run.run_id] = fake
        fake.add_model(b"".join(encode(model, {})))
        fake.move_to(RunState.RUNNING)
        return fake.run

    def finish(self) -> None:
        """Ends the run, so that the victim is told so when it asks again."""
        fake = self.runs[self.run.run_id]
        fake.rounds[-1] = fake.rounds[-1].model_copy(update={"state": RoundState.COMPLETED})
        fake.move_to(RunState.COMPLETED)

    def _hooked(self, name: str, value: Any) -> Any:
        return self.hooks.get(name, lambda value: value)(value)

    async def _route(self, request: httpx.Request, content: bytes) -> httpx.Response:
        path = request.url.path
        self.sent.append(Sent(request.method, path, content))
        assert len(self.sent) < MAX_REQUESTS, "the victim goes round in circles"
        if re.fullmatch(r"/v1/clients/[^/]+/identity-key", path):
            registered = json.loads(content)
            if registered["certificate"] is not None:
                self.certificates[bytes.fromhex(VICTIM[7:])] = bytes.fromhex(registered["certificate"])
            return answer({"client_id": VICTIM, **registered, "created_at": datetime.now(UTC).isoformat()}, status=201)
        if path == "/v1/manifest-key":
            public_key = keys.identity_public_key(self.signing_key)
            return answer({"key_id": key_id_of(public_key), "public_key": public_key.hex()})
        if found := re.fullmatch(r"/v1/runs/[^/]+/manifests/(\d+)", path):
            return self._manifest(int(found[1]))
        if re.fullmatch(r"/v1/tasks/[^/]+/seat", path):
            return self._seat(request.method, content, task_id=path.split("/")[3])
        if found := re.fullmatch(r"/v1/sessions/([^/]+)(/.*)?", path):
            return self._session_route(request.method, content, rest=found[2] or "")
        return await super()._route(request, content)

    async def _claim(self, request: httpx.Request, fake: FakeRun) -> httpx.Response:
        given = await super()._claim(request, fake)
        if given.status_code == 204:
            return given
        task = Task.model_validate_json(given.content)
        body, _ = self.manifests.get(self.sequence) or self._write_manifest(task)
        reference = ManifestReference(
            url=f"/v1/runs/{task.run_id}/manifests/{self.sequence}", sequence=self.sequence, digest=digest_of(body)
        )
        shown = self._hooked("task", task.model_copy(update={"manifest": reference}))
        return httpx.Response(given.status_code, content=shown.model_dump_json())

    def _write_manifest(self, task: Task) -> tuple[bytes, bytes]:
        fake = self.runs[task.run_id]
        model = fake.models[task.base_version]
        manifest = manifest_of(
            fake.run.spec,
            parse_header(model[8 : 8 + int.from_bytes(model[:8], "little")]),
            run_id=task.run_id,
            round_number=task.round,
            attempt=task.attempt,
            sequence=self.sequence,
            previous_digest=self.previous,
            not_after=datetime.now(UTC) + timedelta(days=1),
            base_version=task.base_version,
            model_digest=task.model_digest,
            model_num_bytes=task.model_num_bytes,
        )
        return self.sign_manifest(self._hooked("manifest", manifest))

    def sign_manifest(self, manifest: Manifest) -> tuple[bytes, bytes]:
        """Signs a manifest and shows it from now on."""
        body = render_manifest(manifest)
        key = self._hooked("signing_key", self.signing_key)
        signature = keys.sign(key, keys.tag("manifest") + body)
        self.manifests[manifest.sequence] = (body, signature)
        return self.manifests[manifest.sequence]

    def _manifest(self, sequence: int) -> httpx.Response:
        body, signature = self.manifests[sequence]
        key_id = key_id_of(keys.identity_public_key(self.signing_key))
        header = f"ed25519;{key_id};{base64.b64encode(signature).decode()}"
        return httpx.Response(200, content=body, headers={"Manifest-Signature": header})

    def _seat(self, method: str, content: bytes, *, task_id: str) -> httpx.Response:
        if method == "PUT":
            if self.sessions and self.session.state not in (SessionState.DONE, SessionState.ABORTED):
                # Whoever comes with fresh keys has forgotten its old ones: the session's deadline passes meanwhile.
                self.session.state = SessionState.ABORTED
                raise ProblemError(ProblemType.EQUIVOCATION, "other bytes were sent as the advertised keys before")
            self.sessions.append(self._form(content))
        session = self.session
        state = {SessionState.ABORTED: SeatState.FREE, SessionState.DONE: SeatState.SPENT}.get(
            session.state, SeatState.SEATED
        )
        seat = Seat(
            task_id=task_id,
            state=state,
            session_id=session.session_id,
            index=session.index,
            num_members=len(session.cohort.roster.members),
        )
        return answer(self._hooked("seat", seat))

    @property
    def context(self) -> bytes:
        return keys.context(self.manifests[self.sequence][0])

    def _form(self, advertise: bytes) -> EvilSession:
        terms = Terms(context=self.context, min_members=3, max_members=1000)
        advertised = [puppet.enrol(terms) for puppet in self.puppets]
        advertised.insert(self.place, messages.parse_advertise(advertise))
        roster = Roster(graph_of(len(advertised)).threshold, tuple(advertised))
        shown = self._hooked("puppets_see", roster)
        for puppet in self.puppets:
            puppet.part.accept_roster(shown.render())
        cohort = Cohort.of(shown, context=self.context)
        session = EvilSession(new_id("session"), cohort, self.place)
        for puppet in self.puppets:
            dealt = puppet.part.deal(os.urandom(puppet.part.dealing_entropy_bytes))
            session.dealt[puppet.part.index] = messages.parse_share_records(dealt, num_members=len(advertised))
        self._roster = roster
        return session

    def _session_route(self, method: str, content: bytes, *, rest: str) -> httpx.Response:
        session = self.session
        if session.state is SessionState.ABORTED and rest not in ("", "/transcript"):
            raise ProblemError(ProblemType.SESSION_ABORTED, "the session was aborted")
        if method == "PUT":
            {"shares": self._take_shares, "inputs": self._take_input, "consistency": self._take_signature}.get(
                rest.split("/")[1], self._take_answer
            )(session, content)
            return answer(self._described(session), status=201)
        if rest == "":
            return answer(self._described(session))
        if rest == "/transcript":
            return answer(self._hooked("transcript", self._transcript(session)))
        if rest == "/roster":
            return httpx.Response(200, content=self._hooked("roster", self._roster).render())
        if rest == "/certificates":
            members = self._roster.members
            certificates = (self.certificates.get(one.client_id, bytes(64)) for one in members)
            return httpx.Response(200, content=b"".join(certificates))
        if rest == "/survivors":
            count = len(session.cohort.roster.members)
            shown = self._hooked("survivors", messages.parse_bitmap(session.survivors, num_members=count))
            return httpx.Response(200, content=messages.render_bitmap(shown, num_members=count))
        if rest == "/consistency":
            signatures = self._hooked("signatures", dict(session.signatures))
            return httpx.Response(200, content=messages.render_consistency(signatures))
        inbox = unmasking.inbox(session.dealt, member=session.index)
        records = messages.parse_share_records(inbox, num_members=len(session.cohort.roster.members))
        return httpx.Response(200, content=messages.render_share_records(self._hooked("inbox", records)))

    def _take_shares(self, session: EvilSession, content: bytes) -> None:
        count = len(session.cohort.roster.members)
        session.dealt[session.index] = messages.parse_share_records(content, num_members=count)
        session.state = SessionState.INPUT

    def _take_input(self, session: EvilSession, content: bytes) -> None:
        session.inputs[session.index] = content
        for puppet in self.puppets:
            part = puppet.part
            part.open_inbox(unmasking.inbox(session.dealt, member=part.index))
            if part.index not in self.vanish_before_input:
                session.inputs[part.index] = self._puppet_input(part, len(content))
        session.survivors = messages.render_bitmap(
            session.inputs.keys(), num_members=len(session.cohort.roster.members)
        )
        session.state = SessionState.CONSISTENCY

    def _puppet_input(self, part: Participant, num_bytes: int) -> bytes:
        ring = ring_of(self.run.spec)
        words = to_words(np.full(num_bytes // ring.element_bytes, part.index + 1, dtype=np.int64), ring)
        apply_masks(words, part.masks())
        return pack(words, ring.bits)

    def _take_signature(self, session: EvilSession, content: bytes) -> None:
        session.signatures[session.index] = content
        for puppet in self.puppets:
            if puppet.part.index in session.inputs:
                signature = puppet.part.sign_survivors(session.survivors, signer=puppet.sign)
                session.signatures[puppet.part.index] = signature
        session.state = SessionState.UNMASK

    def _take_answer(self, session: EvilSession, content: bytes) -> None:
        count = len(session.cohort.roster.members)
        answers = {session.index: messages.parse_unmask(content, num_members=count)}
        survivors = messages.parse_bitmap(session.survivors, num_members=count)
        for puppet in self.puppets:
            part = puppet.part
            if part.index in survivors:
                part.check_consistency(messages.render_consistency(session.signatures))
                answers[part.index] = messages.parse_unmask(part.unmask(session.survivors), num_members=count)
        for member, shares in answers.items():
            unmasking.check_answer(
                shares, member=member, cohort=session.cohort, shared=session.dealt.keys(), survivors=survivors
            )
        collected = unmasking.collect(
            answers,
            digests=unmasking.share_digests(session.dealt),
            cohort=session.cohort,
            shared=session.dealt.keys(),
            survivors=survivors,
        )
        assert collected.bad == ()
        ring = ring_of(self.run.spec)
        sums = np.zeros(len(next(iter(session.inputs.values()))) // ring.element_bytes, dtype=ring.dtype)
        for vector in session.inputs.values():
            np.add(sums, unpack(vector, ring.bits), out=sums)
        prg.remove_masks(sums, unmasking.masks_of_sum(collected, cohort=session.cohort))
        session.total = signed(sums, ring.bits)
        session.state = SessionState.DONE
        self.finish()

    def _described(self, session: EvilSession) -> Session:
        manifest = Manifest.model_validate_json(self.manifests[self.sequence][0])
        graph = session.cohort.graph
        described = Session(
            session_id=session.session_id,
            run_id=manifest.run_id,
            round=manifest.round,
            attempt=manifest.attempt,
            manifest_digest=digest_of(self.manifests[self.sequence][0]),
            state=session.state,
            revision=1,
            num_members=graph.num_members,
            degree=graph.degree,
            threshold=graph.threshold,
            consistency_quorum=graph.quorum,
            num_messages=0,
            deadline_at=datetime.now(UTC),
            created_at=datetime.now(UTC),
            abort_code=session.abort_code,
        )
        shown = self._hooked("session", described)
        assert isinstance(shown, Session)
        return shown

    def _transcript(self, session: EvilSession) -> Transcript:
        manifest = Manifest.model_validate_json(self.manifests[self.sequence][0])
        graph = session.cohort.graph
        return Transcript(
            session_id=session.session_id,
            run_id=manifest.run_id,
            round=manifest.round,
            attempt=manifest.attempt,
            manifest_digest=digest_of(self.manifests[self.sequence][0]),
            context=self.context.hex(),
            session_hash=session.cohort.session_id.hex(),
            state=session.state,
            threshold=graph.threshold,
            consistency_quorum=graph.quorum,
            members=[self._member(session, index) for index in range(graph.num_members)],
            total_weight=None,
            sum_digest=None,
        )

    @staticmethod
    def _member(session: EvilSession, index: int) -> TranscriptMember:
        member = session.cohort.roster.members[index]
        vector, signature = session.inputs.get(index), session.signatures.get(index)
        return TranscriptMember(
            client_id=f"client_{member.client_id.hex()}",
            identity_key=member.identity_key.hex(),
            shared=index in session.dealt,
            survived=vector is not None,
            signed=signature is not None,
            input_digest=None if vector is None else digest_of(vector),
            consistency_signature=None if signature is None else signature.hex(),
        )


def answer(message: Any, *, status: int = 200) -> httpx.Response:
    """Answers with a message of the contract, or with JSON."""
    content = json.dumps(message) if isinstance(message, dict) else message.model_dump_json()
    return httpx.Response(status, content=content, headers={"Content-Type": "application/json"})
