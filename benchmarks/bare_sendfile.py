"""What a download is compared with: a loop that answers anything with a file by os.sendfile, nothing more."""

import os
import socket
import sys
from contextlib import suppress


def main() -> None:
    """Serves on a free port until SIGTERM; the only argument is the file."""
    file = os.open(sys.argv[1], os.O_RDONLY)
    num_bytes = os.fstat(file).st_size
    listening = socket.create_server(("127.0.0.1", 0))
    print(f"listening on http://127.0.0.1:{listening.getsockname()[1]}", flush=True)
    while True:
        connection, _ = listening.accept()
        with connection, suppress(ConnectionError):
            connection.recv(1 << 16)
            connection.sendall(f"HTTP/1.1 200 OK\r\ncontent-length: {num_bytes}\r\n\r\n".encode())
            offset = 0
            while offset < num_bytes:
                offset += os.sendfile(connection.fileno(), file, offset, num_bytes - offset)


if __name__ == "__main__":
    main()
