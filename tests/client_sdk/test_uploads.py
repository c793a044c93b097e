import hashlib
import itertools
import json
import weakref
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray

from client_sdk import transfer
from client_sdk.client import AggregatorClient, Seams
from client_sdk.config import Limits
from client_sdk.errors import ServerError, TransportError, UntrustedAnswerError
from client_sdk.transfer import Body, body_of_bytes, body_of_tensors, compressed_body
from fl_protocol.arrays import RawTensor, Tensor
from fl_protocol.problems import PROBLEM_MEDIA_TYPE

TENSORS: dict[str, Tensor] = {
    "first": np.arange(700_000, dtype=np.float32),
    "none": np.zeros((0, 3), dtype=np.float32),
    "one": np.float64(3.0) * np.ones(()),
    "turned": np.arange(600_000, dtype=np.float32).reshape(1000, 600).T,
    "raw": RawTensor("BF16", np.arange(5, dtype=np.uint16)),
}
BODY = body_of_tensors(TENSORS, {"num_examples": "1"})
CONTENT = b"".join(BODY.pieces())
UPLOAD = "/v1/uploads/upload_"
Fault = Callable[[httpx.Request], httpx.Response | None]


async def _no_sleep(seconds: float) -> None:
    """Waits for nothing."""


def _problem(status: int, slug: str = "not-found") -> httpx.Response:
    problem = {"type": f"/problems/{slug}", "title": "No", "status": status, "detail": "no", "retryable": False}
    return httpx.Response(status, content=json.dumps(problem), headers={"Content-Type": PROBLEM_MEDIA_TYPE})


