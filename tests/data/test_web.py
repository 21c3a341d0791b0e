"""File lists from web servers, real ones on loopback, one of them with TLS."""

from __future__ import annotations

import json
import re
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from binventory.data.sources import web
from binventory.data.sources.file_list import parse_file_list, read_file_list
from binventory.data.sources.web import check_url, read_url
from binventory.errors import InputError
from tests.running import run_here
from tests.s3 import draw_bins

LIST = json.dumps(
    {"2": ["data/metadata/00003.json", "data/metadata/00001.json"], "1": ["data/metadata/7.json"]}
).encode()

Answer = Callable[[BaseHTTPRequestHandler], None]


class Server:
    """Answers each path as a test says."""

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self.answers: dict[str, Answer] = {}
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                with suppress(OSError):  # the client has left
                    server.answers[self.path](self)

            def log_message(self, *args: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        if tls is not None:
            self.http.socket = tls.wrap_socket(self.http.socket, server_side=True)
        self.url = f"{'http' if tls is None else 'https'}://127.0.0.1:{self.http.server_address[1]}"
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def close(self) -> None:
        self.http.shutdown()
        self.http.server_close()


def sends(body: bytes, status: int = 200, **headers: str) -> Answer:
    def answer(request: BaseHTTPRequestHandler) -> None:
        request.send_response(status)
        for name, value in headers.items():
            request.send_header(name.replace("_", "-"), value)
        request.end_headers()
        request.wfile.write(body)

    return answer


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    running = Server()
    yield running
    running.close()


@pytest.fixture(scope="module")
def tls_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, Path]]:
    """With a certificate of its own, which nobody trusts who isn't told to."""
    folder = tmp_path_factory.mktemp("tls")
    names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"]
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", str(folder / "key.pem")]
    subprocess.run(
        ["openssl", "req", "-x509", *key, "-out", str(folder / "cert.pem"), *names], check=True, capture_output=True
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "cert.pem", folder / "key.pem")
    running = Server(context)
    yield running, folder / "cert.pem"
    running.close()


def test_a_list_by_https_keeps_its_order_and_an_unknown_certificate_is_refused(
    tls_server: tuple[Server, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    server, certificate = tls_server
    server.answers["/list.json?v=1"] = sends(LIST)
    server.answers["/moved"] = sends(b"", 302, Location="/list.json?v=1")
    server.answers["/down"] = sends(b"", 302, Location=server.url.replace("https", "http") + "/list.json")
    server.answers["/away"] = sends(b"", 302, Location="http://example.com/list.json?token=secret")
    with pytest.raises(InputError, match=r"/list\.json: cannot be read: .*[cC]ertificate"):
        read_file_list(f"{server.url}/list.json?v=1")
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    assert list(read_file_list(f"{server.url}/moved").items()) == [("00003", 2), ("00001", 2), ("7", 1)]
    with pytest.raises(InputError, match=r"http://example\.com/list\.json: http is read from this machine only"):
        read_file_list(f"{server.url}/away")
    with pytest.raises(InputError, match=r"/down: redirects to http://127.*, where it is not followed"):
        read_file_list(f"{server.url}/down")


BAD: dict[str, tuple[Answer, str]] = {
    "gone": (sends(b"", 404), r"/gone: HTTP 404 Not Found$"),
    "page": (sends(b"<html>log in</html>"), r"/page: is not JSON"),
    "round": (sends(b"", 302, Location="/round"), "redirects more than 5 times"),
    "file": (
        sends(b"", 302, Location="file:///etc/passwd"),
        "redirects to file:///etc/passwd, where it is not followed",
    ),
    "cut": (sends(LIST[:9], Content_Length="50"), "cut off after 9 bytes"),
    "large": (sends(b"", Content_Length="101"), "too large: at most"),
    "stream": (sends(b"[" * 101), "too large: at most"),
    "negative": (sends(LIST + b"]" * 100, Content_Length="-1"), "too large: at most"),
    "odd": (sends(LIST, Content_Length="many"), ""),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_list_is_one_line(name: str, server: Server) -> None:
    server.answers[f"/{name}"], message = BAD[name]
    if not message:
        assert parse_file_list(read_url(f"{server.url}/{name}", 100), "x")
        return
    with pytest.raises(InputError, match=message) as raised:
        parse_file_list(read_url(f"{server.url}/{name}?X-Amz-Signature=secret", 100), f"{server.url}/{name}")
    assert "\n" not in str(raised.value)
    assert "secret" not in str(raised.value)


@pytest.fixture(autouse=True)
def _with_query(server: Server) -> None:
    class Answers(dict[str, Any]):
        def __missing__(self, path: str) -> Any:
            return self[path.partition("?")[0]] if "?" in path else sends(b"", 404)

    server.answers = Answers()


def test_a_server_that_wastes_time_is_left(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    released = threading.Event()

    def drip(request: BaseHTTPRequestHandler) -> None:
        while not released.wait(0.05):
            request.wfile.write(b"H")

    server.answers["/drip"] = drip
    monkeypatch.setattr(web, "TIMEOUT_S", 0.3)
    started = time.monotonic()
    with pytest.raises(InputError, match=re.escape(f"{server.url}/drip: took longer than 0.3 s")):
        read_file_list(f"{server.url}/drip")
    released.set()
    assert time.monotonic() - started < 20, "and not as long as it drips"


@pytest.mark.parametrize("url", ["http://127.0.0.1.example.com/", "http://0x7f.1/", "http:///list", "https://"])
def test_names_that_only_look_like_this_machine(url: str) -> None:
    with pytest.raises(InputError):
        check_url(url)


def test_report_is_the_package_s_list_and_a_file_of_that_name_is_named_by_its_path(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One data set, however its list is named: the fingerprint is the same."""
    listed = list(read_file_list("report").items())[::500]
    draw_bins(tmp_path / "bins", dict(listed) | {"7": 1, "00003": 2, "00001": 2})
    by_count: dict[str, list[str]] = {}
    for bin_id, count in listed:
        by_count.setdefault(str(count), []).append(f"data/metadata/{bin_id}.json")
    (tmp_path / "report").write_text(json.dumps(by_count))
    server.answers["/mine"] = sends((tmp_path / "report").read_bytes())
    options = ["data=abid", "data.source=bins", "data.cache=false", "data.val_fraction=0", "data.counts=[1,2,3,4,5]"]

    def prepared(name: str) -> tuple[int, int, bytes]:
        done = run_here(tmp_path, "prepare", *options, f"data.file_list={name}")
        summary = json.loads((done / "summary.json").read_text())
        index = re.findall(r"^index: (.*)$", capsys.readouterr().out, re.MULTILINE)[-1]
        return summary["total"], summary["absent"], (tmp_path / index).read_bytes()

    of_package, of_file, of_web = (prepared(name) for name in ("report", "./report", f"{server.url}/mine"))
    assert (of_package[:2], of_file[:2]) == ((len(listed), 10441 - len(listed)), (len(listed), 0))
    assert of_package[2] == of_file[2] == of_web[2]
