"""A TCP proxy on loopback that a test opens, breaks and opens again."""

import selectors
import socket
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field


@dataclass
class Cuts:
    """After how many bytes in both directions each new connection is cut; it stays whole when no number is left."""

    after: Iterator[int] = field(default_factory=lambda: iter(()))
    num_made: int = 0
    num_bytes_answered: int = 0
    _left: dict[socket.socket, int] = field(default_factory=dict)

    def begin(self, near: socket.socket, far: socket.socket) -> None:
        """Gives a new connection its number."""
        if (number := next(self.after, None)) is not None:
            self._left[near] = self._left[far] = number

    def allowed(self, link: socket.socket, peer: socket.socket, data: bytes) -> bytes:
        """Gives what may still be forwarded; less than all of it means that the connection is cut behind that."""
        if link in self._left:
            data = data[: self._left[link]]
            self._left[link] = self._left[peer] = self._left[link] - len(data)
        return data

    def forget(self, link: socket.socket) -> None:
        """Forgets the end of a connection that is gone."""
        self._left.pop(link, None)


class Proxy:
    """Forwards connections on a fixed port to an address, while it is open, and cuts them as it is told."""

    def __init__(self, host: str, port: int, cuts: Cuts | None = None) -> None:
        self._target = (host, port)
        self.cuts = cuts or Cuts()
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        self._thread: threading.Thread | None = None
        self._clients: set[socket.socket] = set()
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
                        self._pump(link, peers, selector)
        for link in (*peers, listening):
            link.close()

    def _accept(
        self, listening: socket.socket, peers: dict[socket.socket, socket.socket], selector: selectors.BaseSelector
    ) -> None:
        near, _ = listening.accept()
        far = socket.create_connection(self._target)
        peers[near], peers[far] = far, near
        self._clients.add(near)
        self.cuts.begin(near, far)
        selector.register(near, selectors.EVENT_READ)
        selector.register(far, selectors.EVENT_READ)

    def _pump(
        self, link: socket.socket, peers: dict[socket.socket, socket.socket], selector: selectors.BaseSelector
    ) -> None:
        data, peer = b"", peers[link]
        with suppress(OSError):
            data = link.recv(1 << 16)
        allowed = self.cuts.allowed(link, peer, data)
        if allowed:
            with suppress(OSError):
                peer.sendall(allowed)
                self.cuts.num_bytes_answered += len(allowed) if peer in self._clients else 0
                if len(allowed) == len(data):
                    return
        self.cuts.num_made += len(allowed) < len(data)
        for end in (peers.pop(link), link):
            peers.pop(end, None)
            self.cuts.forget(end)
            self._clients.discard(end)
            selector.unregister(end)
            end.close()
