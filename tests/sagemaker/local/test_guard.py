"""Nobody without the keys of this start, and no web page, is let in: neither to SageMaker's API nor to S3 and the rest."""

from __future__ import annotations

import http.client
import json
import socket
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlsplit

import boto3
import pytest
from botocore.exceptions import ClientError

from binventory.sagemaker.local import guard
from binventory.sagemaker.local.guard import MAX_BODY_BYTES, Keys
from binventory.sagemaker.local.server import LocalSageMaker
from tests.sagemaker.local.conftest import CACHE
from tests.sagemaker.local.lab import BUCKET, Lab, signed_headers

LIST = {"X-Amz-Target": "SageMaker.ListTrainingJobs", "Content-Type": "application/x-amz-json-1.1"}


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with LocalSageMaker(cache=CACHE) as plane:
        yield Lab(plane)


def send(
    url: str, method: str, path: str, headers: dict[str, str], body: bytes = b"", *, length: bool = True
) -> tuple[int, bytes]:
    """Send headers as they are; `Host` and `Content-Length` are added where they are not among them."""
    address = urlsplit(url)
    assert address.hostname is not None
    connection = http.client.HTTPConnection(address.hostname, address.port, timeout=20)
    connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
    lower = {name.lower() for name in headers}
    if "host" not in lower:
        connection.putheader("Host", address.netloc)
    if length and body and "content-length" not in lower:
        connection.putheader("Content-Length", str(len(body)))
    for name, value in headers.items():
        if value:
            connection.putheader(name, value)
    connection.endheaders(body or None)
    answer = connection.getresponse()
    found = answer.status, answer.read()
    connection.close()
    return found


def seen(plane: LocalSageMaker) -> tuple[int, int, int]:
    return len(plane.requests), len(plane.unknown), len(plane.jobs)


FORGED = {
    "nothing": {},
    "old dummy keys": signed_headers(Keys("local", "local"), "POST", "http://127.0.0.1:1/", b"{}", LIST),
    "basic": {"Authorization": "Basic bG9jYWw6bG9jYWw="},
    "nonsense": {"Authorization": "AWS4-HMAC-SHA256 Credential=/////, SignedHeaders=, Signature="},
}


