"""Who is asked: each kind of selection, eligibility, rotation and exclusion on a real server with instant clients."""

import hashlib
import hmac
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from itertools import chain, pairwise

import httpx
import pytest

from tests.support.federation import MODEL, answer_all, claim_all, draft, federation, play, round_of, start, update
from tests.support.participant import Participant, create_run, enrol, wait_for_run
from tests.support.refusals import assert_refused
from tests.support.waiting import eventually

MIXED = {"north": 5, "south": 3, "west": 2}


def _clients(operator: httpx.Client, number: int) -> list[Participant]:
    return [enrol(operator, f"client-{index}", region="north") for index in range(number)]


def _ids(clients: list[Participant]) -> set[str]:
    return {client.client_id for client in clients}


@pytest.mark.parametrize("allocation", ["proportional", "equal"])
def test_each_strata_share_is_exact_to_one_client_over_the_rounds(
    shared_operator: httpx.Client, allocation: str
) -> None:
    strata = federation(shared_operator, MIXED)
    clients = list(chain(*strata.values()))
    region_of = {client.client_id: region for region, members in strata.items() for client in members}
    own = {"region": list(MIXED)}
    selection = {"kind": "stratified", "attribute": "region", "allocation": allocation, "eligibility": own}
    run_id = draft(shared_operator, clients, num_rounds=4, round={"quorum": 4}, selection=selection)
    population = Counter(strata_of_server(shared_operator)) if allocation == "proportional" else Counter(MIXED.keys())
    start(shared_operator, run_id)
    taken = Counter[str]()
    for number in range(1, 5):
        chosen = play(shared_operator, clients, run_id, round_number=number)
        assert len(chosen) == 4
        taken.update(region_of[client_id] for client_id in chosen)
        for region in MIXED:
            due = Fraction(4 * number * population[region], sum(population.values()))
            assert abs(taken[region] - due) < 1, (number, region, taken)


def strata_of_server(operator: httpx.Client) -> list[str]:
    """Gives the region of every client that is enrolled and not revoked; other tests enrol clients too."""
    listed = operator.get("/v1/clients", params={"limit": 1000}).json()["items"]
    regions = [client["attributes"].get("region") for client in listed if client["revoked_at"] is None]
    return [region for region in regions if region in MIXED]


def test_a_client_that_gives_up_is_replaced_by_another_of_its_stratum(shared_operator: httpx.Client) -> None:
    strata = federation(shared_operator, {"red": 3, "blue": 3})
    clients = list(chain(*strata.values()))
    selection = {"kind": "stratified", "attribute": "region", "eligibility": {"region": ["red", "blue"]}}
    run_id = draft(shared_operator, clients, round={"quorum": 2}, selection=selection)
    start(shared_operator, run_id)
    tasks = claim_all(clients, run_id)
    assert [len(tasks.keys() & _ids(members)) for members in strata.values()] == [1, 1]
    (first,) = (client for client in strata["red"] if client.client_id in tasks)
    assert first.http.delete(f"/v1/tasks/{tasks[first.client_id]['task_id']}").status_code == 204
    after = claim_all(clients, run_id)
    assert [len(after.keys() & _ids(members)) for members in strata.values()] == [1, 1]
    assert first.client_id not in after
    assert round_of(shared_operator, run_id)["num_tasks"] == 2


def test_a_uniform_cohort_can_be_repeated_from_its_seed(shared_operator: httpx.Client) -> None:
    clients = _clients(shared_operator, 7)
    selection = {"kind": "uniform", "seed": 12}
    run_id = draft(shared_operator, clients, num_rounds=3, round={"quorum": 3}, selection=selection)
    start(shared_operator, run_id)
    for number in (1, 2, 3):
        key = hashlib.sha256(f"fedquorum selection 12 {number} 1".encode()).digest()
        order = sorted(_ids(clients), key=lambda client_id: hmac.new(key, client_id.encode(), hashlib.sha256).digest())
        assert play(shared_operator, clients, run_id, round_number=number) == set(order[:3])


def test_waiting_clients_are_woken_when_they_are_drawn(shared_operator: httpx.Client) -> None:
    """Nobody is drawn before as many are there as the cohort has places; then everyone who waits hears of it."""
    clients = _clients(shared_operator, 3)
    run_id = create_run(shared_operator, MODEL, round={"quorum": 3}, selection={"kind": "uniform"})
    with ThreadPoolExecutor(2) as pool:
        waiting = [pool.submit(client.claim, run_id, 30) for client in clients[:2]]
        for client in clients[:2]:
            eventually(lambda client=client: _last_seen(shared_operator, client) is not None)
        assert not any(job.done() for job in waiting)
        assert clients[2].claim(run_id, wait=8).status_code == 201
        assert [job.result(timeout=8).status_code for job in waiting] == [201, 201]


