"""`make audit` against an advisory service on loopback: pip-audit's own requests, over TLS, through a proxy.

pip-audit asks pypi.org and can be told no other place for its index, so the proxy is pypi.org for the script.
"""

from __future__ import annotations

import datetime
import json
import os
import re
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from tests.running import ROOT

ADVISORY = {"id": "PYSEC-0000-1", "aliases": [], "fixed_in": ["99"], "summary": "planted", "withdrawn": None}


def write_certificate(folder: Path) -> Path:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "pypi.org")])
    now = datetime.datetime.now(datetime.UTC)
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = (
        builder.serial_number(1)
        .not_valid_before(now - datetime.timedelta(1))
        .not_valid_after(now + datetime.timedelta(1))
    )
    builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName("pypi.org")]), critical=False)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    certificate = builder.sign(key, hashes.SHA256())
    path = folder / "pypi.pem"
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path.write_bytes(private + certificate.public_bytes(serialization.Encoding.PEM))
    return path


class Advisories:
    """pypi.org's JSON interface behind a proxy.

    Attributes:
        vulnerable: names of packages with a known vulnerability.
        unknown: names of packages that it does not have.
        asked: what was looked up, as name/version.
    """

    def __init__(self, certificate: Path) -> None:
        self.vulnerable = {"jinja2/2.10"}
        self.unknown: set[str] = set()
        self.asked: set[str] = set()
        service = self
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)

        class Pypi(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def do_CONNECT(self) -> None:
                assert self.path == "pypi.org:443"
                self.send_response(200)
                self.end_headers()
                secure = context.wrap_socket(self.connection, server_side=True)
                type(self)(secure, self.client_address, self.server)  # the requests inside the tunnel
                self.close_connection = True

            def do_GET(self) -> None:
                match = re.fullmatch(r"/pypi/(.+)/json", self.path)
                assert match is not None
                service.asked.add(match[1])
                name = match[1].partition("/")[0]
                bad = {name, match[1]} & service.vulnerable
                body = json.dumps({"vulnerabilities": [ADVISORY] if bad else []}).encode()
                self.send_response(404 if name in service.unknown else 200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *args: Any) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Pypi)
        self._http.daemon_threads = True
        self.proxy = f"http://127.0.0.1:{self._http.server_address[1]}"
        threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()


@pytest.fixture
def advisories(tmp_path: Path) -> Iterator[Advisories]:
    service = Advisories(write_certificate(tmp_path))
    yield service
    service.close()


def audit(proxy: str, tmp_path: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "HTTPS_PROXY": proxy, "REQUESTS_CA_BUNDLE": str(tmp_path / "pypi.pem")}
    for name in ("https_proxy", "NO_PROXY", "no_proxy", "ALL_PROXY", "all_proxy"):
        environment.pop(name, None)
    return subprocess.run(
        [sys.executable, str(ROOT / ".ci" / "audit.py")], env=environment, capture_output=True, text=True, check=False, timeout=120
    )  # fmt: skip


def test_every_package_is_looked_up(advisories: Advisories, tmp_path: Path) -> None:
    done = audit(advisories.proxy, tmp_path)
    assert done.returncode == 0, done.stderr
    names = {asked.partition("/")[0] for asked in advisories.asked}
    assert names >= {"torch", "pytorch-lightning", "timm", "hydra-core", "pillow", "pip-audit", "pip"}
    assert "binventory" not in names
    assert len(names) > 100
    assert not [asked for asked in advisories.asked if "+" in asked]


def test_a_known_vulnerability_fails(advisories: Advisories, tmp_path: Path) -> None:
    advisories.vulnerable.add("pillow")
    done = audit(advisories.proxy, tmp_path)
    assert done.returncode == 1
    assert "PYSEC-0000-1" in done.stdout
    assert "pillow" in done.stdout


def test_a_package_that_cannot_be_looked_up_fails(advisories: Advisories, tmp_path: Path) -> None:
    advisories.unknown.add("timm")
    done = audit(advisories.proxy, tmp_path)
    assert done.returncode == 1
    assert "timm" in done.stderr
    assert "could not be audited" in done.stderr


@pytest.mark.parametrize("fault", ["nobody answers", "knows nothing", "has no such page"])
def test_no_answer_is_no_pass(fault: str, advisories: Advisories, tmp_path: Path) -> None:
    proxy = advisories.proxy
    if fault == "nobody answers":
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            proxy = f"http://127.0.0.1:{free.getsockname()[1]}"
    elif fault == "knows nothing":
        advisories.vulnerable.clear()
    else:
        advisories.unknown.add("jinja2")
    done = audit(proxy, tmp_path)
    assert done.returncode == 75
    assert done.stderr.startswith("not evaluated: the advisory service cannot be reached (")
    assert done.stderr.count("\n") == 1
    assert len(advisories.asked) <= 1