@dataclass
class Keeper(httpx.AsyncBaseTransport):
    """A server that keeps parts of bodies, behind a line that is cut after each of the numbers of bytes in `cuts`."""

    cuts: list[int] = field(default_factory=list)
    loses_receipts: int = 0
    max_append: int | None = None
    fault: Fault = lambda request: None
    kept: bytearray = field(default_factory=bytearray)
    ids: "itertools.count[int]" = field(default_factory=lambda: itertools.count(1))
    current: str = ""
    complete: bool = False
    num_received: int = 0
    asked: list[httpx.Request] = field(default_factory=list)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Answers as the draft has it."""
        self.asked.append(request)
        answer = self.fault(request)
        if answer is None:
            answer = await self._answer(request)
        return httpx.Response(answer.status_code, headers=answer.headers, content=_pieces(answer.content))

    async def _answer(self, request: httpx.Request) -> httpx.Response:
        if request.method == "POST":
            return self._create(request)
        if request.method == "PUT":
            self.kept = bytearray(await self._read(request))
            return self._receipt()
        if not request.url.path.endswith(self.current):
            return _problem(404)
        if request.method == "PATCH":
            if int(request.headers["upload-offset"]) != len(self.kept):
                return _problem(409, "mismatching-upload-offset")
            await self._read(request)
            if request.headers["upload-complete"] == "?1":
                self.complete = True
                if self.loses_receipts:
                    self.loses_receipts -= 1
                    raise httpx.ReadError("cut")
                return self._receipt()
        told = {"Upload-Offset": str(len(self.kept)), "Upload-Complete": "?1" if self.complete else "?0"}
        return httpx.Response(204, headers=told)

    def _create(self, request: httpx.Request) -> httpx.Response:
        self.current, self.kept = f"upload_{next(self.ids)}", bytearray()
        upload = {
            "upload_id": self.current,
            "url": f"/v1/uploads/{self.current}",
            "offset": 0,
            "num_bytes": int(request.headers["upload-length"]),
            "expires_at": datetime.now(UTC).isoformat(),
        }
        limit = "max-size=1000000000000" + (f", max-append-size={self.max_append}" if self.max_append else "")
        return httpx.Response(201, json=upload, headers={"Upload-Limit": limit})

    async def _read(self, request: httpx.Request) -> bytes:
        left, content = self.cuts.pop(0) if self.cuts else None, bytearray()
        assert isinstance(request.stream, httpx.AsyncByteStream)
        async for piece in request.stream:
            taken = piece if left is None else piece[:left]
            self.kept += taken
            content += taken
            self.num_received += len(taken)
            if left is not None:
                left -= len(taken)
                if left == 0:
                    raise httpx.WriteError("cut")
        return bytes(content)

    def _receipt(self) -> httpx.Response:
        receipt = {
            "update_id": "update_1",
            "task_id": "task_1",
            "run_id": "run_1",
            "round": 1,
            "digest": f"sha256:{hashlib.sha256(self.kept).hexdigest()}",
            "num_bytes": len(self.kept),
            "accepted_at": datetime.now(UTC).isoformat(),
        }
        of_a_model = {"version": 0, "num_parameters": 1, "created_at": datetime.now(UTC).isoformat()}
        return httpx.Response(201, json=receipt | of_a_model)

    @property
    def methods(self) -> list[str]:
        return [request.method for request in self.asked]


async def _pieces(content: bytes) -> AsyncIterator[bytes]:
    yield content


async def _send(keeper: Keeper, body: Body = BODY, *, resumable_bytes: int = 1 << 20) -> None:
    limits = Limits(max_attempts=4, resumable_bytes=resumable_bytes)
    seams = Seams(transport=keeper, sleep=_no_sleep)
    async with AggregatorClient("http://localhost", token="t" * 20, limits=limits, seams=seams) as client:
        receipt = await client.put_update("task_1", body)
    assert (receipt.num_bytes, bytes(keeper.kept)) == (len(CONTENT), CONTENT)


@pytest.mark.parametrize("begin", [0, 1, 8, 300, (1 << 20) - 1, 1 << 20, 2_800_300, 2_800_500, len(CONTENT) - 9])
@pytest.mark.parametrize("kind", ["tensors", "bytes", "compressed"])
def test_a_body_begins_at_any_byte(kind: str, begin: int, tmp_path: Path) -> None:
    with compressed_body(BODY, level=1, folder=tmp_path) as compressed:
        body = {"tensors": BODY, "bytes": body_of_bytes(CONTENT), "compressed": compressed}[kind]
        whole = b"".join(body.pieces())
        assert b"".join(body.pieces(begin)) == whole[begin:]
        assert max(map(len, body.pieces(begin)), default=0) <= 1 << 20
        assert b"".join(body.pieces(body.num_bytes)) == b""


def test_a_large_compressed_body_lies_on_the_disk_and_leaves_nothing_there(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(transfer, "IN_MEMORY_BYTES", 1000)
    with compressed_body(BODY, level=1, folder=tmp_path / "new") as body:
        assert len(b"".join(body.pieces())) == body.num_bytes < BODY.num_bytes
        assert b"".join(body.pieces(1000)) == b"".join(body.pieces())[1000:]
    assert list((tmp_path / "new").iterdir()) == []


def test_a_body_reads_nothing_of_the_tensors_before_its_beginning(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    original = np.ascontiguousarray

    def noting(values: NDArray[Any], dtype: Any) -> NDArray[Any]:
        read.append(values.nbytes)
        return original(values, dtype=dtype)

    monkeypatch.setattr(np, "ascontiguousarray", noting)
    rest = b"".join(BODY.pieces(len(CONTENT) - 12))
    assert (rest, read) == (CONTENT[-12:], [2_400_000, 10])


def test_a_compressed_body_lets_go_of_the_tensors_that_it_was_made_of(tmp_path: Path) -> None:
    tensors: dict[str, Tensor] = {"codes": np.ones(5, dtype=np.int8)}
    codes = weakref.ref(tensors["codes"])
    with compressed_body(body_of_tensors(tensors, {}), level=1, folder=tmp_path):
        del tensors
        assert codes() is None


async def test_an_update_that_is_cut_goes_on_where_it_was_cut() -> None:
    keeper = Keeper(cuts=[1_500_000, 70_000, 2_000_001])
    await _send(keeper)
    assert keeper.methods == ["POST", "PATCH", "HEAD", "PATCH", "HEAD", "PATCH", "HEAD", "PATCH"]
    offsets = [int(request.headers["upload-offset"]) for request in keeper.asked if request.method == "PATCH"]
    assert offsets == [0, 1_500_000, 1_570_000, 3_570_001]
    assert keeper.num_received == len(CONTENT)


async def test_the_upload_says_at_its_beginning_all_that_the_put_would_say(tmp_path: Path) -> None:
    keeper = Keeper()
    with (
        compressed_body(BODY, level=1, folder=tmp_path) as body,
        pytest.raises(UntrustedAnswerError, match="receipt"),
    ):
        await _send(keeper, body, resumable_bytes=1000)
    created, appended = keeper.asked
    assert created.url.path == "/v1/tasks/task_1/uploads"
    assert {name: created.headers[name] for name in ("content-digest", "content-encoding", "content-type")} == {
        **{name.lower(): value for name, value in body.description.items()},
        "content-type": "application/vnd.safetensors",
    }
    assert created.headers["upload-length"] == appended.headers["content-length"] == str(body.num_bytes)
    assert (created.headers["content-length"], created.headers["upload-complete"]) == ("0", "?0")
    assert appended.headers["content-type"] == "application/partial-upload"
    assert appended.headers["upload-complete"] == "?1"


async def test_a_line_that_is_cut_for_ever_ends_once_nothing_moves() -> None:
    cuts = [200_000] * 10 + [1000] * 20
    with pytest.raises(TransportError):
        await _send(keeper := Keeper(cuts=list(cuts)))
    assert len(keeper.cuts) == len(cuts) - 10 - 4


async def test_a_lost_receipt_is_asked_for_without_a_byte() -> None:
    keeper = Keeper(loses_receipts=2)
    await _send(keeper)
    assert keeper.num_received == len(CONTENT)
    assert keeper.methods == ["POST", "PATCH", "HEAD", "PATCH", "HEAD", "PATCH"]


async def test_a_part_that_the_server_has_dropped_is_sent_anew() -> None:
    def forgetful(request: httpx.Request) -> httpx.Response | None:
        return httpx.Response(404) if request.method == "HEAD" and request.url.path.endswith("_1") else None

    keeper = Keeper(cuts=[1_500_000], fault=forgetful)
    await _send(keeper)
    assert keeper.methods == ["POST", "PATCH", "HEAD", "POST", "PATCH"]


async def test_a_server_takes_no_more_at_once_than_it_says() -> None:
    keeper = Keeper(cuts=[1_500_000, 300_000], max_append=1_000_000)
    await _send(keeper)
    sizes = [int(request.headers["content-length"]) for request in keeper.asked if request.method == "PATCH"]
    assert max(sizes) == 1_000_000
    assert keeper.num_received == len(CONTENT)


async def test_a_start_model_is_sent_the_same_way() -> None:
    keeper = Keeper(cuts=[2_000_000])
    limits, seams = Limits(resumable_bytes=1 << 20), Seams(transport=keeper, sleep=_no_sleep)
    async with AggregatorClient("http://localhost", token="t" * 20, limits=limits, seams=seams) as client:
        model = await client.put_initial_model("run_1", TENSORS)
    assert keeper.asked[0].url.path == "/v1/runs/run_1/models/0/uploads"
    assert keeper.methods == ["POST", "PATCH", "HEAD", "PATCH"]
    assert model.num_bytes == keeper.num_received == body_of_tensors(TENSORS, {}).num_bytes


@pytest.mark.parametrize("status", [404, 405])
async def test_a_server_without_such_uploads_gets_the_body_in_one_request(status: int) -> None:
    keeper = Keeper(fault=lambda request: _problem(status) if request.method == "POST" else None)
    await _send(keeper)
    assert keeper.methods == ["POST", "PUT"]


async def test_a_small_body_goes_in_one_request() -> None:
    keeper = Keeper()
    await _send(keeper, resumable_bytes=len(CONTENT))
    assert keeper.methods == ["PUT"]


async def test_another_offset_than_was_thought_is_asked_for() -> None:
    lies = iter([_problem(409, "mismatching-upload-offset")])
    keeper = Keeper(fault=lambda request: next(lies, None) if request.method == "PATCH" else None)
    await _send(keeper)
    assert keeper.methods == ["POST", "PATCH", "HEAD", "PATCH"]


@pytest.mark.parametrize("told", ["", "x", "-1", "99999999999999999", "1400000", "2700000"])
async def test_an_offset_that_cannot_be_true_is_not_believed(told: str) -> None:
    answers = iter(["1500000", told])

    def lying(request: httpx.Request) -> httpx.Response | None:
        if request.method != "HEAD":
            return None
        return httpx.Response(204, headers={"Upload-Offset": next(answers)})

    keeper = Keeper(cuts=[1_500_000, 20_000], fault=lying)
    with pytest.raises(UntrustedAnswerError, match=r"Upload-Offset|bytes of the upload"):
        await _send(keeper)


@pytest.mark.parametrize(
    "upload",
    [
        {"upload_id": "../runs"},
        {"upload_id": 7},
        {},
    ],
)
async def test_an_upload_whose_name_could_change_a_path_is_not_believed(upload: dict[str, object]) -> None:
    told = {"url": "/v1/x", "offset": 0, "num_bytes": 1, "expires_at": datetime.now(UTC).isoformat()} | upload
    keeper = Keeper(fault=lambda request: httpx.Response(201, json=told))
    with pytest.raises(UntrustedAnswerError):
        await _send(keeper)


async def test_an_append_that_is_acknowledged_and_not_kept_is_not_believed() -> None:
    def lying(request: httpx.Request) -> httpx.Response | None:
        return httpx.Response(204, headers={"Upload-Offset": "0"}) if request.method == "PATCH" else None

    with pytest.raises(UntrustedAnswerError, match="must have 1000000"):
        await _send(Keeper(max_append=1_000_000, fault=lying))


async def test_a_server_that_takes_a_few_bytes_at_once_is_not_served() -> None:
    with pytest.raises(UntrustedAnswerError, match="1000 bytes of an upload"):
        await _send(Keeper(max_append=1000))


@pytest.mark.parametrize("method", ["POST", "PATCH"])
@pytest.mark.parametrize(("status", "slug"), [(410, "round-closed"), (422, "non-finite"), (413, "too-large")])
async def test_a_refusal_is_raised_as_that_of_the_put_is(status: int, slug: str, method: str) -> None:
    keeper = Keeper(fault=lambda request: _problem(status, slug) if request.method == method else None)
    with pytest.raises(ServerError) as caught:
        await _send(keeper)
    assert caught.value.status == status
