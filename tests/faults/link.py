"""A link of our own between a site and the server that can be cut and mended."""

import contextlib
import selectors
import socket
import threading

CHUNK_BYTES = 65536


class Link:
    """Forwards TCP from a free port of this machine to the server's port.

    A cut closes every connection and refuses new ones.
    """

    def __init__(self, server_port: int) -> None:
        self.server_port = server_port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._lock = threading.Lock()
        self._up = threading.Event()
        self._up.set()
        self._closed = False
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        """Nothing gets through any more."""
        self._up.clear()
        with self._lock:
            pairs, self._pairs = self._pairs, []
        for pair in pairs:
            _close(pair)

    def mend(self) -> None:
        """New connections get through again."""
        self._up.set()

    def close(self) -> None:
        """End for good."""
        self._closed = True
        self._listener.close()
        self.cut()

    def _accept(self) -> None:
        while not self._closed:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            if not self._up.is_set():
                near.close()
                continue
            try:
                far = socket.create_connection(("127.0.0.1", self.server_port), timeout=5.0)
            except OSError:
                near.close()
                continue
            far.settimeout(None)
            pair = (near, far)
            with self._lock:
                self._pairs.append(pair)
            threading.Thread(target=_carry, args=pair, daemon=True).start()


def _carry(near: socket.socket, far: socket.socket) -> None:
    """Copy bytes both ways until one side ends."""
    with contextlib.suppress(OSError, ValueError, KeyError), selectors.DefaultSelector() as ready:
        ready.register(near, selectors.EVENT_READ, far)
        ready.register(far, selectors.EVENT_READ, near)
        while True:
            for key, _ in ready.select(timeout=1.0):
                source: socket.socket = key.fileobj  # type: ignore[assignment]
                content = source.recv(CHUNK_BYTES)
                if not content:
                    _close((near, far))
                    return
                key.data.sendall(content)
    _close((near, far))


def _close(pair: tuple[socket.socket, socket.socket]) -> None:
    for end in pair:
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)
        end.close()
