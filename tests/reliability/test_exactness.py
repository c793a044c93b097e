"""The published model is the exactly computed weighted mean added to its base, and the same bits in any order."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray

from tests.support.ledger import digest_of
from tests.support.participant import MEDIA_TYPE, Tensors, create_run, unpack, update_body, wait_for_run
from tests.support.server import ServerProcess
from tests.support.zygote import Zygote

LONG = 3600
MAX_WEIGHT = 1_000_000


@dataclass(frozen=True)
class Contribution:
    """What one client sends: its delta and its number of examples."""

    delta: Tensors
    weight: int


@dataclass
class Crowd:
    """An operator and clients of one server, of which as many take part as there are contributions."""

    operator: httpx.Client
    tokens: list[str] = field(default_factory=list)

    def run(self, model: Tensors, contributions: Sequence[Contribution], *, num_rounds: int = 1, **spec: Any) -> str:
        """Creates a run whose quorum is everybody and lets everybody contribute in each of its rounds."""
        rounds = {"quorum": len(contributions), "deadline_seconds": LONG}
        run_id = create_run(self.operator, model, num_rounds=num_rounds, round=rounds, **spec)
        for number in range(1, num_rounds + 1):
            self.round(run_id, contributions)
            wait_for_run(self.operator, run_id, version=number)
        return run_id

    def round(self, run_id: str, contributions: Sequence[Contribution]) -> None:
        """Sends the contributions in the given order; the same client need not send the same one each time."""
        for client, contribution in enumerate(contributions):
            self.send(client, self.claim(run_id, client), contribution)

    def claim(self, run_id: str, client: int) -> str:
        """Claims a new task and gives its id."""
        while len(self.tokens) <= client:
            name = f"client-{len(self.tokens)}"
            made = self.operator.post("/v1/clients", json={"name": name, "attributes": {}})
            self.tokens.append(made.json()["token"])
        claimed = self.operator.post(f"/v1/runs/{run_id}/tasks", headers=self._caller(client))
        assert claimed.status_code == 201, claimed.text
        task_id: str = claimed.json()["task_id"]
        return task_id

    def send(self, client: int, task_id: str, contribution: Contribution) -> None:
        """Answers a task."""
        accepted = self.operator.put(
            f"/v1/tasks/{task_id}/update",
            content=update_body(contribution.delta, num_examples=contribution.weight),
            headers=self._caller(client) | {"Content-Type": MEDIA_TYPE},
        )
        assert accepted.status_code == 201, accepted.text

    def _caller(self, client: int) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.tokens[client]}"}

    def model(self, run_id: str, version: int) -> bytes:
        """Downloads a version."""
        return self.operator.get(f"/v1/runs/{run_id}/models/{version}").content


@pytest.fixture(scope="module")
def crowd(shared_operator: httpx.Client) -> Crowd:
    """The clients of the module's server, on each database."""
    return Crowd(shared_operator)


@pytest.fixture
def crowds(tmp_path: Path, postgres_url: str, forking: Zygote) -> Iterator[list[Crowd]]:
    """Clients of two servers, one on each database."""
    processes = []
    for number, url in enumerate((f"sqlite:///{tmp_path}/fedquorum.db", postgres_url)):
        folder = tmp_path / str(number)
        folder.mkdir()
        processes.append(ServerProcess(url, folder, zygote=forking).start())
    with processes[0].http() as first, processes[1].http() as second:
        yield [Crowd(first), Crowd(second)]
    for process in processes:
        process.kill()


def example(number: int, seed: int) -> tuple[Tensors, list[Contribution]]:
    """Makes a base model and deltas of very different magnitudes and weights."""
    source = np.random.default_rng(seed)
    base: Tensors = {
        "wide": (source.normal(size=(4, 5)) * 10.0 ** source.integers(-3, 2, size=(4, 5))).astype(np.float32),
        "bias": np.zeros(3, dtype=np.float32),
    }
    contributions = []
    for _ in range(number):
        spread = 10.0 ** source.uniform(-6, 1)
        delta: Tensors = {
            name: (source.normal(size=one.shape) * spread).astype(np.float32) for name, one in base.items()
        }
        contributions.append(Contribution(delta, int(np.exp(source.uniform(0, np.log(MAX_WEIGHT))))))
    contributions[0] = Contribution(contributions[0].delta, 1)
    contributions[-1] = Contribution(contributions[-1].delta, MAX_WEIGHT)
    return base, contributions


