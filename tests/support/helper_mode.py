"""Clients and helpers of helper mode, with nothing but an HTTP library, numpy and the pure half of the protocol."""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx
import numpy as np

from fl_protocol.masked_vectors import ring_of
from fl_protocol.masking import keys
from fl_protocol.masking.contributions import Head, contribution_message, masks_of, open_seed, seal_seed
from fl_protocol.masking.mask_requests import MaskRequest, mask_sum_message, parse_request
from fl_protocol.masking.prg import Mask, apply_masks
from fl_protocol.masking.ring import Int64Array, Ring, pack, to_words
from fl_protocol.runs import RunSpec
from tests.support.masked import BYTES, MaskedClient, quantised, read_spec, some_delta
from tests.support.participant import closing_later, create_run, enrol, small_model


@dataclass
class HelperParty:
    """One helper, its keys and its connection; it believes whatever it is sent, unlike `fedquorum helper`."""

    name: str
    sealing: bytes = field(default_factory=lambda: os.urandom(32))
    signing: bytes = field(default_factory=lambda: os.urandom(32))
    http: httpx.Client | None = None

    @property
    def public(self) -> dict[str, str]:
        """What the run's spec says of it."""
        return {
            "name": self.name,
            "sealing_key": keys.agreement_public_key(self.sealing).hex(),
            "signing_key": keys.identity_public_key(self.signing).hex(),
        }

    def connect(self, operator: httpx.Client) -> httpx.Client:
        """Has the operator make a token, and opens a connection with it."""
        made = operator.post("/v1/helper-tokens", json={"signing_key": self.public["signing_key"]})
        assert made.status_code == 201, made.text
        self.http = closing_later(
            httpx.Client(
                base_url=operator.base_url,
                headers={"Authorization": f"Bearer {made.json()['token']}"},
                timeout=operator.timeout,
                trust_env=False,
                verify=False,
            )
        )
        return self.http

    @property
    def web(self) -> httpx.Client:
        assert self.http is not None
        return self.http

    def pending(self, wait: float = 20) -> list[dict[str, Any]]:
        answer = self.web.get("/v1/helper-requests", params={"wait": wait})
        assert answer.status_code == 200, answer.text
        found: list[dict[str, Any]] = answer.json()["items"]
        return found

    def raw(self, request_id: str) -> bytes:
        answer = self.web.get(f"/v1/helper-requests/{request_id}")
        assert answer.status_code == 200, answer.text
        return answer.content

    def read(self, request_id: str) -> MaskRequest:
        return parse_request(self.raw(request_id))

    def verdict(self, request_id: str, **said: Any) -> httpx.Response:
        return self.web.put(f"/v1/helper-requests/{request_id}/verdict", json=said)

    def mask_sum(self, request: MaskRequest, ring: Ring, num_elements: int) -> bytes:
        """Gives the answer to a request: the signature, and the sum of the members' masks."""
        total = np.zeros(num_elements, dtype=ring.dtype)
        for member in request.members:
            seed = open_seed(
                member.sealed[request.helper],
                self.sealing,
                context=request.context,
                helper=request.helper,
                client_id=member.client_id,
                vector_digest=member.vector_digest,
            )
            key = keys.helper_mask_key(seed, context=request.context, helper=request.helper)
            apply_masks(total, [Mask(key)])
        return self.signed(request, pack(total, ring.bits))

    def signed(self, request: MaskRequest, packed: bytes) -> bytes:
        """Signs a sum, whatever it is."""
        message = mask_sum_message(
            context=request.context,
            helper=request.helper,
            members_digest=request.members_digest,
            sum_digest=hashlib.sha256(packed).digest(),
        )
        return keys.sign(self.signing, message) + packed

    def put(self, request_id: str, answer: bytes) -> httpx.Response:
        return self.web.put(f"/v1/helper-requests/{request_id}/mask-sum", content=answer, headers=BYTES)


@dataclass
class Contributor:
    """One client of a run in helper mode; `vector` is what it adds to the sum, before its masks."""

    client: MaskedClient
    message: bytes = b""

    @property
    def roster_line(self) -> str:
        return f"{self.client.client_id} {keys.identity_public_key(self.client.identity).hex()}\n"

    def message_for(self, spec: RunSpec, ring: Ring) -> bytes:
        """Masks the vector and makes the one message."""
        helpers = spec.secure_aggregation.helpers  # type: ignore[union-attr]
        context = keys.context(self.client.manifest)
        seeds = [os.urandom(32) for _ in helpers]
        words = to_words(self.client.vector, ring)
        apply_masks(words, masks_of(seeds, context=context))
        packed = pack(words, ring.bits)
        digest, client_id = hashlib.sha256(packed).digest(), bytes.fromhex(self.client.client_id.partition("_")[2])
        sealed = tuple(
            seal_seed(
                seed,
                bytes.fromhex(helper.sealing_key),
                context=context,
                helper=number,
                client_id=client_id,
                vector_digest=digest,
                ephemeral=os.urandom(32),
            )
            for number, (seed, helper) in enumerate(zip(seeds, helpers, strict=True))
        )
        message = contribution_message(context=context, client_id=client_id, vector_digest=digest, sealed=sealed)
        return Head(self.client.sign(message), sealed).render() + packed

    def put(self, message: bytes | None = None, **headers: str) -> httpx.Response:
        url = f"/v1/tasks/{self.client.task['task_id']}/contribution"
        content = self.message if message is None else message
        return self.client.http.put(url, content=content, headers=BYTES | headers)


