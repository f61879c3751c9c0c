"""A port that a worker keeps while it is dead: another process may not listen there meanwhile."""

from __future__ import annotations

import socket

_HOST = "127.0.0.1"


class HeldPort:
    """A port of this machine, 0 for a free one; connections are refused until somebody listens."""

    def __init__(self, port: int = 0) -> None:
        self.number = port
        self._socket: socket.socket
        self.refuse()

    def __repr__(self) -> str:
        return f"<HeldPort {self.number}>"

    def listening(self) -> socket.socket:
        """The socket, which takes connections from now on. Whoever gets it closes it."""
        self._socket.listen()
        return self._socket

    def fileno(self) -> int:
        """The socket's."""
        return self._socket.fileno()

    def refuse(self) -> None:
        """Holds the port, once the socket that listened there is closed."""
        self._socket = socket.socket()
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._socket.bind((_HOST, self.number))
        self.number = self._socket.getsockname()[1]

    def close(self) -> None:
        """Gives the port back."""
        self._socket.close()
