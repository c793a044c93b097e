"""Blobs as objects on a real S3-compatible server: parts of 8 MiB, whatever is missing told apart from whoever is."""

import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import obstore
import pytest
from obstore.store import from_url

from aggregator_service.storage.blobs import (
    BlobCorruptError,
    Blobs,
    BlobStoreError,
    BlobUpload,
    open_store,
    remove_blobs,
)
from fl_protocol.problems import ProblemError, ProblemType
from tests.support.object_server import BUCKET, ObjectServer
from tests.support.store import Store

PART = 8 << 20
ONLY_SQLITE = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


@pytest.fixture
def url(objects: ObjectServer) -> str:
    """A prefix of this test's own."""
    return f"s3://{BUCKET}/{uuid.uuid4().hex}"


@pytest.fixture
def held(store: Store, url: str) -> Iterator[Blobs]:
    place = open_store(url)
    place.check()
    blobs = Blobs(store.transactions, place)
    yield blobs
    blobs.close()


def names(url: str) -> list[str]:
    listed = obstore.list(from_url(url, client_options={"allow_http": True}))
    return sorted(meta["path"] for some in listed for meta in some)


@ONLY_SQLITE
async def test_a_blob_of_several_parts_comes_back_in_any_piece_and_leaves_nothing(
    store: Store, held: Blobs, url: str
) -> None:
    data = b"".join(number.to_bytes(4, "little") for number in range((PART + (1 << 20)) // 4)) + b"tail"
    upload = BlobUpload("blob_1")
    for begin in range(0, len(data), 1 << 20):
        upload.append(data[begin : begin + (1 << 20)])
        if upload.is_due:
            await held.flush(upload)
    assert names(url) == ["blob_1/00000000"]
    await held.finish(upload)
    store.write(lambda tx: held.seal(tx, upload))
    assert names(url) == ["blob_1/00000000", "blob_1/00000001"]
    for begin, end in ((0, len(data)), (PART - 3, PART + 3), (PART + 5, len(data)), (7, 8)):
        assert held.read_blocking("blob_1", begin, end) == data[begin:end]
    assert await held.read("blob_1", PART - 1, PART + 1) == data[PART - 1 : PART + 1]
    assert held.open_local_blocking("blob_1") is None
    obstore.delete(from_url(url, client_options={"allow_http": True}), "blob_1/00000001")
    with pytest.raises(BlobCorruptError, match="blob_1/00000001 is missing"):
        held.read_blocking("blob_1", PART, PART + 4)
    store.write(lambda tx: remove_blobs(tx, "blob_1"))
    assert await held.remove_bytes() == 1
    assert names(url) == []


@ONLY_SQLITE
def test_a_store_that_does_not_answer_is_told_and_names_nothing(
    store: Store, held: Blobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    unreachable = open_store(f"s3://{BUCKET}/elsewhere")
    with pytest.raises(BlobStoreError, match=r"s3://tensors/elsewhere.*cannot be written"):
        unreachable.check()
    upload = BlobUpload("blob_1")
    upload.append(b"x")
    with pytest.raises(ProblemError) as refused:
        Blobs(store.transactions, unreachable).finish_blocking(upload)
    assert refused.value.problem_type is ProblemType.UNAVAILABLE


def test_without_its_extra_the_message_says_what_to_install() -> None:
    program = (
        "import sys; sys.modules['obstore'] = None\n"
        "from aggregator_service.storage.blobs import open_store\n"
        "open_store('s3://bucket/prefix')\n"
    )
    folder = Path(__file__).parents[2]
    ended = subprocess.run([sys.executable, "-c", program], cwd=folder, capture_output=True, text=True, check=False)
    assert "pip install 'fedquorum[objects]'" in ended.stderr
