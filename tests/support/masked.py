"""Clients of masked rounds, with nothing but an HTTP library, numpy and the pure half of the protocol."""

import itertools
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx
import numpy as np

from fl_protocol.masked_vectors import extras_of, ring_of, weight_of
from fl_protocol.masking import keys
from fl_protocol.masking.participant import ADVERTISE_ENTROPY_BYTES, Participant
from fl_protocol.masking.prg import apply_masks
from fl_protocol.masking.quantisation import clipping_factor, quantise
from fl_protocol.masking.ring import Int64Array, Ring, encode_extras, pack, to_words
from fl_protocol.masking.terms import Terms
from fl_protocol.runs import RunSpec
from fl_protocol.specs.secure_aggregation import clipping_norm
from tests.support.participant import Participant as Enrolled
from tests.support.participant import Tensors, create_run, enrol, small_model
from tests.support.server import ServerProcess
from tests.support.stored import Stored

BYTES = {"Content-Type": "application/octet-stream"}
WAIT = 20

PAIRWISE: dict[str, Any] = {"kind": "pairwise", "min_members": 3, "phase_seconds": 60, "enrol_seconds": 60}


def masked_spec(num_clients: int, **changes: Any) -> dict[str, Any]:
    """Gives a spec of one masked round of so many clients, all of whom are waited for."""
    secure = PAIRWISE | changes.pop("secure_aggregation", {})
    round_ = {"quorum": num_clients, "cohort_size": num_clients, "min_updates": 1} | changes.pop("round", {})
    return {"num_rounds": 1, "round": round_, "secure_aggregation": secure} | changes


def read_spec(http: httpx.Client, run_id: str) -> RunSpec:
    """Reads a run's spec as the server has it."""
    return RunSpec.model_validate(http.get(f"/v1/runs/{run_id}").json()["spec"])


def some_delta(seed: int, *, scale: float = 0.1) -> Tensors:
    """Makes an update of the small model."""
    generator = np.random.default_rng(seed)
    return {name: np.float32(scale * generator.normal(size=values.shape)) for name, values in small_model().items()}


def flat(tensors: Mapping[str, Any]) -> Any:
    """Gives tensors' elements one after the other."""
    return np.concatenate([np.asarray(values, dtype=np.float64).reshape(-1) for values in tensors.values()])


