"""One large model through upload, round and download (`python -m benchmarks.large_model --parameters 2e9`).

Two clients, plain HTTP in pieces of 1 MiB, made and checked piece by piece: nothing here holds the model either.
"""

import argparse
import hashlib
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import httpx
import numpy as np
from numpy.typing import NDArray

from benchmarks.load import TENSORS
from benchmarks.server import BLOB_STORES, OPERATOR_TOKEN, Server, fresh_server

PIECE_ELEMENTS = 1 << 18
NUM_PATTERNS = 5
ROW_ELEMENTS = 4096
NUM_CLIENTS = 2
WEIGHTS = (1, 3)
TIMEOUT_SECONDS = 7200


@dataclass(frozen=True, slots=True)
class Tensors:
    """A safetensors body of so many float32, or zeros, in pieces that repeat a few patterns in an order of its own."""

    num_parameters: int
    metadata: dict[str, str]
    number: int | None = None
    patterns: NDArray[np.float32] = field(
        default_factory=lambda: np.random.default_rng(7).normal(size=(NUM_PATTERNS, PIECE_ELEMENTS)).astype(np.float32)
    )

    @property
    def header(self) -> bytes:
        whole, rest = divmod(self.num_parameters, ROW_ELEMENTS)
        shapes = {"rows": [whole, ROW_ELEMENTS], "rest": [rest]}
        entries: dict[str, object] = {"__metadata__": self.metadata}
        begin = 0
        for name, shape in shapes.items():
            end = begin + 4 * int(np.prod(shape, dtype=object))
            entries[name] = {"dtype": "F32", "shape": shape, "data_offsets": [begin, end]}
            begin = end
        text = json.dumps(entries).encode()
        return len(text).to_bytes(8, "little") + text

    @property
    def num_bytes(self) -> int:
        return len(self.header) + 4 * self.num_parameters

    def pieces(self) -> Iterator[bytes]:
        """Yields the bytes."""
        yield self.header
        for index, begin in enumerate(range(0, self.num_parameters, PIECE_ELEMENTS)):
            yield self.values(index)[: self.num_parameters - begin].tobytes()

    def values(self, index: int) -> NDArray[np.float32]:
        """Gives the elements of a piece."""
        if self.number is None:
            return np.zeros(PIECE_ELEMENTS, dtype=np.float32)
        values: NDArray[np.float32] = self.patterns[(index * (1 + self.number) + self.number) % NUM_PATTERNS]
        return values


