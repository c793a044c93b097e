"""The bytes of models and updates: written durably before a row names them."""

from aggregator_service.storage.blobs.blobs import Blobs
from aggregator_service.storage.blobs.removals import empty_blobs, remove_blobs
from aggregator_service.storage.blobs.stores import BlobStoreError, ByteStore, check_location, open_store
from aggregator_service.storage.blobs.uploads import CHUNK_NUM_BYTES, BlobCorruptError, BlobUpload, one_of_many

__all__ = [
    "CHUNK_NUM_BYTES",
    "BlobCorruptError",
    "BlobStoreError",
    "BlobUpload",
    "Blobs",
    "ByteStore",
    "check_location",
    "empty_blobs",
    "one_of_many",
    "open_store",
    "remove_blobs",
]
