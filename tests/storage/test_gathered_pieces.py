"""What a blob's bytes were gathered from shows nowhere: not in its file, its chunks or any part of them."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aggregator_service.storage.blobs import BlobUpload, open_store


@given(st.lists(st.integers(0, 200_000), max_size=12), st.lists(st.integers(1, 50_000), max_size=20), st.data())
@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_file_holds_what_was_appended_however_little_a_write_takes(
    tmp_path: Path, sizes: list[int], taken: list[int], data: st.DataObject
) -> None:
    """Pieces of any length and kind, some of which are kept without a copy; a call may write less than it was given."""
    whole = os.urandom(sum(sizes))
    upload, at = BlobUpload("blob_1a"), 0
    for size in sizes:
        upload.append(data.draw(st.sampled_from([bytes, bytearray, memoryview]))(whole[at : at + size]))
        at += size
    place, left = open_store(f"file://{tmp_path}"), iter(taken)

    def pwritev(descriptor: int, parts: list[memoryview], begin: int, write: Callable[..., int] = os.pwrite) -> int:
        joined = b"".join(parts)
        return write(descriptor, joined[: next(left, len(joined))], begin)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "pwritev", pwritev)
        place.write("blob_1a", 0, upload.collected(0, upload.num_bytes))
    assert (tmp_path / "1a" / "blob_1a").read_bytes() == whole
    place.remove("blob_1a")
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), min_size=2, max_size=2)))
    assert b"".join(upload.collected(*cuts)) == whole[cuts[0] : cuts[1]]
    assert b"".join(piece for _, piece in upload.pieces(last=True)) == whole
