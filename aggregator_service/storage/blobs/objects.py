"""Blobs as objects of an S3-compatible service, Google Cloud Storage or Azure: parts of 8 MiB, each its own object.

Only obstore's synchronous functions are used, on threads: a process with its asynchronous ones may abort at exit.
"""

import os
from collections.abc import Sequence
from typing import Final

import obstore
from obstore.exceptions import BaseError
from obstore.store import from_url

from aggregator_service.storage.blobs.stores import BlobStoreError, check_blob_id
from aggregator_service.storage.blobs.uploads import BlobCorruptError

_PART_NUM_BYTES: Final = 8 << 20
_MAX_RETRIES: Final = 3
_TIMEOUT: Final = "60s"
_CONNECT_TIMEOUT: Final = "5s"
_MAX_REASON: Final = 300
_PROBE: Final = "probe"
"""One name: what a start leaves that is killed right there, the next one removes."""


class ObjectStore:
    """Objects named BLOB_ID/PART under a prefix; a blob of 10 GB has 1,193 of them.

    An object that was put is durable, and a part that is put again replaces the one before it whole: so a blob can be
    appended to after a restart, and there is no multipart upload that could be left open.
    """

    unit: int = _PART_NUM_BYTES

    def __init__(self, url: str) -> None:
        self.url = url
        # The one variable that obstore does not heed once it is given options; credentials it finds by itself.
        plain = os.environ.get("AWS_ALLOW_HTTP", "").lower() in ("1", "true")
        try:
            self._store = from_url(
                url,
                client_options={"timeout": _TIMEOUT, "connect_timeout": _CONNECT_TIMEOUT, "allow_http": plain},
                retry_config={"max_retries": _MAX_RETRIES},
            )
        except BaseError as error:
            raise BlobStoreError(f"blob store {url!r}: {_reason(error)}") from None

    def check(self) -> None:
        try:
            obstore.put(self._store, _PROBE, b"x", use_multipart=False)
            obstore.delete(self._store, _PROBE)
        except (BaseError, OSError) as error:
            raise BlobStoreError(f"blob store {self.url!r} cannot be written: {_reason(error)}") from None

    def make(self, blob_ids: Sequence[str]) -> None:
        """Does nothing: an object needs no preparation."""

    def write(self, blob_id: str, begin: int, parts: Sequence[memoryview]) -> None:
        data = memoryview(b"".join(parts))
        for at in range(0, len(data), self.unit):
            name = _name(blob_id, (begin + at) // self.unit)
            try:
                obstore.put(self._store, name, data[at : at + self.unit], use_multipart=False)
            except BaseError as error:
                raise OSError(_reason(error)) from error

    def read(self, blob_id: str, begin: int, end: int) -> bytes:
        parts = range(begin // self.unit, (end - 1) // self.unit + 1)
        return b"".join(
            self._read_part(
                _name(blob_id, part), max(begin - part * self.unit, 0), min(end - part * self.unit, self.unit)
            )
            for part in parts
        )

    def remove(self, blob_id: str) -> None:
        try:
            # The slash keeps a name from being the beginning of another one.
            for listed in obstore.list(self._store, f"{check_blob_id(blob_id)}/"):
                obstore.delete(self._store, [meta["path"] for meta in listed])
        except FileNotFoundError:
            return
        except BaseError as error:
            raise OSError(_reason(error)) from error

    def _read_part(self, name: str, begin: int, end: int) -> bytes:
        try:
            data = bytes(obstore.get_range(self._store, name, start=begin, end=end))
        except FileNotFoundError:
            raise BlobCorruptError(f"object {name} is missing") from None
        except BaseError as error:
            if self._size(name) <= begin:
                raise BlobCorruptError(f"object {name} ends before byte {begin}") from None
            raise OSError(_reason(error)) from error
        if len(data) != end - begin:
            raise BlobCorruptError(f"object {name} ends before byte {end}")
        return data

    def _size(self, name: str) -> int:
        try:
            return obstore.head(self._store, name)["size"]
        except BaseError as error:
            raise OSError(_reason(error)) from error


def _name(blob_id: str, part: int) -> str:
    return f"{check_blob_id(blob_id)}/{part:08d}"


def _reason(error: Exception) -> str:
    """Gives the first line of what is told, which is an essay."""
    return str(error).split("\n", 1)[0][:_MAX_REASON]