def exact_mean(contributions: Sequence[Contribution], name: str, element: int) -> Fraction:
    """Computes the weighted mean of one element exactly."""
    held = [one for one in contributions if name in one.delta]
    total = sum(one.weight for one in held)
    return sum((_exactly(one.delta[name], element) * one.weight for one in held), Fraction()) / total


def _exactly(values: NDArray[Any], element: int) -> Fraction:
    value = values.reshape(-1)[element]
    return Fraction(int(value)) if values.dtype.kind == "i" else Fraction(float(value))


def tolerance(exact: Fraction, contributions: Sequence[Contribution], name: str) -> Fraction:
    """Gives the contract's bound: 1 unit in the last place, or the stated grid where that is coarser."""
    dtype = contributions[0].delta[name].dtype
    unit = Fraction(float(np.spacing(np.abs(np.array(float(exact))).astype(dtype))))
    largest = max(Fraction(float(np.abs(one.delta[name]).max())) * one.weight for one in contributions)
    total = sum(one.weight for one in contributions)
    return max(unit, len(contributions) * Fraction(2) ** -45 * largest / total)


def check_exact(found: Tensors, base: Tensors, contributions: Sequence[Contribution]) -> None:
    """Holds every floating-point element of a model against exact arithmetic."""
    for name, values in found.items():
        assert values.dtype == base[name].dtype
        assert values.shape == base[name].shape
        for element in range(values.size):
            exact = _exactly(base[name], element) + exact_mean(contributions, name, element)
            error = abs(_exactly(values, element) - exact)
            assert error <= tolerance(exact, contributions, name), (name, element, float(error))


@pytest.mark.parametrize("number", [2, 3, 10, 50, 100])
def test_the_model_is_the_exact_weighted_mean_for_any_number_of_clients(crowd: Crowd, number: int) -> None:
    base, contributions = example(number, seed=number)
    run_id = crowd.run(base, contributions)
    check_exact(unpack(crowd.model(run_id, 1)), base, contributions)


def test_neither_the_order_of_arrival_nor_the_database_changes_a_bit(crowds: list[Crowd]) -> None:
    base, contributions = example(8, seed=1)
    source = np.random.default_rng(2)
    orders = [range(8), range(7, -1, -1), *(source.permutation(8) for _ in range(4))]
    digests = set()
    for crowd in crowds:
        for order in orders:
            run_id = crowd.run(base, [contributions[at] for at in order])
            digests.add(digest_of(crowd.model(run_id, 1)))
    assert len(digests) == 1


AGES = (2, 1, 0)
"""How stale the three updates of the last buffer are."""


def run_to_a_mixed_buffer(
    crowd: Crowd, base: Tensors, contributions: Sequence[Contribution], order: Sequence[int]
) -> str:
    """Fills two buffers with the rest of the contributions, and the last one with the first three in some order."""
    rounds = {"kind": "buffered", "buffer_size": 3, "deadline_seconds": LONG}
    run_id = create_run(crowd.operator, base, num_rounds=3, round=rounds)
    held = []
    for version in range(3):
        held.append(crowd.claim(run_id, version))
        if version < 2:
            for client in (3, 4, 5):
                crowd.send(client, crowd.claim(run_id, client), contributions[client])
            wait_for_run(crowd.operator, run_id, version=version + 1)
    for client in order:
        crowd.send(client, held[client], contributions[client])
    wait_for_run(crowd.operator, run_id, version=3)
    return run_id


