"""A real S3 server on loopback for tests, seeded with drawn bins, and a proxy before it that injects faults.

`pytest_plugins = ["tests.s3"]` gives the fixtures `s3_server` (an endpoint URL) and `s3_faults` (a FaultProxy).
"""

from __future__ import annotations

import http.client
import json
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from PIL import Image

from binventory.config.schema import S3Config

BUCKET = "bins"  # what `s3_server` is seeded with: BINS in bucket layout, and their file_list.json
BINS = {"00001": 1, "00002": 2, "01000": 3, "1000": 1, "100313": 2, "09915": 5, "00710": 4, "05397": 2}

# The server ends when its stdin does, so also when the tests are killed
SERVER = """
import sys
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
server.start()
print(*server.get_host_and_port(), flush=True)
sys.stdin.read()
"""


def s3_config(endpoint_url: str, **changes: Any) -> S3Config:
    """The `s3` config node for a server on loopback, quick to give up."""
    settings: dict[str, Any] = {"anonymous": True, "endpoint_url": endpoint_url, "region": "us-east-1"}
    settings |= {"max_concurrency": 4, "max_attempts": 3, "timeout_s": 5.0}
    return S3Config(**(settings | changes))


def draw_bins(folder: Path, bins: Mapping[str, int]) -> None:
    """Draw photos and metadata of `bins` (id -> quantity) in bucket layout, with a file_list.json."""
    for name in ("bin-images", "metadata"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    listed: dict[str, list[str]] = {}
    for bin_id, quantity in bins.items():
        photo = Image.effect_noise((48, 32), 20 + quantity).convert("RGB")
        photo.save(folder / "bin-images" / f"{bin_id}.jpg", quality=80)
        item = {"asin": f"B{bin_id:0>9}", "name": "mug", "quantity": quantity}
        metadata = {"BIN_FCSKU_DATA": {item["asin"]: item}, "EXPECTED_QUANTITY": quantity}
        (folder / "metadata" / f"{bin_id}.json").write_text(json.dumps(metadata))
        listed.setdefault(str(quantity), []).append(f"data/metadata/{bin_id}.json")
    (folder / "file_list.json").write_text(json.dumps(dict(sorted(listed.items()))))


def upload(endpoint_url: str, bucket: str, folder: Path, prefix: str = "") -> None:
    """Make the bucket if need be and put every file of a folder into it, under its relative path, for all to read."""
    client = s3_client(endpoint_url)
    client.create_bucket(Bucket=bucket)
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            key = prefix + path.relative_to(folder).as_posix()
            client.put_object(Bucket=bucket, Key=key, Body=path.read_bytes(), ACL="public-read")


def put(endpoint_url: str, bucket: str, key: str, body: bytes) -> None:
    """Store an object under any key: client libraries tidy up paths."""
    connection = http.client.HTTPConnection(urlsplit(endpoint_url).netloc)
    encoded = "".join(f"%{byte:02X}" for byte in key.encode())
    connection.request("PUT", f"/{bucket}/{encoded}", body, {"x-amz-acl": "public-read"})
    assert connection.getresponse().status == 200, key
    connection.close()


def s3_client(endpoint_url: str) -> Any:
    """A client that may write, for setting a test up."""
    import boto3

    session = boto3.Session(aws_access_key_id="test", aws_secret_access_key="test", region_name="us-east-1")
    return session.client("s3", endpoint_url=endpoint_url)


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Endpoint URL of an S3 server process whose bucket BUCKET holds the photos, metadata and file list of BINS."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen([sys.executable, "-c", SERVER], text=True, **pipes) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        host, port = process.stdout.readline().split()
        endpoint_url = f"http://{host}:{port}"
        folder = tmp_path_factory.mktemp("seed")
        draw_bins(folder, BINS)
        upload(endpoint_url, BUCKET, folder)
        yield endpoint_url
        process.stdin.close()


class FaultProxy:
    """Passes requests on to an S3 server, counts them, and spoils the answers to those that a test names.

    Attributes:
        url: its endpoint URL.
        faults: path ("/bucket/key") -> faults of its next GETs, one each: an HTTP status ("500", or "403 AccessDenied"
            with S3's code), "cut" (half the body, then the connection ends), "drop" (no answer), "hang" (half the body,
            then nothing until `release` is set).
        answers: path -> body that takes the place of the server's, whose headers stay.
        left_out: headers that are not passed on, in lower case.
        gets, heads: path -> number of GETs and HEADs. hanging: set once an answer hangs.
        delay_s: seconds that every body takes.
    """

    def __init__(self, server_url: str) -> None:
        self.faults: dict[str, list[str]] = {}
        self.answers: dict[str, bytes] = {}
        self.left_out: set[str] = set()
        self.gets: Counter[str] = Counter()
        self.heads: Counter[str] = Counter()
        self.hanging = threading.Event()
        self.release = threading.Event()
        self.in_flight = self.max_in_flight = 0
        self.delay_s = 0.0
        self._lock = threading.Lock()
        self._server_address = urlsplit(server_url).netloc
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                with proxy._lock:
                    proxy.in_flight += 1
                    proxy.max_in_flight = max(proxy.max_in_flight, proxy.in_flight)
                try:
                    proxy._answer(self)
                finally:
                    with proxy._lock:
                        proxy.in_flight -= 1

            def do_HEAD(self) -> None:
                self.do_GET()

            def log_message(self, *args: object) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"
        threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def objects(self) -> Counter[str]:
        """GETs of photos and metadata only, by file name."""
        return Counter({Path(path).name: n for path, n in self.gets.items() if Path(path).suffix in (".jpg", ".json")})

    def close(self) -> None:
        self.release.set()
        self._http.shutdown()
        self._http.server_close()

    def _answer(self, request: BaseHTTPRequestHandler) -> None:
        path = unquote(urlsplit(request.path).path)
        fault = ""
        with self._lock:
            if request.command == "HEAD":
                self.heads[path] += 1
            else:
                self.gets[path] += 1
                fault = (self.faults.get(path) or [""]).pop(0)
        status, headers, body = self._forward(request)
        if path in self.answers and request.command == "GET":
            status, body = 200, self.answers[path]
        if fault[:3].isdigit():
            code = fault[4:] or "Fault"
            status, body = int(fault[:3]), f"<Error><Code>{code}</Code><Message>injected</Message></Error>".encode()
        if fault == "drop":
            request.close_connection = True
            return
        self._send(request, status, headers, body, fault)

    def _send(self, request: BaseHTTPRequestHandler, status: int, headers: Any, body: bytes, fault: str) -> None:
        request.send_response(status)
        for name, value in headers:
            if name.lower() in self.left_out:
                continue
            if name.lower() not in ("content-length", "connection", "transfer-encoding", "server", "date"):
                request.send_header(name, value)
        sizes = [value for name, value in headers if name.lower() == "content-length"]
        request.send_header("Content-Length", sizes[0] if request.command == "HEAD" and sizes else str(len(body)))
        request.end_headers()
        if request.command == "HEAD":
            return
        half = len(body) // 2
        request.wfile.write(body[:half])
        request.wfile.flush()
        if self.delay_s:
            self.release.wait(self.delay_s)
        if fault == "hang":
            self.hanging.set()
            self.release.wait()
        if fault in ("cut", "hang"):
            request.close_connection = True
            return
        request.wfile.write(body[half:])

    def _forward(self, request: BaseHTTPRequestHandler) -> tuple[int, list[tuple[str, str]], bytes]:
        connection = http.client.HTTPConnection(self._server_address, timeout=20)
        connection.request(request.command, request.path, headers={"Accept": "*/*"})
        response = connection.getresponse()
        body = response.read()
        connection.close()
        return response.status, response.getheaders(), body


@contextmanager
def odd_server(answer: Callable[[BaseHTTPRequestHandler], None]) -> Iterator[str]:
    """Endpoint URL of a server on loopback that answers every GET and HEAD as `answer` does."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            with suppress(OSError):  # the client need not wait for the end
                answer(self)

        def do_HEAD(self) -> None:
            self.do_GET()

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.block_on_close = False
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


@pytest.fixture
def s3_faults(s3_server: str) -> Iterator[FaultProxy]:
    """A proxy before `s3_server` in which a test injects faults."""
    proxy = FaultProxy(s3_server)
    yield proxy
    proxy.close()