@dataclass
class MaskedClient:
    """One enrolled client with its identity; `vector` is what it adds to the sum, before its masks."""

    enrolled: Enrolled
    identity: bytes = field(default_factory=lambda: os.urandom(32))
    task: dict[str, Any] = field(default_factory=dict)
    manifest: bytes = b""
    session_id: str = ""
    member: Participant | None = None
    vector: Int64Array = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    sent: dict[str, bytes] = field(default_factory=dict)

    @property
    def http(self) -> httpx.Client:
        return self.enrolled.http

    @property
    def client_id(self) -> str:
        return self.enrolled.client_id

    @property
    def part(self) -> Participant:
        assert self.member is not None
        return self.member

    @property
    def index(self) -> int:
        return self.part.index

    def sign(self, message: bytes) -> bytes:
        return keys.sign(self.identity, message)

    def register(self) -> httpx.Response:
        public_key = keys.identity_public_key(self.identity).hex()
        return self.http.put(f"/v1/clients/{self.client_id}/identity-key", json={"public_key": public_key})

    def claim(self, run_id: str) -> dict[str, Any]:
        """Claims a task and reads its manifest."""
        answer = self.enrolled.claim(run_id, wait=WAIT)
        assert answer.status_code in (200, 201), answer.text
        self.task = answer.json()
        self.manifest = self.http.get(self.task["manifest"]["url"]).content
        return self.task

    def advertise(self) -> bytes:
        """Makes fresh keys for a session."""
        content = json.loads(self.manifest)["secure_aggregation"]
        terms = Terms(
            context=keys.context(self.manifest),
            min_members=content["min_members"],
            max_members=content["max_members"],
        )
        self.member = Participant.enrol(
            terms,
            client_id=bytes.fromhex(self.client_id.partition("_")[2]),
            identity_key=keys.identity_public_key(self.identity),
            signer=self.sign,
            entropy=os.urandom(ADVERTISE_ENTROPY_BYTES),
        )
        return self.member.advertise.render()

    def put_seat(self, data: bytes) -> httpx.Response:
        return self.http.put(f"/v1/tasks/{self.task['task_id']}/seat", content=data, headers=BYTES)

    def seat(self, wait: float = 0) -> httpx.Response:
        return self.http.get(f"/v1/tasks/{self.task['task_id']}/seat", params={"wait": wait})

    def ask_for_seat(self) -> None:
        """Registers, advertises fresh keys and waits for nothing."""
        assert self.register().status_code in (200, 201)
        taken = self.put_seat(self.advertise())
        assert taken.status_code == 201, taken.text

    def take_seat(self) -> None:
        """Waits until the session has begun and accepts its roster."""
        seat = self.seat(WAIT).json()
        assert seat["state"] == "seated", seat
        self.session_id = seat["session_id"]
        self.part.accept_roster(self.get("roster").content)
        assert self.index == seat["index"]

    def get(self, what: str, **parameters: Any) -> httpx.Response:
        return self.http.get(f"/v1/sessions/{self.session_id}/{what}", params=parameters)

    def put(self, what: str, data: bytes, index: int | None = None, **headers: str) -> httpx.Response:
        place = self.index if index is None else index
        url = f"/v1/sessions/{self.session_id}/{what}/{place}"
        return self.http.put(url, content=data, headers=BYTES | headers)

    def session(self, state: str | None = None, wait: float = 0) -> dict[str, Any]:
        """Looks at the session, waiting while it is in a state."""
        parameters = {"wait": wait} | ({} if state is None else {"state": state})
        answer = self.http.get(f"/v1/sessions/{self.session_id}", params=parameters)
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found

    def leave(self, state: str) -> str:
        """Waits until the session has left a state and gives the next."""
        return str(self.session(state, WAIT)["state"])

    def send(self, what: str, data: bytes) -> None:
        """Sends a message that is new and right."""
        self.sent[what] = data
        taken = self.put(what, data)
        assert taken.status_code == 201, taken.text

    def message_of(self, what: str, ring: Ring) -> bytes:
        """Makes the message of a phase that the session has entered."""
        match what:
            case "shares":
                return self.deal()
            case "inputs":
                return self.masked_input(ring)
            case "consistency":
                return self.signature()
            case _:
                return self.answer()

    def send_next(self, what: str, ring: Ring) -> None:
        self.send(what, self.message_of(what, ring))

    def deal(self) -> bytes:
        return self.part.deal(os.urandom(self.part.dealing_entropy_bytes))

    def send_shares(self) -> None:
        self.send("shares", self.deal())

    def masked_input(self, ring: Ring) -> bytes:
        """Opens the inbox and gives the vector with the masks on."""
        self.part.open_inbox(self.get(f"shares/{self.index}").content)
        words = to_words(self.vector, ring)
        apply_masks(words, self.part.masks())
        return pack(words, ring.bits)

    def send_input(self, ring: Ring) -> None:
        self.send("inputs", self.masked_input(ring))

    def signature(self) -> bytes:
        """Checks the survivors and signs them."""
        return self.part.sign_survivors(self.get("survivors").content, signer=self.sign)

    def send_signature(self) -> None:
        self.send("consistency", self.signature())

    def answer(self) -> bytes:
        """Checks the signatures and gives the unmask message."""
        self.part.check_consistency(self.get("consistency").content)
        return self.part.unmask(self.get("survivors").content)

    def send_answer(self) -> None:
        self.send("unmask", self.answer())


def quantised(
    delta: Tensors, spec: RunSpec, *, num_examples: int = 1, metrics: Mapping[str, float] | None = None
) -> Int64Array:
    """Clips and rounds an update as the run asks, and puts its extras behind it."""
    ring, weight = ring_of(spec), weight_of(num_examples, spec)
    values = flat(delta)
    factor = clipping_factor(float(values @ values), clipping_norm=clipping_norm(spec))
    coordinates = quantise(values, ring=ring, key=os.urandom(32), factor=factor, weight=weight)
    return np.concatenate([coordinates, encode_extras(extras_of(weight, metrics or {}, spec), ring)])


