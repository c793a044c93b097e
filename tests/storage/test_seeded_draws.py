"""The same clients and the same seed make the same cohort, whichever database they are in and in whatever order."""

import hashlib
import hmac
from typing import Any

import pytest

from aggregator_service.flow import cohorts
from aggregator_service.storage import attendance, clients, invitations, rounds, runs
from aggregator_service.storage.transactions import ReadTx, WriteTx
from fl_protocol.runs import RunSpec
from tests.support.records import client_record, round_record, run_record
from tests.support.store import Store, flow_on

REGIONS = {f"client_{number:032x}": region for number, region in enumerate("nnnnsssw")}
GOLDEN = {"uniform": (1, 3, 6, 4), "stratified": (1, 3, 6, 7)}
"""Written down once: a release that drew otherwise from the same seed would break what a paper has recorded."""


@pytest.mark.parametrize("backwards", [False, True], ids=["forwards", "backwards"])
@pytest.mark.parametrize("kind", ["uniform", "stratified"])
async def test_a_seed_draws_the_same_cohort_on_both_databases(store: Store, kind: str, backwards: bool) -> None:
    own: dict[str, Any] = {"attribute": "region"} if kind == "stratified" else {}
    spec = RunSpec.model_validate({"selection": {"kind": kind, "seed": 2026} | own, "round": {"quorum": 4}})
    run, round_ = run_record(spec=spec), round_record(number=4, attempt=2, quorum=4, cohort_size=4)
    flow = flow_on(store)

    def body(tx: WriteTx) -> None:
        runs.insert(tx, run)
        rounds.insert(tx, round_)
        for client_id in sorted(REGIONS, reverse=backwards):
            clients.insert(tx, client_record(client_id, attributes={"region": REGIONS[client_id]}))
            attendance.mark_seen(tx, run.run_id, client_id)
        cohorts.open_cohort(flow, tx, run, round_)

    store.write(body)
    drawn = [client_id for client_id in by_documented_order() if store.read(lambda tx, one=client_id: invited(tx, one))]
    assert tuple(int(client_id[-1], 16) for client_id in drawn) == GOLDEN[kind]
    if kind == "uniform":
        assert drawn == by_documented_order()[:4]


def by_documented_order() -> list[str]:
    key = hashlib.sha256(b"fedquorum selection 2026 4 2").digest()
    return sorted(REGIONS, key=lambda client_id: hmac.new(key, client_id.encode(), hashlib.sha256).digest())


def invited(tx: ReadTx, client_id: str) -> bool:
    return invitations.find(tx, "round_1", client_id) is True