def test_a_draw_makes_do_with_those_who_are_there_after_a_quarter_of_the_time(shared_operator: httpx.Client) -> None:
    client, late = _clients(shared_operator, 2)
    spec = {"quorum": 2, "min_updates": 1, "deadline_seconds": 8}
    run_id = create_run(shared_operator, MODEL, num_rounds=1, round=spec, selection={"kind": "uniform"})
    assert client.claim(run_id).status_code == 204
    claimed = client.claim(run_id, wait=7)
    assert claimed.status_code == 201
    # Whoever comes later takes the place that is left.
    other = late.claim(run_id)
    assert other.status_code == 201
    answer_all([client, late], {client.client_id: claimed.json(), late.client_id: other.json()})
    wait_for_run(shared_operator, run_id, version=1)


def test_a_round_that_nobody_comes_to_is_abandoned_and_the_run_ends(shared_operator: httpx.Client) -> None:
    spec = {"quorum": 1, "deadline_seconds": 0.2, "max_attempts": 2}
    selection = {"kind": "uniform", "eligibility": {"region": ["nowhere"]}}
    run_id = create_run(shared_operator, MODEL, round=spec, selection=selection)
    eventually(lambda: shared_operator.get(f"/v1/runs/{run_id}").json()["state"] == "failed")
    assert shared_operator.get(f"/v1/runs/{run_id}").json()["reason"] == (
        "round 1 was abandoned 2 times: 0 of at least 1 updates arrived within 0.2 s; "
        "of the enrolled clients selection admits 0 to that round"
    )


def test_coins_never_cut_at_a_goal(shared_operator: httpx.Client) -> None:
    """With a quorum of 1 every client whose coin came up is accepted; the last one closes the round, no deadline."""
    clients = _clients(shared_operator, 12)
    own = {"eligibility": {"region": ["north"]}}
    spec = {"quorum": 1, "deadline_seconds": 3600}
    selection = {"kind": "poisson", "probability": 0.5, "population": 40} | own
    even = {"weighting": "uniform"}
    tries = 0
    while True:  # once in 2^12 nobody's coin comes up
        run_id = create_run(shared_operator, MODEL, num_rounds=1, round=spec, selection=selection, strategy=even)
        tasks = claim_all(clients, run_id)
        # The coins of clients that other tests enrolled came up too; exclude them, and nobody else is waited for.
        _exclude_others(shared_operator, run_id, clients)
        if tasks:
            break
        tries += 1
        assert tries < 3
    assert claim_all(clients, run_id).keys() == tasks.keys()
    chosen = [client for client in clients if client.client_id in tasks]
    answer_all(chosen[:-1], tasks)
    before = round_of(shared_operator, run_id)
    assert before["state"] == "collecting"
    assert (before["num_updates"], before["expected_cohort"]) == (len(chosen) - 1, 20.0)
    answer_all(chosen[-1:], tasks)
    wait_for_run(shared_operator, run_id, version=1)
    assert round_of(shared_operator, run_id)["num_updates"] == len(chosen)


def _exclude_others(operator: httpx.Client, run_id: str, clients: list[Participant]) -> None:
    listed = operator.get("/v1/clients", params={"limit": 1000}).json()["items"]
    for client in listed:
        if client["client_id"] not in _ids(clients):
            where = f"/v1/runs/{run_id}/exclusions/{client['client_id']}"
            assert operator.put(where, json={"reason": "of another test"}).status_code == 201


def test_coins_are_tossed_for_clients_that_come_later_and_a_given_up_task_is_not_waited_for(
    shared_operator: httpx.Client,
) -> None:
    selection = {"kind": "poisson", "probability": 1.0, "eligibility": {"region": ["late"]}}
    spec = {"quorum": 2, "deadline_seconds": 3600}
    run_id = create_run(shared_operator, MODEL, num_rounds=1, round=spec, selection=selection)
    clients = [enrol(shared_operator, f"late-{index}", region="late") for index in range(3)]
    tasks = claim_all(clients, run_id)
    assert len(tasks) == 3
    answer_all(clients[:2], tasks)
    assert round_of(shared_operator, run_id)["state"] == "collecting"
    assert clients[2].http.delete(f"/v1/tasks/{tasks[clients[2].client_id]['task_id']}").status_code == 204
    wait_for_run(shared_operator, run_id, version=1)
    assert round_of(shared_operator, run_id)["num_updates"] == 2


@pytest.mark.parametrize("kind", ["open", "uniform"])
def test_only_eligible_clients_are_asked(shared_operator: httpx.Client, kind: str) -> None:
    odd = {"site.name-1": "a 'b' \"c\" ü"}
    eligible = enrol(shared_operator, "eligible", region="east", **odd)
    others = [
        enrol(shared_operator, "elsewhere", region="west", **odd),
        enrol(shared_operator, "incomplete", region="east"),
        enrol(shared_operator, "nothing"),
    ]
    asked_for = {"region": ["east", "centre"], "site.name-1": list(odd.values())}
    selection = {"kind": kind, "eligibility": asked_for}
    run_id = create_run(shared_operator, MODEL, num_rounds=1, round={"quorum": 1}, selection=selection)
    assert claim_all([*others, eligible], run_id).keys() == {eligible.client_id}


