"""Downloads in each of their forms: what is sent, what is made once and kept, and what caches and resumers rely on."""

import hashlib
import os
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import httpx
import numpy as np
import pytest
from starlette.types import Message

from aggregator_service.api.answers import ZERO_COPY
from aggregator_service.api.downloads import Conditions, answer
from aggregator_service.domain.records import TensorFile
from aggregator_service.flow.downloads import PIECE_NUM_BYTES, content_of
from fl_protocol import model_deltas
from fl_protocol.model_deltas import DeltaHead
from tests.support.databases import POSTGRES_IN_SOAK, SHARED_POSTGRES_IN_SOAK
from tests.support.participant import Tensors, create_run, enrol, pack, unpack, update_body, wait_for_run
from tests.support.refusals import assert_refused
from tests.support.server import ServerProcess
from tests.support.stored import Stored
from tests.support.zygote import Zygote

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

NUM_VERSIONS = 9
DELTA = "application/vnd.fedquorum.delta"
PLAIN = {"Accept-Encoding": "identity"}
ZSTD = {"Accept-Encoding": "zstd"}
FOR_EVER = "public, max-age=31536000, s-maxage=0, immutable"


def _model() -> Tensors:
    """Makes weights as a trained network has them, zstd saves a twentieth of them, and a counter."""
    values = np.random.default_rng(3).normal(scale=0.02, size=(50, 1000)).astype(np.float32)
    return {"w": values, "steps": np.array([7], dtype=np.int64)}


def _noise() -> Tensors:
    """Makes what no coding shrinks: counters of random bits, more of them than are sampled first."""
    bits = np.random.default_rng(4).integers(-(2**63), 2**63 - 1, 200_000, dtype=np.int64)
    return {"w": np.zeros(1, dtype=np.float32), "bits": bits}


@dataclass(frozen=True)
class History:
    """A run with nine versions besides the initial one, near each other; their bytes by number."""

    run_id: str
    versions: list[bytes]

    def url(self, version: int | str) -> str:
        return f"/v1/runs/{self.run_id}/models/{version}"

    def tag(self, version: int) -> str:
        return f'"sha256:{hashlib.sha256(self.versions[version]).hexdigest()}"'


@pytest.fixture(scope="module")
def stored(shared_server: ServerProcess) -> Iterator[Stored]:
    with Stored(shared_server.database_url) as database:
        yield database


@pytest.fixture(scope="module")
def history(shared_operator: httpx.Client) -> History:
    return _history(shared_operator, NUM_VERSIONS)


def _history(http: httpx.Client, num_versions: int) -> History:
    client = enrol(http, "writer")
    run_id = create_run(http, _model(), num_rounds=num_versions, round={"quorum": 1})
    generator = np.random.default_rng(5)
    for number in range(1, num_versions + 1):
        task = client.claim(run_id, wait=20).json()
        step = {"w": generator.normal(scale=1e-6, size=(50, 1000)).astype(np.float32)}
        assert client.put(task["task_id"], update_body(step, num_examples=1)).status_code == 201
        wait_for_run(http, run_id, version=number)
    answers = [http.get(f"/v1/runs/{run_id}/models/{version}", headers=PLAIN) for version in range(num_versions + 1)]
    return History(run_id, [answer.content for answer in answers])