@pytest.mark.parametrize("forged", FORGED)
def test_without_the_keys_every_route_is_403(lab: Lab, forged: str) -> None:
    lab.put("mine.txt", "mine")
    plane, before = lab.plane, seen(lab.plane)
    create = LIST | {"X-Amz-Target": "SageMaker.CreateTrainingJob"}
    routes: list[tuple[str, str, str, dict[str, str], bytes]] = [
        (plane.url, "POST", "/", create, json.dumps(lab.request("evil")).encode()),
        (plane.url, "POST", "/", create, b"no json at all"),
        (plane.url, "POST", "/", LIST | {"Content-Length": "-1"}, b"{}"),
        *(
            (plane.url, method, "/x", {}, b"")
            for method in ("GET", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH", "MOVE")
        ),
        (plane.moto_url, "PUT", f"/{BUCKET}/code.tar.gz", {"Content-Type": "x"}, b"x" * 300_000),
        (plane.moto_url, "PUT", "/another-bucket", {}, b""),
        (plane.moto_url, "GET", f"/{BUCKET}/mine.txt", {}, b""),
        (plane.moto_url, "GET", f"/{BUCKET}/mine.txt?AWSAccessKeyId=local&Signature=x&Expires=9999999999", {}, b""),
        (plane.moto_url, "DELETE", f"/{BUCKET}/mine.txt", {}, b""),
        (plane.moto_url, "POST", "/", {}, b"Action=ListRoles&Version=2010-05-08"),
        (plane.moto_url, "POST", "/moto-api/reset", {}, b""),
        *((plane.moto_url, "GET", path, {}, b"") for path in ("/", "/moto-api/", "/moto-api/data.json", "//", "/%2e")),
    ]
    for url, method, path, headers, body in routes:
        status, _ = send(url, method, path, headers | FORGED[forged], body)
        assert status == 403, (method, path)
    assert seen(plane) == before, "nothing of it came to the API"
    assert lab.read("mine.txt") == "mine"
    assert [bucket["Name"] for bucket in lab.s3.list_buckets()["Buckets"]] == [BUCKET]


@pytest.mark.parametrize("service", ["sagemaker", "s3"])
def test_a_signature_holds_for_one_request(lab: Lab, service: str) -> None:
    keys, body = lab.plane.keys, b"{}"
    url = lab.plane.url if service == "sagemaker" else lab.plane.moto_url
    method, path, wanted = ("POST", "/", LIST) if service == "sagemaker" else ("PUT", f"/{BUCKET}/k", {})
    right = signed_headers(keys, method, f"{url}{path}", body, wanted, service)
    assert send(url, method, path, right, body)[0] == 200
    assert send(url, "PUT" if method == "POST" else "DELETE", path, right, body)[0] == 403
    assert send(url, method, f"{path}?acl", right, body)[0] == 403
    assert send(url, method, f"{path}/other", right, body)[0] == 403
    other_date = right["X-Amz-Date"].replace("T", "T1")[:16] + "Z"
    assert send(url, method, path, right | {"X-Amz-Date": other_date}, body)[0] == 403
    wrong = signed_headers(Keys(keys.access_key, "wrong"), method, f"{url}{path}", body, wanted, service)
    assert send(url, method, path, wrong, body)[0] == 403
    if service == "sagemaker":
        assert send(url, method, path, right, b'{"MaxResults": 1}')[0] == 403, "another body"
        untargeted = signed_headers(keys, method, f"{url}{path}", body, {}, service)
        assert send(url, method, path, untargeted | LIST, body)[0] == 403, "another operation"


@pytest.mark.parametrize("service", ["sagemaker", "s3"])
def test_a_signature_is_valid_for_15_minutes(lab: Lab, service: str, monkeypatch: pytest.MonkeyPatch) -> None:
    url = lab.plane.url if service == "sagemaker" else lab.plane.moto_url
    method, path, wanted = ("POST", "/", LIST) if service == "sagemaker" else ("GET", f"/{BUCKET}", {})
    body = b"{}" if service == "sagemaker" else b""
    found = {}
    for minutes in (-24 * 60, -16, -14, 14, 16, 24 * 60):
        then = datetime.now(UTC) + timedelta(minutes=minutes)
        monkeypatch.setattr("botocore.auth.get_current_datetime", lambda *_, then=then, **__: then.replace(tzinfo=None))
        signed = signed_headers(lab.plane.keys, method, f"{url}{path}", body, wanted, service)
        found[minutes] = send(url, method, path, signed, body)[0]
    assert found == {-24 * 60: 403, -16: 403, -14: 200, 14: 200, 16: 403, 24 * 60: 403}


@pytest.mark.parametrize("service", ["sagemaker", "s3"])
def test_hosts_and_origins_of_others(lab: Lab, service: str) -> None:
    """Signed as it should be: a name that somebody let point here is refused all the same."""
    url = lab.plane.url if service == "sagemaker" else lab.plane.moto_url
    port = urlsplit(url).port
    method, path, wanted = ("POST", "/", LIST) if service == "sagemaker" else ("GET", f"/{BUCKET}", {})
    body = b"{}" if service == "sagemaker" else b""

    def status(host: str, **more: str) -> int:
        signed = signed_headers(lab.plane.keys, method, f"{url}{path}", body, wanted | {"Host": host}, service)
        return send(url, method, path, signed | more, body)[0]

    assert [status(f"{name}:{port}") for name in ("127.0.0.1", "localhost")] == [200] * 2
    others = [
        "evil.example",
        f"evil.example:{port}",
        "127.0.0.1",
        f"127.0.0.1:{int(port or 0) + 1}",
        f"localhost.evil.example:{port}",
    ]
    others += [f"127.0.0.1:{port}.evil.example", f"[::1]:{port}", f"0.0.0.0:{port}", f"a@127.0.0.1:{port}"]
    assert [status(host) for host in others] == [403] * len(others)
    here = f"127.0.0.1:{port}"
    for origin in ("http://evil.example", "null", url):
        assert status(here, Origin=origin) == 403
    signed = signed_headers(lab.plane.keys, method, f"{url}{path}", body, wanted, service)
    assert send(url, method, f"http://{here}{path}", signed, body)[0] == 403, "a proxy's kind of path"
    assert send(url, method, path, signed | {"Host": ""}, body)[0] in (400, 403), "none at all"


BAD_LENGTHS = {"-1": 400, "text": 400, "1e9": 400, "+2": 400, "\uff12": 400, "2, 2": 400, "9" * 30: 400}


@pytest.mark.parametrize("service", ["sagemaker", "s3"])
def test_lengths(lab: Lab, service: str) -> None:
    url = lab.plane.url if service == "sagemaker" else lab.plane.moto_url
    method, path, wanted = ("POST", "/", LIST) if service == "sagemaker" else ("PUT", f"/{BUCKET}/k", {})
    signed = signed_headers(lab.plane.keys, method, f"{url}{path}", b"{}", wanted, service)
    for length, status in BAD_LENGTHS.items():
        raw = length.encode().decode("latin-1")
        assert send(url, method, path, signed | {"Content-Length": raw}, b"{}")[0] == status, length
    large = str((MAX_BODY_BYTES if service == "sagemaker" else guard.MAX_OBJECT_BYTES) + 1)
    assert send(url, method, path, signed | {"Content-Length": large}, b"{}")[0] == 413
    chunked = {"Transfer-Encoding": "chunked"}
    assert send(url, method, path, signed | chunked, b"2\r\n{}\r\n0\r\n\r\n", length=False)[0] == 411
    assert send(url, method, path, signed, b"{}")[0] == 200, "it serves on"


def test_a_call_of_another_service_at_sagemakers_port_is_refused_at_once(lab: Lab) -> None:
    signed = signed_headers(lab.plane.keys, "POST", f"{lab.plane.url}/", b"{}", {}, "s3")
    assert send(lab.plane.url, "POST", "/", signed, b"{}")[0] == 400
    assert send(lab.plane.url, "POST", "/", signed | {"Content-Length": str(MAX_BODY_BYTES + 1)}, b"{}")[0] == 413


def test_what_a_client_with_other_keys_is_told(lab: Lab) -> None:
    for keys, s3_code, code in [
        (("local", "local"), "InvalidAccessKeyId", "UnrecognizedClientException"),
        ((lab.plane.keys.access_key, "local"), "SignatureDoesNotMatch", "InvalidSignatureException"),
    ]:
        session = boto3.Session(*keys, region_name="us-east-1")
        with pytest.raises(ClientError, match=s3_code):
            session.client("s3", endpoint_url=lab.plane.moto_url).put_object(
                Bucket=BUCKET, Key="k", Body=b"x" * 5_000_000
            )
        with pytest.raises(ClientError, match=code):
            session.client("sagemaker", endpoint_url=lab.plane.url).list_training_jobs()


def test_a_slow_client_is_left(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """Header by header, and in the middle of a body: the time is for all of it."""
    monkeypatch.setattr(guard, "HEAD_S", 0.3)
    monkeypatch.setattr(guard, "BODY_S", 0.3)
    address = urlsplit(lab.plane.url)
    signed = signed_headers(lab.plane.keys, "POST", f"{lab.plane.url}/", b"x" * 99, LIST)
    head = "".join(f"{name}: {value}\r\n" for name, value in signed.items())
    whole_head = f"POST / HTTP/1.1\r\nHost: {address.netloc}\r\nContent-Length: 99\r\n{head}\r\n"
    for start in ("POST / HTTP/1.1\r\n", whole_head):
        with socket.create_connection((str(address.hostname), address.port or 0), timeout=20) as client:
            client.sendall(start.encode())
            ended = False
            for _ in range(200):
                try:
                    client.sendall(b"x")
                except OSError:
                    ended = True
                    break
                time.sleep(0.05)
            assert ended, "as long as a byte comes now and then"
    assert lab.sagemaker.list_training_jobs()["TrainingJobSummaries"] is not None


def test_each_start_has_its_own_keys() -> None:
    planes = [LocalSageMaker(cache=CACHE) for _ in range(2)]
    made: set[Any] = {key for plane in planes for key in plane.keys}
    assert len(made) == 4
    assert all(len(key) >= 40 for key in made)
