"""A TCP proxy on loopback that a test opens, breaks and opens again."""

import selectors
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit


@dataclass
class Cuts:
    """After how many bytes in both directions each new connection is cut; it stays whole when no number is left.

    With `unheard` the server does not hear of it: its end of the connection stays open, as where a line goes dead.
    """

    after: Iterator[int] = field(default_factory=lambda: iter(()))
    unheard: bool = False
    num_made: int = 0
    num_bytes_answered: int = 0
    num_bytes_asked: int = 0
    """What the clients' ends have brought, passed on or not."""
    num_bytes_in_flight: int = 0
    """What of it no server had read when its connection was cut: held back here, or in the kernel's buffers."""
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
        self._dead: list[socket.socket] = []
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
        for link in (*peers, *self._dead, listening):
            link.close()
        self._dead.clear()

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
        self.cuts.num_bytes_asked += len(data) if link in self._clients else 0
        allowed = self.cuts.allowed(link, peer, data)
        if allowed:
            with suppress(OSError):
                peer.sendall(allowed)
                self.cuts.num_bytes_answered += len(allowed) if peer in self._clients else 0
                if len(allowed) == len(data):
                    return
        is_cut = len(allowed) < len(data)
        self.cuts.num_made += is_cut
        if is_cut and link in self._clients:
            self.cuts.num_bytes_in_flight += len(data) - len(allowed) + _num_unread(peer)
        for end in (peers.pop(link), link):
            peers.pop(end, None)
            self.cuts.forget(end)
            selector.unregister(end)
            if is_cut and self.cuts.unheard and end not in self._clients:
                self._dead.append(end)
            else:
                self._clients.discard(end)
                end.close()


def _num_unread(link: socket.socket) -> int:
    """Tells how many bytes of a connection to a server on this machine the server has not read (proc(5), net/tcp)."""
    ports, unread = [link.getsockname()[1], link.getpeername()[1]], 0
    for line in Path("/proc/net/tcp").read_text(encoding="ascii").splitlines()[1:]:
        _, local, remote, _, queues, *_ = line.split()
        ends = [int(address.partition(":")[2], 16) for address in (local, remote)]
        sending, receiving = (int(queue, 16) for queue in queues.split(":"))
        unread += (sending if ends == ports else 0) + (receiving if ends == ports[::-1] else 0)
    return unread


@contextmanager
def cutting(url: str, cuts: Cuts) -> Iterator[Proxy]:
    """Opens a proxy to a server's address that cuts connections; it ends with the block."""
    where = urlsplit(url)
    proxy = Proxy(str(where.hostname), int(where.port or 0), cuts)
    proxy.open()
    try:
        yield proxy
    finally:
        proxy.close()