def test_a_buffer_of_mixed_staleness_is_exact_and_the_same_bits_in_any_order_on_both_databases(
    crowds: list[Crowd],
) -> None:
    base, contributions = example(6, seed=9)
    digests = set()
    for crowd in crowds:
        for order in ((0, 1, 2), (2, 1, 0), (1, 2, 0)):
            run_id = run_to_a_mixed_buffer(crowd, base, contributions, order)
            digests.add(digest_of(crowd.model(run_id, 3)))
            listed = crowd.operator.get(f"/v1/runs/{run_id}/rounds/3/updates").json()["items"]
            assert sorted(update["staleness"] for update in listed) == sorted(AGES)
    assert len(digests) == 1
    before, found, counted = unpack(crowd.model(run_id, 2)), unpack(crowd.model(run_id, 3)), contributions[:3]
    total = sum(one.weight for one in counted)
    shares = [
        Fraction(1 / Decimal(1 + age).sqrt()) * one.weight / total for age, one in zip(AGES, counted, strict=True)
    ]
    for name, values in found.items():
        for element, value in enumerate(values.flat):
            moves = (share * _exactly(one.delta[name], element) for share, one in zip(shares, counted, strict=True))
            exact = _exactly(before[name], element) + sum(moves, Fraction())
            assert abs(Fraction(float(value)) - exact) <= tolerance(exact, counted, name)


def test_momentum_goes_on_with_the_same_bits_after_a_restart(server: ServerProcess) -> None:
    base, contributions = example(3, seed=3)
    optimizer = {"kind": "sgd", "learning_rate": 0.3, "momentum": 0.9}
    with server.http() as operator:
        crowd = Crowd(operator)
        expected_run = crowd.run(base, contributions, num_rounds=5, server_optimizer=optimizer)
        expected = [crowd.model(expected_run, version) for version in range(6)]
        rounds = {"quorum": 3, "deadline_seconds": LONG}
        run_id = create_run(operator, base, num_rounds=5, round=rounds, server_optimizer=optimizer)
    tokens = crowd.tokens
    for version in range(1, 6):
        server.kill()
        server.start()
        with server.http() as operator:
            crowd = Crowd(operator, tokens)
            crowd.round(run_id, contributions)
            wait_for_run(operator, run_id, version=version)
            assert crowd.model(run_id, version) == expected[version]
    check_momentum([unpack(body) for body in expected], contributions)


def check_momentum(models: Sequence[Tensors], contributions: Sequence[Contribution]) -> None:
    """Holds each version against the previous one and a float64 velocity."""
    for name, initial in models[0].items():
        mean = np.array([float(exact_mean(contributions, name, at)) for at in range(initial.size)]).reshape(
            initial.shape
        )
        velocity = np.zeros(initial.shape)
        for before, after in itertools.pairwise(models):
            velocity = 0.9 * velocity + mean
            expected = (before[name].astype(np.float64) + 0.3 * velocity).astype(np.float32)
            np.testing.assert_array_max_ulp(after[name], expected, maxulp=1)


def test_every_type_of_tensor_moves_by_its_own_exact_mean(crowd: Crowd) -> None:
    source = np.random.default_rng(5)
    base: Tensors = {
        "single": source.normal(size=6).astype(np.float32),
        "double": source.normal(size=6),
        "half": source.normal(size=6).astype(np.float16),
        "steps": np.array([10, -7, 2**40], dtype=np.int64),
        "counter": np.array(3, dtype=np.int32),
    }
    contributions = []
    for at, weight in enumerate((1, 3, 999_999)):
        delta: Tensors = {
            "single": source.normal(size=6).astype(np.float32),
            "double": source.normal(size=6),
            "half": source.normal(size=6).astype(np.float16),
            "steps": np.array([at, -at, at * 1000], dtype=np.int64),
        }
        # Integer tensors may be left out; their mean is then that of the updates which hold them.
        contributions.append(Contribution(delta if at == 1 else delta | {"counter": np.array(at, np.int32)}, weight))
    found = unpack(crowd.model(crowd.run(base, contributions), 1))
    floats = ("single", "double", "half")
    check_exact({name: found[name] for name in floats}, base, contributions)
    for name in ("steps", "counter"):
        assert found[name].dtype == base[name].dtype
        moved = [
            int(base[name].reshape(-1)[at]) + round(exact_mean(contributions, name, at))
            for at in range(base[name].size)
        ]
        assert found[name].reshape(-1).tolist() == moved
