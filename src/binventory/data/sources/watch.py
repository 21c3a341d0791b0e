"""HTTP answers that are watched while they arrive: too slow a server, and a request to stop, end the wait."""

from __future__ import annotations

import http.client
import io
import socket
import threading
import time
from typing import Any

LEAST_BYTES_PER_S = 1024  # a server may send a byte a second for ever, and no socket's timeout would notice
LOOK_EVERY_S = 0.2


class SlowError(TimeoutError):
    """Bytes come at less than the least rate."""


class StoppedError(Exception):
    """The work was called off while a request was waiting for the server, or for its next attempt."""


def watch_answers(http_session: Any, stop: threading.Event, timeout_s: float) -> None:
    """Let every answer that botocore's `http_session` gets raise where it would wait too long.

    TimeoutError: no byte in `timeout_s` seconds. SlowError: fewer than `LEAST_BYTES_PER_S` on average of `timeout_s`
    seconds of waiting. StoppedError: `stop` is set.
    """

    class Answer(http.client.HTTPResponse):
        def __init__(self, sock: socket.socket, *args: Any, **options: Any) -> None:
            super().__init__(sock, *args, **options)
            self.fp = io.BufferedReader(_Watched(self.fp.detach(), sock, stop, timeout_s))

    pools = http_session._pool_classes_by_scheme
    for scheme, pool in pools.items():
        connection = type("WatchedConnection", (pool.ConnectionCls,), {"response_class": Answer})
        pools[scheme] = type("WatchedPool", (pool,), {"ConnectionCls": connection})


class _Watched(io.RawIOBase):
    """What comes from a socket. Only time that is spent waiting for the server counts."""

    def __init__(self, raw: io.RawIOBase, sock: socket.socket, stop: threading.Event, timeout_s: float) -> None:
        self._raw = raw
        self._sock = sock
        self._stop = stop
        self._timeout_s = timeout_s
        self._waited_s = 0.0
        self._num_bytes = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        started = time.monotonic()
        self._wait()
        num_bytes = self._raw.readinto(buffer)
        self._waited_s += time.monotonic() - started
        self._num_bytes += num_bytes or 0
        if self._waited_s >= self._timeout_s:
            if num_bytes and self._num_bytes < LEAST_BYTES_PER_S * self._waited_s:
                raise SlowError(f"less than {LEAST_BYTES_PER_S} bytes a second for {self._waited_s:.0f} s")
            self._waited_s, self._num_bytes = 0.0, 0
        return num_bytes

    def _wait(self) -> None:
        from urllib3.util import wait_for_read

        if not isinstance(self._sock, socket.socket):  # TLS in a proxy's TLS: what is decrypted shows nowhere
            return
        pending = getattr(self._sock, "pending", None)  # bytes that TLS has decrypted do not show on the socket
        waited_s = 0.0
        while not (pending and pending()) and not wait_for_read(self._sock, min(LOOK_EVERY_S, self._timeout_s)):
            waited_s += LOOK_EVERY_S
            if self._stop.is_set():
                raise StoppedError
            if waited_s >= self._timeout_s:
                raise TimeoutError("timed out")
        if self._stop.is_set():
            raise StoppedError

    def close(self) -> None:
        self._raw.close()
        super().close()
