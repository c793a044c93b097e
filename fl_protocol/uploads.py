"""Uploads that go on after a cut: the headers and messages of draft-ietf-httpbis-resumable-upload (interop version 8).

The upload is created where the finished body belongs, the bytes are appended to it, and the last append is answered as
the PUT of the whole body would be.
"""

from typing import Final

from fl_protocol.messages import ResponseMessage, Timestamp

PARTIAL_UPLOAD_MEDIA_TYPE: Final = "application/partial-upload"

UPLOAD_OFFSET_HEADER: Final = "Upload-Offset"
"""How many bytes of the body are stored, durably; in a request, where its content belongs."""
UPLOAD_LENGTH_HEADER: Final = "Upload-Length"
UPLOAD_COMPLETE_HEADER: Final = "Upload-Complete"
"""In a request whether the body ends with it, in an answer whether the upload is over: `?1` or `?0`."""
UPLOAD_LIMIT_HEADER: Final = "Upload-Limit"
INTEROP_VERSION_HEADER: Final = "Upload-Draft-Interop-Version"
INTEROP_VERSION: Final = "8"


class Upload(ResponseMessage):
    """A part of a body that a server keeps until the rest has come, or until `expires_at`."""

    upload_id: str
    url: str
    offset: int
    num_bytes: int
    expires_at: Timestamp
