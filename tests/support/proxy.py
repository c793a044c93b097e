"""A TCP proxy on loopback that a test opens, breaks and opens again."""

import selectors
import socket
import threading
from contextlib import suppress


class Proxy:
    """Forwards connections on a fixed port to an address, while it is open."""

    def __init__(self, host: str, port: int) -> None:
        self._target = (host, port)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        self._thread: threading.Thread | None = None
        self._wake, self._woken = socket.socketpair()

    def open(self) -> None:
        """Begins to accept connections."""
        listening = socket.create_server(("127.0.0.1", self.port))
        self._thread = threading.Thread(target=self._forward, args=(listening,))
        self._thread.start()

    def shut(self) -> None:
        """Breaks every connection and accepts no more."""
        if self._thread is not None:
            self._wake.send(b"x")
            self._thread.join(timeout=30)
            self._thread = None

    def close(self) -> None:
        """Ends the proxy."""
        self.shut()
        self._wake.close()
        self._woken.close()

    def _forward(self, listening: socket.socket) -> None:
        peers: dict[socket.socket, socket.socket] = {}
        with selectors.DefaultSelector() as selector:
            selector.register(listening, selectors.EVENT_READ)
            selector.register(self._woken, selectors.EVENT_READ)
            while True:
                ready = [key.fileobj for key, _ in selector.select()]
                if self._woken in ready:
                    self._woken.recv(1)
                    break
                for link in ready:
                    if link is listening:
                        self._accept(listening, peers, selector)
                    elif isinstance(link, socket.socket) and link in peers:
                        _pump(link, peers, selector)
        for link in (*peers, listening):
            link.close()

    def _accept(
        self, listening: socket.socket, peers: dict[socket.socket, socket.socket], selector: selectors.BaseSelector
    ) -> None:
        near, _ = listening.accept()
        far = socket.create_connection(self._target)
        peers[near], peers[far] = far, near
        selector.register(near, selectors.EVENT_READ)
        selector.register(far, selectors.EVENT_READ)


def _pump(link: socket.socket, peers: dict[socket.socket, socket.socket], selector: selectors.BaseSelector) -> None:
    data = b""
    with suppress(OSError):
        data = link.recv(1 << 16)
    if data:
        with suppress(OSError):
            peers[link].sendall(data)
            return
    for end in (peers.pop(link), link):
        peers.pop(end, None)
        selector.unregister(end)
        end.close()
