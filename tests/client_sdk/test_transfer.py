import base64
import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from client_sdk.client import AggregatorClient, Seams
from client_sdk.config import Limits
from client_sdk.errors import TransportError, UntrustedAnswerError
from client_sdk.transfer import Content, body_of_tensors, read_model
from fl_protocol.arrays import decode, encode
from tests.client_sdk.wire import Answerer, Seen, answer, names_in, wire

MODEL = {"weight": np.arange(300_000, dtype=np.float32), "bias": np.ones(3, dtype=np.float64)}
BYTES = b"".join(encode(MODEL, {}))
DIGEST = f"sha256:{hashlib.sha256(BYTES).hexdigest()}"
EXPECTED = Content(DIGEST, len(BYTES))
RUN = "run_" + "0" * 32


async def no_sleep(seconds: float) -> None:
    """Waits for nothing."""


def client_to(url: str) -> AggregatorClient:
    return AggregatorClient(url, token="t" * 20, limits=Limits(max_attempts=4), seams=Seams(sleep=no_sleep))


async def download(answers: Answerer, folder: Path, *, expected: Content | None = EXPECTED) -> list[Seen]:
    async with wire(answers) as server, client_to(server.url) as client:
        stored = await client.download_model(RUN, folder, version=3, expected=expected)
        assert stored.path.read_bytes() == BYTES
        assert stored.path.name == f"{DIGEST.removeprefix('sha256:')}.safetensors"
        assert names_in(folder) == [stored.path.name]
        return server.seen


def whole(seen: Seen) -> bytes:
    return answer(200, BYTES, etag=f'"{DIGEST}"')


def cutting(cut_at: int, *, etag: str = f'"{DIGEST}"') -> Callable[[Seen], bytes]:
    """Answers like a server whose connection breaks `cut_at` bytes into each answer's body."""

    def respond(seen: Seen) -> bytes:
        start = int(seen.headers["range"].removeprefix("bytes=").removesuffix("-")) if "range" in seen.headers else 0
        rest = BYTES[start:]
        span = f"bytes {start}-{len(BYTES) - 1}/{len(BYTES)}"
        full = answer(206 if start else 200, rest, etag=etag, **({"content_range": span} if start else {}))
        return full[: full.index(b"\r\n\r\n") + 4 + cut_at]

    return respond


async def test_a_download_asks_for_plain_bytes_and_keeps_only_the_model(tmp_path: Path) -> None:
    seen = await download(whole, tmp_path)
    assert seen[0].target == f"/v1/runs/{RUN}/models/3"
    assert seen[0].headers["accept-encoding"] == "identity"
    assert seen[0].headers["authorization"] == f"Bearer {'t' * 20}"


async def test_a_download_goes_on_where_it_was_cut(tmp_path: Path) -> None:
    seen = await download(cutting(500_000), tmp_path)
    assert [request.headers.get("range") for request in seen] == [None, "bytes=500000-", "bytes=1000000-"]
    assert seen[1].headers["if-range"] == f'"{DIGEST}"'


async def test_a_server_without_ranges_sends_it_again_from_the_start(tmp_path: Path) -> None:
    answerers = iter([cutting(500_000), whole])

    def answers(seen: Seen) -> bytes:
        return next(answerers)(seen)

    assert len(await download(answers, tmp_path)) == 2


async def test_an_unannounced_model_is_bound_by_its_first_answer(tmp_path: Path) -> None:
    seen = await download(cutting(700_000), tmp_path, expected=None)
    assert [request.headers.get("range") for request in seen] == [None, "bytes=700000-"]


LIES: dict[str, Answerer] = {
    "other bytes": lambda seen: answer(200, b"x" * len(BYTES), etag=f'"{DIGEST}"'),
    "another etag": lambda seen: answer(200, BYTES, etag='"sha256:' + "0" * 64 + '"'),
    "more bytes": lambda seen: answer(200, BYTES + b"!"),
    "endless bytes": lambda seen: b"HTTP/1.1 200 X\r\nconnection: close\r\n\r\n" + BYTES * 3,
    "an encoding": lambda seen: answer(200, BYTES, content_encoding="gzip"),
    "another place": lambda seen: answer(206, BYTES, content_range=f"bytes 1-{len(BYTES)}/{len(BYTES) + 1}"),
    "a part not asked for": lambda seen: answer(206, BYTES),
    "a redirect": lambda seen: answer(302, location="http://elsewhere.example/"),
    "nothing": lambda seen: answer(204),
    "no HTTP": lambda seen: b"\x80\x04pickle\r\n\r\n",
}


