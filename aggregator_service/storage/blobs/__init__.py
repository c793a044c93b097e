"""The bytes of models and updates: written durably before a row names them."""

from aggregator_service.storage.blobs.database import CHUNK_NUM_BYTES, BlobCorruptError, BlobUpload, DatabaseBlobs

__all__ = ["CHUNK_NUM_BYTES", "BlobCorruptError", "BlobUpload", "DatabaseBlobs"]