def _raw(http: httpx.Client, url: str, **headers: str) -> tuple[httpx.Response, bytes]:
    """Gives an answer and its body as it came, before any decoding."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    with http.stream("GET", url, headers=PLAIN | named) as answer:
        return answer, b"".join(answer.iter_raw())


def _restored(history: History, delta: bytes, *, base: int, target: int) -> bytes:
    head = DeltaHead(history.tag(base).strip('"'), history.tag(target).strip('"'), len(history.versions[target]))
    whole = history.versions[base]
    return b"".join(model_deltas.apply([delta], base=lambda begin, end: whole[begin:end], expected=head))


@SHARED_POSTGRES_IN_SOAK
def test_zstd_is_a_form_of_its_own_with_a_length_and_a_tag(shared_operator: httpx.Client, history: History) -> None:
    answer, body = _raw(shared_operator, history.url(1), Accept_Encoding="zstd")
    assert (answer.status_code, answer.headers["content-encoding"]) == (200, "zstd")
    assert zstd.decompress(body) == history.versions[1]
    assert int(answer.headers["content-length"]) == len(body) < 0.95 * len(history.versions[1])
    assert answer.headers["etag"].startswith(history.tag(1)[:-1] + ":zstd:")
    plain, whole = _raw(shared_operator, history.url(1))
    assert (plain.headers["etag"], whole) == (history.tag(1), history.versions[1])
    assert "content-encoding" not in plain.headers
    assert {answer.headers["vary"], plain.headers["vary"]} == {"Accept-Encoding"}


@SHARED_POSTGRES_IN_SOAK
def test_shared_caches_may_keep_a_model_and_must_ask_before_each_use(
    shared_operator: httpx.Client, history: History
) -> None:
    assert shared_operator.get(history.url(1), headers=PLAIN).headers["cache-control"] == FOR_EVER
    assert shared_operator.get(history.url(1), headers=ZSTD).headers["cache-control"] == FOR_EVER
    assert shared_operator.get(f"{history.url(2)}?base=1").headers["cache-control"] == FOR_EVER
    assert shared_operator.get(history.url("latest")).headers["cache-control"] == "public, no-cache"
    asked = {"If-None-Match": history.tag(1)}
    assert shared_operator.get(history.url(1), headers=asked).status_code == 304
    stranger = httpx.get(f"{shared_operator.base_url}{history.url(1)}", headers=asked, trust_env=False)
    assert_refused(stranger, "unauthenticated")


@SHARED_POSTGRES_IN_SOAK
def test_who_has_the_newest_version_in_an_accepted_form_is_told_so(
    shared_operator: httpx.Client, history: History
) -> None:
    newest, url = NUM_VERSIONS, history.url("latest")
    coded = _raw(shared_operator, url, Accept_Encoding="zstd")[0].headers["etag"]
    delta = _raw(shared_operator, f"{url}?base={newest - 1}")[0].headers["etag"]
    cases = [
        (url, history.tag(newest), "identity", 304),
        (url, history.tag(newest), "zstd", 304),
        (url, f'"other", {history.tag(newest)}', "zstd", 304),
        (url, coded, "zstd", 304),
        (url, coded, "identity", 200),
        (url, delta, "zstd", 200),
        (url, history.tag(newest - 1), "zstd", 200),
        (f"{url}?base={newest - 1}", history.tag(newest), "identity", 304),
        (f"{url}?base={newest - 1}", delta, "identity", 304),
        (f"{url}?base={newest - 1}", history.tag(newest - 1), "identity", 200),
    ]
    for target, tag, accepted, status in cases:
        answer, body = _raw(shared_operator, target, If_None_Match=tag, Accept_Encoding=accepted)
        assert answer.status_code == status, (target, tag, accepted)
        if status == 304:
            assert (body, answer.headers["etag"] in tag) == (b"", True)
            assert "cache-control" in answer.headers


@SHARED_POSTGRES_IN_SOAK
def test_a_part_counts_in_the_bytes_of_its_own_form(shared_operator: httpx.Client, history: History) -> None:
    forms = [(history.url(1), "identity"), (history.url(1), "zstd"), (f"{history.url(2)}?base=1", "identity")]
    for url, accepted in forms:
        answer, whole = _raw(shared_operator, url, Accept_Encoding=accepted)
        tag, middle = answer.headers["etag"], len(whole) // 2
        rest, body = _raw(shared_operator, url, Accept_Encoding=accepted, Range=f"bytes={middle}-", If_Range=tag)
        assert (rest.status_code, whole[:middle] + body) == (206, whole), accepted
        assert rest.headers["content-range"] == f"bytes {middle}-{len(whole) - 1}/{len(whole)}"
        assert rest.headers.get("content-encoding") == answer.headers.get("content-encoding")
        other, again = _raw(shared_operator, url, Accept_Encoding=accepted, Range=f"bytes={middle}-", If_Range='"x"')
        assert (other.status_code, again) == (200, whole)


@SHARED_POSTGRES_IN_SOAK
def test_who_went_off_with_plain_bytes_goes_on_with_plain_bytes(
    shared_operator: httpx.Client, history: History
) -> None:
    rest, body = _raw(
        shared_operator, history.url(1), Accept_Encoding="zstd", Range="bytes=9-", If_Range=history.tag(1)
    )
    assert (rest.status_code, body, "content-encoding" in rest.headers) == (206, history.versions[1][9:], False)


@SHARED_POSTGRES_IN_SOAK
@pytest.mark.parametrize("base", [NUM_VERSIONS - 1, NUM_VERSIONS - 3, NUM_VERSIONS - 8])
def test_a_delta_turns_an_earlier_version_into_the_newest_exactly(
    shared_operator: httpx.Client, history: History, base: int
) -> None:
    answer, body = _raw(shared_operator, f"{history.url('latest')}?base={base}")
    assert (answer.headers["content-type"], answer.headers["model-version"]) == (DELTA, str(NUM_VERSIONS))
    assert _restored(history, body, base=base, target=NUM_VERSIONS) == history.versions[-1]
    assert len(body) < 0.6 * len(history.versions[-1])


@SHARED_POSTGRES_IN_SOAK
@pytest.mark.parametrize("base", [0, NUM_VERSIONS, NUM_VERSIONS + 1, 2**53 - 1])
def test_the_whole_model_comes_where_no_delta_helps(shared_operator: httpx.Client, history: History, base: int) -> None:
    answer, body = _raw(shared_operator, f"{history.url('latest')}?base={base}")
    assert answer.headers["content-type"] == "application/vnd.safetensors"
    assert (answer.headers["etag"], body) == (history.tag(NUM_VERSIONS), history.versions[-1])


@SHARED_POSTGRES_IN_SOAK
def test_a_form_that_saves_little_is_not_used(shared_operator: httpx.Client, stored: Stored, history: History) -> None:
    noise = create_run(shared_operator, _noise(), start=False)
    answer, body = _raw(shared_operator, f"/v1/runs/{noise}/models/0", Accept_Encoding="zstd")
    assert ("content-encoding" in answer.headers, body) == (False, pack(_noise()))
    assert stored.rows("SELECT blob_id FROM renditions WHERE run_id = :run", run=noise) == [(None,)]


@SHARED_POSTGRES_IN_SOAK
def test_a_form_is_made_once_for_all_who_ask_at_once(shared_operator: httpx.Client, stored: Stored) -> None:
    run_id = create_run(shared_operator, _model(), start=False)
    before = stored.counts("blobs", "renditions")
    with ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(_raw, shared_operator, f"/v1/runs/{run_id}/models/0", **ZSTD) for _ in range(8)]
        bodies = [each.result()[1] for each in asked]
    assert len(set(bodies)) == 1
    assert stored.counts("blobs", "renditions") == {name: number + 1 for name, number in before.items()}


@POSTGRES_IN_SOAK
def test_files_are_sent_in_every_form_and_part_as_chunks_are(
    database_url: str, tmp_path: Path, forking: Zygote
) -> None:
    server = ServerProcess(
        database_url, tmp_path, environment={"FEDQUORUM_BLOB_STORE": f"file://{tmp_path}/blobs"}, zygote=forking
    )
    with server.start().http() as http:
        history = _history(http, 2)
        whole = history.versions[2]
        assert hashlib.sha256(whole).hexdigest() in http.get(f"{history.url(2)}", headers=PLAIN).headers["etag"]
        for begin, end in ((0, 1), (5, 150_000), (len(whole) - 1, len(whole))):
            answer, body = _raw(http, history.url(2), Range=f"bytes={begin}-{end - 1}")
            assert (answer.status_code, body) == (206, whole[begin:end])
        assert zstd.decompress(_raw(http, history.url(2), Accept_Encoding="zstd")[1]) == whole
        delta = _raw(http, f"{history.url(2)}?base=1")[1]
        assert _restored(history, delta, base=1, target=2) == whole
        exported = http.get(f"{history.url(2)}/export", headers=PLAIN).content
        assert unpack(exported)["w"].tobytes() == unpack(whole)["w"].tobytes()
    server.kill()


@dataclass
class _Files:
    """Stands for the blobs of a server whose blobs are files; counts what was opened and is still open."""

    path: Path
    opened: list[int] = field(default_factory=list)

    async def open_local(self, blob_id: str) -> int | None:
        self.opened.append(os.open(self.path, os.O_RDONLY))
        return self.opened[-1]


@pytest.mark.parametrize("begin", [0, 17])
async def test_a_large_file_is_handed_to_the_kernel_and_closed(tmp_path: Path, begin: int) -> None:
    path = tmp_path / "blob"
    size = PIECE_NUM_BYTES + 100
    path.write_bytes(bytes(size))
    files = _Files(path)
    plain = content_of(TensorFile("blob_1", "sha256:" + "0" * 64, size), version=3)
    asked = Conditions(None, None, f"bytes={begin}-", accepts_zstd=False)
    messages: list[Message] = []

    async def send(message: Message) -> None:
        messages.append(message)

    async def receive() -> Message:
        raise AssertionError("nothing is to be read")

    answered = await answer(cast("Any", SimpleNamespace(blobs=files)), plain, asked, cache_control="no-store")
    await answered({"type": "http", "extensions": {ZERO_COPY: {}}}, receive, send)
    assert [message["type"] for message in messages] == ["http.response.start", ZERO_COPY]
    assert (messages[1]["offset"], messages[1]["count"]) == (begin, size - begin)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(files.opened[0])
