"""HTTP by hand: requests that no HTTP library would send."""

import socket
from dataclasses import dataclass
from email.message import Message
from email.parser import BytesParser
from urllib.parse import urlsplit


@dataclass(frozen=True)
class RawAnswer:
    """What came back before the connection ended or the first answer was whole; status 0 means nothing came."""

    status: int
    headers: Message
    body: bytes


def connect(url: str, *, timeout_seconds: float = 20) -> socket.socket:
    """Opens a connection to the server."""
    address = urlsplit(url)
    assert address.hostname is not None
    assert address.port is not None
    return socket.create_connection((address.hostname, address.port), timeout=timeout_seconds)


def exchange(url: str, request: bytes, *, half_close: bool = False, timeout_seconds: float = 20) -> RawAnswer:
    """Sends bytes on a new connection and reads the first answer; `half_close` says that nothing more will come."""
    with connect(url, timeout_seconds=timeout_seconds) as link:
        try:
            link.sendall(request)
            if half_close:
                link.shutdown(socket.SHUT_WR)
        except (BrokenPipeError, ConnectionResetError):
            pass  # answered before everything was read
        # What a HEAD is answered with tells the length of a body that does not come.
        return read_answer(link, length=0 if request.startswith(b"HEAD ") else None)


def read_answer(link: socket.socket, *, length: int | None = None) -> RawAnswer:
    """Reads one answer with a Content-Length, or of a length that is known, or up to the connection's end."""
    received = b""
    while b"\r\n\r\n" not in received and (part := _receive(link)):
        received += part
    head, _, body = received.partition(b"\r\n\r\n")
    status_line, _, fields = head.partition(b"\r\n")
    headers = BytesParser().parsebytes(fields)
    if length is None:
        length = int(headers.get("content-length", "1000000000"))
    while len(body) < length and (part := _receive(link)):
        body += part
    return RawAnswer(int(status_line.split()[1]) if status_line else 0, headers, body)


def _receive(link: socket.socket) -> bytes:
    try:
        return link.recv(1 << 16)
    except ConnectionResetError:
        return b""
