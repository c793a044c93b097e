"""What a blob of many that come together holds in memory: a sixty-fourth of itself."""

import pytest

from aggregator_service.storage.blobs import one_of_many

KIBIBYTE = 1 << 10


@pytest.mark.parametrize(
    ("num_bytes", "chunk_num_bytes"),
    [(0, 64 * KIBIBYTE), (4_000_008, 64 * KIBIBYTE), (8 << 20, 128 * KIBIBYTE), (10**9, 1024 * KIBIBYTE)],
)
def test_one_of_many_is_written_whenever_a_sixty_fourth_of_it_has_come(num_bytes: int, chunk_num_bytes: int) -> None:
    upload = one_of_many("blob_1", num_bytes=num_bytes)
    upload.append(bytes(chunk_num_bytes - 1))
    assert not upload.is_due
    upload.append(b"x")
    assert upload.is_due
