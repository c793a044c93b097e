"""The server's memory is bounded by a tile, not by clients x model."""

import itertools
import json
import math
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray

from tests.support.participant import MEDIA_TYPE, Participant, enrol
from tests.support.server import ServerProcess

NUM_UPDATES = 50
FEWER = 17
"""More than are read ahead at once (16), so that the peak is that of fifty, in a third of the time."""
MORE = 100
NUM_PARAMETERS = 10_000_000
MAX_MEGABYTES = 300
MAX_MEGABYTES_OF_ALL_AT_ONCE = 500
"""Where a strategy looks at a tile of all updates together."""

AGGREGATION_SECONDS = 900.0
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


def _create_run(operator: httpx.Client, **choices: Any) -> str:
    spec = {"name": "large", "num_rounds": 1} | choices
    run_id: str = operator.post("/v1/runs", json=spec).json()["run_id"]
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


def _await_model(operator: httpx.Client, run_id: str) -> bytes:
    deadline = time.monotonic() + AGGREGATION_SECONDS
    while time.monotonic() < deadline:
        path = f"/v1/runs/{run_id}/models/latest"
        answer = operator.get(path, params={"after": 0, "wait": 60}, timeout=120)
        if answer.status_code == 200:
            return answer.content
    raise TimeoutError(f"no model within {AGGREGATION_SECONDS} s")


def _aggregate(
    server: ServerProcess, bodies: _Bodies, *, num_updates: int = NUM_UPDATES, **choices: Any
) -> NDArray[np.float32]:
    """Sends all updates, four at a time, and gives the new model's elements at PLACES."""
    with server.http() as operator:
        run_id = _create_run(operator, round={"quorum": num_updates}, **choices)
        participants = [enrol(operator, f"client-{number}") for number in range(num_updates)]
        with ThreadPoolExecutor(CLIENTS_AT_ONCE) as pool:
            jobs = [
                pool.submit(_send, participant, run_id, bodies.pieces(number))
                for number, participant in enumerate(participants)
            ]
            for job in jobs:
                job.result()
        peak_while_receiving = server.resident_megabytes()
        model = _await_model(operator, run_id)
        peak = server.resident_megabytes()
        print(f"peak memory {peak_while_receiving:.0f} MiB while receiving, {peak:.0f} MiB in all")
    return np.frombuffer(model[-4 * NUM_PARAMETERS :], dtype=np.float32)[PLACES]


@pytest.mark.parametrize(
    "num_updates",
    [FEWER, pytest.param(NUM_UPDATES, marks=pytest.mark.soak), pytest.param(MORE, marks=pytest.mark.soak)],
)
def test_fifty_updates_of_ten_million_parameters_fit_in_300_megabytes(
    large_server: ServerProcess, num_updates: int
) -> None:
    bodies = _Bodies()
    found = _aggregate(large_server, bodies, num_updates=num_updates, strategy={"kind": "mean"})
    assert large_server.resident_megabytes() < MAX_MEGABYTES
    weights = [_weight(number) for number in range(num_updates)]
    expected = np.average([bodies.values(number) for number in range(num_updates)], axis=0, weights=weights)
    np.testing.assert_allclose(found, expected, rtol=2e-7, atol=0.05 * 2**-45)


@pytest.mark.parametrize(
    ("kind", "num_updates"),
    [
        ("central_blt", 2),
        pytest.param("central_gaussian", NUM_UPDATES, marks=pytest.mark.soak),
        pytest.param("central_gaussian_adaptive", NUM_UPDATES, marks=pytest.mark.soak),
        pytest.param("central_blt", NUM_UPDATES, marks=pytest.mark.soak),
    ],
)
def test_private_rounds_of_as_many_fit_in_300_megabytes(
    large_server: ServerProcess, kind: str, num_updates: int
) -> None:
    """The accounting library, which is imported where a private run is, has its share of them."""
    privacy = {"kind": kind, "target_epsilon": 100.0, "delta": 1e-6, "noise_multiplier": 0.5}
    if kind == "central_gaussian_adaptive":
        privacy["initial_clipping_norm"] = 1.0
    found = _aggregate(
        large_server, _Bodies(), num_updates=num_updates, strategy={"weighting": "uniform"}, privacy=privacy
    )
    assert large_server.resident_megabytes() < MAX_MEGABYTES
    # Clipped to 1, ten million coordinates are next to nothing beside noise of width 0.5 or a little more.
    assert 0.1 < np.std(found * num_updates) < 2.5


@pytest.mark.soak
@pytest.mark.parametrize(
    "strategy",
    [
        {"kind": "median"},
        {"kind": "trimmed_mean", "trim_fraction": 0.2},
        {"kind": "multi_krum", "num_byzantine": 10, "num_selected": 30},
        {"kind": "bulyan", "num_byzantine": 10},
        {"kind": "geometric_median", "max_update_norm": {"kind": "clip", "norm": 20}},
    ],
    ids=lambda strategy: strategy["kind"],
)
def test_a_robust_strategy_of_as_many_fits_in_500_megabytes(
    large_server: ServerProcess, strategy: dict[str, Any]
) -> None:
    bodies = _Bodies()
    found = _aggregate(large_server, bodies, strategy=strategy)
    assert large_server.resident_megabytes() < MAX_MEGABYTES_OF_ALL_AT_ONCE
    sent = np.sort([bodies.values(number) for number in range(NUM_UPDATES)], axis=0)
    expected = {"median": np.median(sent, axis=0), "trimmed_mean": sent[10:40].mean(axis=0)}
    if strategy["kind"] in expected:
        np.testing.assert_allclose(found, expected[strategy["kind"]], rtol=2e-7, atol=1e-12)
    assert np.all((sent[0] <= found) & (found <= sent[-1]))
