"""The server's memory is bounded by a tile, not by clients x model."""

import itertools
import json
import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray

from tests.support.participant import MEDIA_TYPE, Participant, enrol, wait_for_run
from tests.support.server import ServerProcess

NUM_UPDATES = 50
NUM_PARAMETERS = 10_000_000
MAX_MEGABYTES = 300
CLIENTS_AT_ONCE = 4
PIECE_BYTES = 1 << 20
SHAPES = {"wide": (9_000, 1_000), "narrow": (999_999,), "one": (1,)}
PLACES = [0, 262_143, 262_144, 8_999_999, 9_000_000, 9_999_998, 9_999_999]


def _header(metadata: dict[str, str]) -> bytes:
    ends = itertools.accumulate(4 * math.prod(shape) for shape in SHAPES.values())
    entries: dict[str, object] = {"__metadata__": metadata}
    for (name, shape), end in zip(SHAPES.items(), ends, strict=True):
        entries[name] = {"dtype": "F32", "shape": shape, "data_offsets": [end - 4 * math.prod(shape), end]}
    text = json.dumps(entries).encode()
    return len(text).to_bytes(8, "little") + text


def _weight(number: int) -> int:
    return 1 + number * 37


class _Bodies:
    """Makes every body from a few random pieces in another order, so that 2 GB cost no time to make."""

    def __init__(self) -> None:
        generator = np.random.default_rng(7)
        self._pieces = generator.normal(scale=0.01, size=(7, PIECE_BYTES // 4)).astype(np.float32)

    def pieces(self, number: int) -> Iterator[bytes]:
        yield _header({"num_examples": str(_weight(number))})
        for index, begin in enumerate(range(0, NUM_PARAMETERS, PIECE_BYTES // 4)):
            yield self._piece(number, index)[: NUM_PARAMETERS - begin].tobytes()

    def values(self, number: int) -> NDArray[np.float64]:
        """Gives the body's elements at PLACES."""
        places = [divmod(place, PIECE_BYTES // 4) for place in PLACES]
        return np.array([self._piece(number, index)[within] for index, within in places], dtype=np.float64)

    def _piece(self, number: int, index: int) -> NDArray[np.float32]:
        piece: NDArray[np.float32] = self._pieces[(number + index * (1 + number // 7)) % 7]
        return piece


def _create_run(operator: httpx.Client) -> str:
    run_id: str = operator.post(
        "/v1/runs", json={"name": "large", "num_rounds": 1, "round": {"quorum": NUM_UPDATES}}
    ).json()["run_id"]
    zeros = bytes(PIECE_BYTES)
    whole, rest = divmod(4 * NUM_PARAMETERS, PIECE_BYTES)
    body = itertools.chain([_header({})], itertools.repeat(zeros, whole), [zeros[:rest]])
    answer = operator.put(f"/v1/runs/{run_id}/models/0", content=body, headers={"Content-Type": MEDIA_TYPE})
    assert answer.status_code == 201, answer.text
    assert operator.post(f"/v1/runs/{run_id}/start").status_code == 200
    return run_id


def _send(participant: Participant, run_id: str, body: Iterator[bytes]) -> None:
    task = participant.claim(run_id).json()
    answer = participant.http.put(
        f"/v1/tasks/{task['task_id']}/update", content=body, headers={"Content-Type": MEDIA_TYPE}
    )
    assert answer.status_code == 201, answer.text
    participant.http.close()


@pytest.fixture
def large_server(tmp_path: Path) -> Iterator[ServerProcess]:
    process = ServerProcess(f"sqlite:///{tmp_path}/large.db", tmp_path).start()
    yield process
    process.kill()
    for file in tmp_path.glob("large.db*"):
        file.unlink()


def test_fifty_updates_of_ten_million_parameters_fit_in_300_megabytes(large_server: ServerProcess) -> None:
    bodies = _Bodies()
    with large_server.http() as operator:
        run_id = _create_run(operator)
        participants = [enrol(operator, f"client-{number}") for number in range(NUM_UPDATES)]
        with ThreadPoolExecutor(CLIENTS_AT_ONCE) as pool:
            jobs = [
                pool.submit(_send, participant, run_id, bodies.pieces(number))
                for number, participant in enumerate(participants)
            ]
            for job in jobs:
                job.result()
        peak_while_receiving = large_server.resident_megabytes()
        model = wait_for_run(operator, run_id, version=1).content
    peak = large_server.resident_megabytes()
    print(f"peak memory {peak_while_receiving:.0f} MiB while receiving, {peak:.0f} MiB in all")
    assert peak < MAX_MEGABYTES
    found = np.frombuffer(model[-4 * NUM_PARAMETERS :], dtype=np.float32)[PLACES]
    weights = [_weight(number) for number in range(NUM_UPDATES)]
    expected = np.average([bodies.values(number) for number in range(NUM_UPDATES)], axis=0, weights=weights)
    np.testing.assert_allclose(found, expected, rtol=2e-7, atol=0.05 * 2**-45)