@pytest.mark.parametrize("kind", ["open", "uniform", "poisson"])
def test_clients_rest_and_take_part_a_bounded_number_of_times(shared_operator: httpx.Client, kind: str) -> None:
    region = f"rotation-{kind}"
    clients = [enrol(shared_operator, f"client-{index}", region=region) for index in range(4)]
    rule = {"eligibility": {"region": [region]}, "min_separation": 1, "max_participations": 2}
    selection = {"kind": kind} | rule | ({"probability": 1.0} if kind == "poisson" else {})
    quorum = 4 if kind == "poisson" else 2
    spec = {"quorum": quorum, "min_updates": 1, "deadline_seconds": 3600}
    run_id = draft(shared_operator, clients, num_rounds=6, round=spec, selection=selection)
    start(shared_operator, run_id)
    if kind == "poisson":
        assert len(play(shared_operator, clients, run_id, round_number=1)) == 4
        assert claim_all(clients, run_id) == {}
        return
    history = [play(shared_operator, clients, run_id, round_number=number) for number in range(1, 5)]
    assert [len(chosen) for chosen in history] == [2, 2, 2, 2]
    assert all(not before & after for before, after in pairwise(history))
    assert Counter(chain(*history)) == dict.fromkeys(_ids(clients), 2)
    assert claim_all(clients, run_id) == {}


def test_an_excluded_client_gets_no_tasks_and_its_place_goes_to_another(shared_operator: httpx.Client) -> None:
    first, second, third = _clients(shared_operator, 3)
    run_id = create_run(shared_operator, MODEL, num_rounds=2, round={"quorum": 2})
    tasks = claim_all([first, second, third], run_id)
    assert tasks.keys() == _ids([first, second])
    answer_all([first], tasks)
    where = f"/v1/runs/{run_id}/exclusions"
    for client, status in ((first, 201), (second, 201), (second, 200)):
        made = shared_operator.put(f"{where}/{client.client_id}", json={"reason": "sends noise"})
        assert made.status_code == status, made.text
    assert_refused(first.claim(run_id), "forbidden", "sends noise")
    assert_refused(second.claim(run_id, wait=5), "forbidden", "sends noise")
    assert_refused(second.put(tasks[second.client_id]["task_id"], update()), "round-closed", "given up")
    listed = shared_operator.get(where, params={"limit": 1}).json()
    rest = shared_operator.get(where, params={"limit": 1, "cursor": listed["next_cursor"]}).json()
    assert {one["client_id"]: one["reason"] for one in listed["items"] + rest["items"]} == dict.fromkeys(
        _ids([first, second]), "sends noise"
    )
    assert play(shared_operator, [third], run_id, round_number=1) == _ids([third])
    counted = shared_operator.get(f"/v1/runs/{run_id}/rounds/1/updates").json()["items"]
    assert {one["client_id"] for one in counted} == _ids([first, third])
    for _ in range(2):
        assert shared_operator.delete(f"{where}/{second.client_id}").status_code == 204
    assert second.claim(run_id).status_code == 201


def test_a_waiting_client_hears_of_its_exclusion_at_once(shared_operator: httpx.Client) -> None:
    (client,) = _clients(shared_operator, 1)
    run_id = create_run(shared_operator, MODEL, start=False)
    with ThreadPoolExecutor(1) as pool:
        job = pool.submit(client.claim, run_id, 30)
        eventually(lambda: _last_seen(shared_operator, client) is not None)
        where = f"/v1/runs/{run_id}/exclusions/{client.client_id}"
        assert shared_operator.put(where, json={"reason": "gone"}).status_code == 201
        assert_refused(job.result(timeout=8), "forbidden", "gone")


def _last_seen(operator: httpx.Client, client: Participant) -> str | None:
    listed = operator.get("/v1/clients", params={"limit": 1000}).json()["items"]
    found: str | None = next(one for one in listed if one["client_id"] == client.client_id)["last_seen_at"]
    return found


def test_exclusions_name_what_does_not_exist(shared_operator: httpx.Client) -> None:
    (client,) = _clients(shared_operator, 1)
    run_id = create_run(shared_operator, MODEL, start=False)
    nobody, nothing = "client_" + "0" * 32, "run_" + "0" * 32
    reason = {"reason": "x"}
    assert_refused(shared_operator.put(f"/v1/runs/{run_id}/exclusions/{nobody}", json=reason), "not-found", "client")
    assert_refused(shared_operator.delete(f"/v1/runs/{run_id}/exclusions/{nobody}"), "not-found", "client")
    for method, path in (("PUT", f"/{client.client_id}"), ("DELETE", f"/{client.client_id}"), ("GET", "")):
        json = reason if method == "PUT" else None
        answer = shared_operator.request(method, f"/v1/runs/{nothing}/exclusions{path}", json=json)
        assert_refused(answer, "not-found", "run")
    for bad in ({}, {"reason": ""}, {"reason": "a\nb"}, {"reason": "x" * 501}, {"reason": 5}):
        refused = shared_operator.put(f"/v1/runs/{run_id}/exclusions/{client.client_id}", json=bad)
        assert_refused(refused, "invalid-request", "reason")