@dataclass
class MaskedCohort:
    """The clients of one masked run, who go through its phases together."""

    clients: list[MaskedClient]
    run_id: str
    spec: RunSpec

    @classmethod
    def enrol(cls, http: httpx.Client, run_id: str, num_clients: int) -> "MaskedCohort":
        clients = [MaskedClient(enrol(http, f"masked-{number}")) for number in range(num_clients)]
        return cls(clients, run_id, read_spec(http, run_id))

    @property
    def ring(self) -> Ring:
        return ring_of(self.spec)

    def claim(
        self, examples: Sequence[int] | None = None, metrics: Sequence[Mapping[str, float]] | None = None
    ) -> None:
        """Claims every client's task and trains."""
        for number, client in enumerate(self.clients):
            client.claim(self.run_id)
            client.vector = quantised(
                some_delta(number),
                self.spec,
                num_examples=1 if examples is None else examples[number],
                metrics=None if metrics is None else metrics[number],
            )

    def seat(self) -> None:
        """Seats everyone, in one session."""
        for client in self.clients:
            client.ask_for_seat()
        for client in self.clients:
            client.take_seat()

    def phase(self, act: Callable[[MaskedClient], None], clients: Sequence[MaskedClient] | None = None) -> None:
        for client in self.clients if clients is None else clients:
            act(client)

    def expected(self, survivors: Sequence[MaskedClient] | None = None) -> Int64Array:
        """Gives the sum of what those who stayed have sent, as plain integers."""
        total: Int64Array = sum(client.vector for client in (self.clients if survivors is None else survivors))  # type: ignore[assignment]
        return total


def run_through(cohort: MaskedCohort) -> None:
    """Takes everyone through a whole session."""
    ring = cohort.ring
    cohort.seat()
    cohort.phase(MaskedClient.send_shares)
    cohort.phase(lambda client: client.send_input(ring))
    cohort.phase(MaskedClient.send_signature)
    for client in cohort.clients:
        if client.session()["state"] == "unmask":
            client.send_answer()


PHASES = ("seat", "shares", "inputs", "consistency", "unmask")


def at_phase(operator: httpx.Client, own: MaskedClient, phase: str) -> tuple[dict[str, str], bytes]:
    """Takes a client with two others to a phase of a session; gives names, and the message that it has not sent yet."""
    # Whoever is taken here may look around for as long as a loaded machine needs.
    unhurried = {"phase_seconds": 3600}
    run_id = create_run(operator, small_model(), **masked_spec(3, num_rounds=2, secure_aggregation=unhurried))
    others = MaskedCohort.enrol(operator, run_id, 2)
    cohort = MaskedCohort([own, *others.clients], run_id, others.spec)
    cohort.claim()
    names = {"run_id": run_id, "client_id": own.client_id, "task_id": own.task["task_id"]}
    names["public_key"] = keys.identity_public_key(own.identity).hex()
    assert own.register().status_code in (200, 201)
    if phase == "seat":
        return names, own.advertise()
    cohort.seat()
    names |= {"session_id": own.session_id, "index": str(own.index)}
    messages = {"shares": own.deal()}
    for earlier, following in itertools.pairwise(PHASES[1 : PHASES.index(phase) + 1]):
        own.send(earlier, messages[earlier])
        cohort.phase(lambda client, what=earlier: client.send_next(what, cohort.ring), others.clients)  # type: ignore[misc]
        messages[following] = own.message_of(following, cohort.ring)
    return names, messages[phase]


def let_time_pass(server: ServerProcess, run_id: str) -> None:
    """Lets the deadlines of a run's sessions, and of those who wait for one, be over now, however slow the machine."""
    with Stored(server.database_url) as stored:
        stored.change("UPDATE sessions SET deadline_at = 0 WHERE run_id = :a AND ended_at IS NULL", a=run_id)
        stored.change("UPDATE seats SET waiting_since = 0 WHERE run_id = :a AND state = 'waiting'", a=run_id)
    with server.http() as operator:
        let_worker_look(operator, run_id)


def let_worker_look(operator: httpx.Client, run_id: str) -> None:
    """Lets the worker look at a run's deadlines now: it does when a run moves on, and may have done so by itself."""
    for step in ("pause", "resume"):
        answer = operator.post(f"/v1/runs/{run_id}/{step}")
        ended = operator.get(f"/v1/runs/{run_id}").json()["state"] in {"failed", "completed"}
        assert answer.status_code == 200 or (answer.status_code == 409 and ended), answer.text