@pytest.mark.parametrize("lie", LIES)
async def test_a_lying_server_gets_nothing_into_the_cache(lie: str, tmp_path: Path) -> None:
    async with wire(LIES[lie]) as server, client_to(server.url) as client:
        with pytest.raises(UntrustedAnswerError):
            await client.download_model(RUN, tmp_path, version=3, expected=EXPECTED)
        assert len(server.seen) == 1
    assert names_in(tmp_path) == []


async def test_a_server_that_always_cuts_is_given_up(tmp_path: Path) -> None:
    async with wire(cutting(10)) as server, client_to(server.url) as client:
        with pytest.raises(TransportError):
            await client.download_model(RUN, tmp_path, version=3, expected=EXPECTED)
        assert len(server.seen) == 4
    assert names_in(tmp_path) == []


async def test_an_unannounced_model_has_a_ceiling(tmp_path: Path) -> None:
    async with wire(whole) as server, AggregatorClient(server.url, limits=Limits(max_model_bytes=1000)) as client:
        with pytest.raises(UntrustedAnswerError, match="over 1000 bytes"):
            await client.download_model(RUN, tmp_path)
    assert names_in(tmp_path) == []


async def test_a_digest_never_becomes_another_path(tmp_path: Path) -> None:
    async with wire(whole) as server, client_to(server.url) as client:
        with pytest.raises(UntrustedAnswerError):
            await client.download_model(RUN, tmp_path, version=1, expected=Content("sha256:../../etc", len(BYTES)))
    assert names_in(tmp_path) == []


async def test_an_upload_has_length_and_digest_and_is_the_same_at_every_attempt() -> None:
    receipt = (
        f'{{"update_id":"u","task_id":"task_1","run_id":"r","round":1,"digest":"{DIGEST}","num_bytes":{len(BYTES)},'
        '"accepted_at":"2026-01-01T00:00:00Z"}'
    ).encode()
    answers = iter([answer(503, retry_after="0"), b"", answer(201, receipt)])
    async with wire(lambda seen: next(answers)) as server, client_to(server.url) as client:
        accepted = await client.put_update("task_1", body_of_tensors(MODEL, {}))
        assert accepted.num_bytes == len(BYTES)
        assert [seen.body for seen in server.seen] == [BYTES] * 3
        encoded = base64.b64encode(hashlib.sha256(BYTES).digest()).decode()
        assert {seen.headers["content-digest"] for seen in server.seen} == {f"sha-256=:{encoded}:"}
        assert "transfer-encoding" not in server.seen[0].headers


async def test_a_receipt_for_other_bytes_is_not_believed() -> None:
    receipt = (
        b'{"update_id":"u","task_id":"task_1","run_id":"r","round":1,"digest":"sha256:0","num_bytes":1,'
        b'"accepted_at":"2026-01-01T00:00:00Z"}'
    )
    async with wire(lambda seen: answer(201, receipt)) as server, client_to(server.url) as client:
        with pytest.raises(UntrustedAnswerError, match="receipt"):
            await client.put_update("task_1", body_of_tensors(MODEL, {}))


def test_a_stored_model_is_read_only_if_it_is_still_whole(tmp_path: Path) -> None:
    path = tmp_path / EXPECTED.file_name
    assert read_model(path, EXPECTED) is None
    path.write_bytes(BYTES[:-1] + b"!")
    assert read_model(path, EXPECTED) is None
    path.write_bytes(BYTES)
    found = read_model(path, EXPECTED)
    assert found is not None
    assert found.keys() == decode(BYTES).keys()


def test_a_large_stored_model_is_mapped_and_outlives_its_name(tmp_path: Path) -> None:
    values = np.arange(1 << 19, dtype=np.float32)
    content = b"".join(encode({"w": values}, {}))
    expected = Content(f"sha256:{hashlib.sha256(content).hexdigest()}", len(content))
    path = tmp_path / expected.file_name
    path.write_bytes(content[:-1] + b"!")
    assert read_model(path, expected) is None
    path.write_bytes(content)
    found = read_model(path, expected)
    path.unlink()
    assert found is not None
    np.testing.assert_array_equal(found["w"], values)
    assert str(path) in Path("/proc/self/maps").read_text()