def helper_spec(num_clients: int, helpers: Sequence[HelperParty], **changes: Any) -> dict[str, Any]:
    """Gives a spec of one round of so many clients, all of whom are waited for."""
    secure = {"kind": "helper", "min_members": 3, "helpers": [helper.public for helper in helpers]}
    secure |= changes.pop("secure_aggregation", {})
    round_ = {"quorum": num_clients, "cohort_size": num_clients} | changes.pop("round", {})
    return {"num_rounds": 1, "round": round_, "secure_aggregation": secure} | changes


@dataclass
class HelperFederation:
    """The clients and the helpers of one run in helper mode."""

    clients: list[Contributor]
    helpers: list[HelperParty]
    run_id: str
    spec: RunSpec
    ring: Ring

    @classmethod
    def enrol(cls, http: httpx.Client, run_id: str, num_clients: int, helpers: list[HelperParty]) -> "HelperFederation":
        clients = [Contributor(MaskedClient(enrol(http, f"contributes-{number}"))) for number in range(num_clients)]
        for helper in helpers:
            if helper.http is None:
                helper.connect(http)
        spec = read_spec(http, run_id)
        return cls(clients, helpers, run_id, spec, ring_of(spec))

    @property
    def num_elements(self) -> int:
        return int(self.clients[0].client.vector.size)

    def claim(self, examples: Sequence[int] | None = None) -> None:
        """Claims every client's task, trains, and makes its message."""
        for number, one in enumerate(self.clients):
            assert one.client.register().status_code in (200, 201)
            one.client.claim(self.run_id)
            one.client.vector = quantised(
                some_delta(number), self.spec, num_examples=1 if examples is None else examples[number]
            )
            one.message = one.message_for(self.spec, self.ring)

    def contribute(self, clients: Sequence[Contributor] | None = None) -> None:
        for one in self.clients if clients is None else clients:
            taken = one.put()
            assert taken.status_code == 201, taken.text

    def check(self, helpers: Sequence[HelperParty] | None = None) -> None:
        """Has every helper find nothing wrong."""
        for helper in self.helpers if helpers is None else helpers:
            (asked,) = helper.pending()
            assert asked["phase"] == "checking"
            assert helper.verdict(asked["request_id"]).status_code == 204

    def answer(self, helpers: Sequence[HelperParty] | None = None) -> None:
        """Has every helper tell its sum of masks."""
        for helper in self.helpers if helpers is None else helpers:
            (asked,) = helper.pending()
            assert asked["phase"] == "releasing"
            request = helper.read(asked["request_id"])
            taken = helper.put(asked["request_id"], helper.mask_sum(request, self.ring, self.num_elements))
            assert taken.status_code == 201, taken.text

    def expected(self, clients: Sequence[Contributor] | None = None) -> Int64Array:
        """Gives the sum of what some clients have sent, as plain integers."""
        total: Int64Array = sum(one.client.vector for one in (self.clients if clients is None else clients))  # type: ignore[assignment]
        return total


HELPER_PHASES = ("contribution", "asked", "releasing")


def at_helper_phase(
    operator: httpx.Client, own: MaskedClient, helper: HelperParty, phase: str
) -> tuple[dict[str, str], bytes]:
    """Takes a client with two others, and a helper, to a phase; gives names, and the message that is not sent yet."""
    run_id = create_run(operator, small_model(), **helper_spec(3, [helper], num_rounds=2))
    others = HelperFederation.enrol(operator, run_id, 2, [helper])
    made = HelperFederation([Contributor(own), *others.clients], [helper], run_id, others.spec, others.ring)
    made.claim()
    names = {"run_id": run_id, "task_id": own.task["task_id"], "signing_key": helper.public["signing_key"]}
    if phase == "contribution":
        return names, made.clients[0].message
    made.contribute()
    (asked,) = [one for one in helper.pending() if one["run_id"] == run_id]
    names["request_id"] = asked["request_id"]
    request = helper.read(asked["request_id"])
    if phase == "releasing":
        assert helper.verdict(asked["request_id"]).status_code == 204
    return names, helper.mask_sum(request, made.ring, made.num_elements)
