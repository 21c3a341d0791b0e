"""A proxy before an S3 server that counts what is put and spoils the answers to the PUTs that a test names."""

from __future__ import annotations

import http.client
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

from binventory.sagemaker.local.guard import Keys
from tests.sagemaker.local.lab import signed_headers


class PutProxy:
    """Passes every request on; signed anew with `keys`, where the server looks at signatures.

    Attributes:
        url: its endpoint URL.
        faults: end of a key -> faults of its next PUTs, one each: an HTTP status with S3's code ("403 AccessDenied").
        puts: key (`bucket/key`) -> number of PUTs that arrived. num_heads: HEADs that did.
        max_in_flight: most PUTs at one time. delay_s: seconds that each takes.
    """

    def __init__(self, server_url: str, keys: Keys | None = None) -> None:
        self.faults: dict[str, list[str]] = {}
        self.puts: Counter[str] = Counter()
        self.num_heads = self.in_flight = self.max_in_flight = 0
        self.delay_s = 0.0
        self._lock = threading.Lock()
        address = urlsplit(server_url).netloc
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_PUT(self) -> None:
                with proxy.counted(unquote(urlsplit(self.path).path).lstrip("/")) as fault:
                    body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                    threading.Event().wait(proxy.delay_s)
                    if fault is None:
                        self.forward(body)
                    else:
                        code = fault.partition(" ")[2]
                        self.send(int(fault[:3]), [], f"<Error><Code>{code}</Code></Error>".encode())

            def do_GET(self) -> None:
                self.forward(None)

            def do_HEAD(self) -> None:
                proxy.num_heads += 1
                self.forward(None)

            def forward(self, body: bytes | None) -> None:
                headers = {name.lower(): value for name, value in self.headers.items()}
                if keys is not None:
                    signed = set(headers["authorization"].partition("SignedHeaders=")[2].partition(",")[0].split(";"))
                    own = {name: headers[name] for name in signed - {"host"}}
                    url = f"http://{address}{self.path}"
                    resigned = signed_headers(keys, self.command, url, body or b"", own | {"host": address}, "s3")
                    headers |= {name.lower(): value for name, value in resigned.items()}
                connection = http.client.HTTPConnection(address, timeout=20)
                connection.request(self.command, self.path, body, headers)
                response = connection.getresponse()
                self.send(response.status, response.getheaders(), response.read())
                connection.close()

            def send(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
                self.send_response(status)
                for name, value in headers:
                    if name.lower() not in ("content-length", "connection", "transfer-encoding", "server", "date"):
                        self.send_header(name, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(body)

            def log_message(self, *args: object) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"
        threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    @contextmanager
    def counted(self, key: str) -> Iterator[str | None]:
        """Count a PUT for as long as it lasts; give its fault."""
        with self._lock:
            self.puts[key] += 1
            self.in_flight += 1
            self.max_in_flight = max(self.max_in_flight, self.in_flight)
            fault = next((faults.pop(0) for end, faults in self.faults.items() if key.endswith(end) and faults), None)
        try:
            yield fault
        finally:
            with self._lock:
                self.in_flight -= 1

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()