def main() -> int:
    """Runs it and prints the times and the server's memory."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.large_model", description=str(__doc__))
    parser.add_argument("--parameters", type=float, default=2e8, help="of the model, float32 (default: 2e8)")
    parser.add_argument("--blob-store", choices=BLOB_STORES, default="files", help="where the tensors are")
    arguments = parser.parse_args()
    num_parameters, folder = int(arguments.parameters), tempfile.gettempdir()
    # Two models and two updates; SQLite's log holds some of it twice.
    needed, free = (2 + NUM_CLIENTS) * 4 * num_parameters, shutil.disk_usage(folder).free
    print(f"{num_parameters} parameters; needs about {needed / 2**30:.1f} GiB in {folder}, {free / 2**30:.1f} GiB free")
    if free < 1.1 * needed:
        print("not enough room; TMPDIR names another folder")
        return 1
    with fresh_server("sqlite", blob_store=arguments.blob_store) as server:
        _run(server, num_parameters)
        print(f"server's peak memory: {server.peak_mebibytes():.0f} MiB")
        print(f"server's processor time: {server.processor_seconds():.0f} s")
    return 0


def _run(server: Server, num_parameters: int) -> None:
    with _http(server, OPERATOR_TOKEN) as operator:
        spec = {"name": "large", "num_rounds": 1, "round": {"quorum": NUM_CLIENTS, "deadline_seconds": TIMEOUT_SECONDS}}
        run_id = _ok(operator.post("/v1/runs", json=spec)).json()["run_id"]
        _put(server, operator, f"/v1/runs/{run_id}/models/0", Tensors(num_parameters, {}), what="model uploaded")
        _ok(operator.post(f"/v1/runs/{run_id}/start"))
        updates = [Tensors(num_parameters, {"num_examples": str(weight)}, at) for at, weight in enumerate(WEIGHTS)]
        for number, update in enumerate(updates):
            made = _ok(operator.post("/v1/clients", json={"name": f"client-{number}"})).json()
            with _http(server, made["token"]) as client:
                task = _ok(client.post(f"/v1/runs/{run_id}/tasks")).json()
                _put(
                    server, client, f"/v1/tasks/{task['task_id']}/update", update, what=f"update {number + 1} uploaded"
                )
        begin = time.perf_counter()
        while operator.get(f"/v1/runs/{run_id}").json()["latest_version"] == 0:
            time.sleep(0.05)
        _report(server, "last update to model", begin=begin, num_bytes=NUM_CLIENTS * 4 * num_parameters)
        begin = time.perf_counter()
        _download(operator, f"/v1/runs/{run_id}/models/1", updates)
        _report(server, "model downloaded and checked", begin=begin, num_bytes=4 * num_parameters)


def _put(server: Server, http: httpx.Client, path: str, body: Tensors, *, what: str) -> None:
    headers = {"Content-Type": TENSORS, "Content-Length": str(body.num_bytes)}
    begin = time.perf_counter()
    _ok(http.put(path, content=body.pieces(), headers=headers))
    _report(server, what, begin=begin, num_bytes=body.num_bytes)


def _download(http: httpx.Client, path: str, updates: list[Tensors]) -> None:
    """Reads the model and holds every element against the mean of the updates."""
    digest, expected = hashlib.sha256(), _means(updates)
    with http.stream("GET", path, headers={"Accept-Encoding": "identity"}) as answer:
        _ok(answer)
        pieces = answer.iter_bytes(4 * PIECE_ELEMENTS)
        kept = next(pieces)
        digest.update(kept)
        kept = kept[8 + int.from_bytes(kept[:8], "little") :]
        for piece in pieces:
            digest.update(piece)
            kept += piece
            while len(kept) >= 4 * PIECE_ELEMENTS:
                _compare(kept[: 4 * PIECE_ELEMENTS], next(expected))
                kept = kept[4 * PIECE_ELEMENTS :]
        if kept:
            _compare(kept, next(expected))
        assert answer.headers["etag"].strip('"') == f"sha256:{digest.hexdigest()}"


def _means(updates: list[Tensors]) -> Iterator[NDArray[np.float32]]:
    """Yields the mean piece by piece, without end; there are few different pieces."""
    known: dict[int, NDArray[np.float32]] = {}
    index = 0
    while True:
        if index % NUM_PATTERNS not in known:
            wide = [update.values(index).astype(np.float64) for update in updates]
            known[index % NUM_PATTERNS] = np.average(wide, axis=0, weights=WEIGHTS).astype(np.float32)
        yield known[index % NUM_PATTERNS]
        index += 1


def _compare(data: bytes, expected: NDArray[np.float32]) -> None:
    found = np.frombuffer(data, dtype=np.float32)
    np.testing.assert_allclose(found, expected[: found.size], rtol=2e-7, atol=1e-12)


def _report(server: Server, what: str, *, begin: float, num_bytes: int) -> None:
    seconds = time.perf_counter() - begin
    rate, peak = num_bytes / seconds / 1e6, server.peak_mebibytes()
    print(f"{what}: {seconds:.1f} s, {rate:.0f} MB/s; server's peak memory so far {peak:.0f} MiB", flush=True)


def _http(server: Server, token: str) -> httpx.Client:
    headers = {"Authorization": f"Bearer {token}"}
    return httpx.Client(base_url=server.url, headers=headers, timeout=TIMEOUT_SECONDS, trust_env=False)


def _ok(answer: httpx.Response) -> httpx.Response:
    if answer.status_code >= 300:
        answer.read()
        raise RuntimeError(f"{answer.request.method} {answer.request.url}: {answer.status_code} {answer.text}")
    return answer


if __name__ == "__main__":
    sys.exit(main())
