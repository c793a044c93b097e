"""The bytes of models and updates: written durably before a row names them."""

from aggregator_service.storage.blobs.database import BlobCorruptError, BlobUpload, DatabaseBlobs

__all__ = ["BlobCorruptError", "BlobUpload", "DatabaseBlobs"]
