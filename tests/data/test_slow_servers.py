"""Servers that waste time: what they send is refused or given up, and a signal ends every wait."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from itertools import count
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from binventory.config.schema import S3Config
from binventory.data.sources.bucket import BucketSource
from binventory.data.sources.s3 import S3Connection, read_object
from binventory.errors import ConfigError, InputError
from binventory.models import backbones
from tests.s3 import odd_server, s3_config

Answer = Callable[[BaseHTTPRequestHandler], None]
PAGE = "<ListBucketResult><IsTruncated>{more}</IsTruncated>{contents}{token}</ListBucketResult>"
ENTRY = "<Contents><Key>{key}</Key><Size>1</Size></Contents>"


def send(request: BaseHTTPRequestHandler, status: int, body: str, **headers: str) -> None:
    request.send_response(status)
    for name, value in headers.items():
        request.send_header(name.replace("_", "-"), value)
    request.send_header("Content-Length", str(len(body)))
    request.end_headers()
    if request.command != "HEAD":
        request.wfile.write(body.encode())


def slowly(request: BaseHTTPRequestHandler, data: bytes) -> None:
    for byte in data:
        request.wfile.write(bytes([byte]))
        request.wfile.flush()
        time.sleep(0.05)


def fetch(s3: S3Config, folder: Path, **options: str) -> None:
    BucketSource("s3://bins", file_list=options.get("file_list"), limit=None, s3=s3, data_dir=folder).fetch()


# A least rate


def slow_status(request: BaseHTTPRequestHandler) -> None:
    slowly(request, b"HTTP/1.0 200 OK\r\n" + b"X: y\r\n" * 100)


def slow_body(request: BaseHTTPRequestHandler) -> None:
    request.send_response(200)
    request.send_header("Content-Length", "1000")
    request.end_headers()
    slowly(request, bytes(1000))


def slow_listing(request: BaseHTTPRequestHandler) -> None:
    if "list-type" not in request.path:
        send(request, 404, "<Error><Code>NoSuchKey</Code></Error>")
    else:
        slow_body(request)


@pytest.mark.parametrize("answer", [slow_status, slow_body, slow_listing])
def test_a_byte_now_and_then_is_no_answer(tmp_path: Path, answer: Answer) -> None:
    with odd_server(answer) as url, pytest.raises(InputError) as caught:
        fetch(s3_config(url, max_attempts=1, timeout_s=0.2), tmp_path)
    assert "gave up after 1 attempts: less than 1024 bytes a second" in str(caught.value)


def test_a_slow_photo_is_that_bins_problem(tmp_path: Path) -> None:
    def answer(request: BaseHTTPRequestHandler) -> None:
        if request.command == "HEAD":
            send(request, 200, "")
        else:
            slow_body(request)

    (tmp_path / "list.json").write_text('{"1": ["data/metadata/1.json"]}')
    with odd_server(answer) as url:
        source = BucketSource(
            "s3://bins",
            file_list=str(tmp_path / "list.json"),
            limit=None,
            s3=s3_config(url, max_attempts=1, timeout_s=0.3),
            data_dir=tmp_path / "data",
        )
        (found,) = source.fetch().bins
    assert found.problem is not None
    assert found.problem.count("gave up after 1 attempts: less than 1024 bytes a second") == 2


def test_a_server_that_thinks_for_long_is_no_slow_one(tmp_path: Path) -> None:
    def answer(request: BaseHTTPRequestHandler) -> None:
        time.sleep(0.2)
        send(request, 200, "x" * 5000)

    with odd_server(answer) as url:
        assert read_object("s3://bins/x", s3_config(url, timeout_s=0.4)) == b"x" * 5000


def test_a_model_hub_that_sends_a_byte_now_and_then_is_out_of_reach(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(backbones, "HUB_TIMEOUT_S", 0.2)
    with odd_server(slow_status) as url:
        monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", f"{url}/{{filename}}")
        with pytest.raises(ConfigError, match=r"the model hub can't be reached .*no answer in 0\.4 s"):
            backbones._reach_hub("resnet18.a1_in1k")


# Listings without an end


def numbered(keys: Callable[[int], list[str]], tokens: Callable[[int], str]) -> Answer:
    """Answers to listings: of the page with this number."""
    number = count()

    def answer(request: BaseHTTPRequestHandler) -> None:
        if "list-type" not in request.path:
            send(request, 404, "<Error><Code>NoSuchKey</Code></Error>")
            return
        page = next(number)
        contents = "".join(ENTRY.format(key=key) for key in keys(page))
        token = f"<NextContinuationToken>{tokens(page)}</NextContinuationToken>"
        send(request, 200, PAGE.format(more="true", contents=contents, token=token))

    return answer


@pytest.mark.parametrize(
    ("keys", "tokens"),
    [
        (lambda _: ["bin-images/1.jpg"], lambda _: "same"),
        (lambda _: ["bin-images/1.jpg"], lambda page: f"other{page}"),
        (lambda page: [f"bin-images/{page % 2}.jpg"], lambda page: f"other{page}"),
        (lambda _: [], lambda page: f"other{page}"),
        (lambda _: [], lambda _: "same"),
    ],
)
def test_a_listing_that_does_not_advance_is_refused(
    tmp_path: Path, keys: Callable[[int], list[str]], tokens: Callable[[int], str]
) -> None:
    with (
        odd_server(numbered(keys, tokens)) as url,
        pytest.raises(InputError, match=r"^data\.source: s3://bins/bin-images/: the server's listing does not advance"),
    ):
        fetch(s3_config(url), tmp_path)


def test_empty_pages_in_between_are_none_of_the_listings_end() -> None:
    with odd_server(numbered(lambda page: [f"k{page}.jpg"] * (page % 3 == 0), lambda page: str(page))) as url:
        listed = S3Connection(s3_config(url)).list_objects("bins", "", recursive=True)
        assert [next(listed).key for _ in range(3)] == ["k0.jpg", "k3.jpg", "k6.jpg"]


# Refusals that a HEAD has no words for


def test_redirect_without_a_region_is_one_line(tmp_path: Path) -> None:
    body = "<Error><Code>PermanentRedirect</Code><Message>elsewhere</Message></Error>"
    (tmp_path / "list.json").write_text('{"1": ["data/metadata/1.json"]}')
    for answer_body in (body, "", "<html>moved</html>"):
        with odd_server(lambda request, said=answer_body: send(request, 301, said)) as url:
            for options in ({}, {"file_list": str(tmp_path / "list.json")}):
                with pytest.raises(InputError, match=r"the bucket lies in another region; set s3\.region"):
                    fetch(s3_config(url), tmp_path / "data", **options)


@pytest.mark.parametrize(
    ("status", "code", "message"),
    [
        (400, "ExpiredToken", "the credentials have expired; renew them"),
        (403, "InvalidAccessKeyId", "the credentials are unknown there"),
        (403, "RequestTimeTooSkewed", "this machine's clock is wrong"),
    ],
)
def test_what_is_wrong_with_credentials_is_named(tmp_path: Path, status: int, code: str, message: str) -> None:
    (tmp_path / "list.json").write_text('{"1": ["data/metadata/1.json"]}')
    with (
        odd_server(lambda request: send(request, status, f"<Error><Code>{code}</Code></Error>")) as url,
        pytest.raises(InputError, match=rf"s3://bins: {message}.*\({code}\)"),
    ):
        fetch(s3_config(url), tmp_path / "data", file_list=str(tmp_path / "list.json"))


def test_expired_token_is_named_where_files_are_only_checked(tmp_path: Path) -> None:
    """The bucket may be open to all, and only its objects want credentials."""
    is_expired = threading.Event()

    def answer(request: BaseHTTPRequestHandler) -> None:
        if is_expired.is_set() and urlsplit(request.path).path.count("/") > 1:
            send(request, 400, "<Error><Code>ExpiredToken</Code></Error>")
        else:
            send(request, 200, "{}", ETag='"1"')

    (tmp_path / "list.json").write_text('{"1": ["data/metadata/1.json"]}')
    with odd_server(answer) as url:
        fetch(s3_config(url), tmp_path / "data", file_list=str(tmp_path / "list.json"))
        is_expired.set()
        with pytest.raises(InputError, match=r"s3://bins/.*: the credentials have expired"):
            fetch(s3_config(url), tmp_path / "data", file_list=str(tmp_path / "list.json"))


# Signals


class StopForTest(BaseException):
    """What the handler of a signal raises, as a run's own does."""


@pytest.fixture
def stopping() -> Iterator[threading.Event]:
    """An event that, once set, sends this process a signal whose handler raises StopForTest."""
    is_asked = threading.Event()

    def handle(*_: object) -> None:
        raise StopForTest

    def wait() -> None:
        is_asked.wait()
        os.kill(os.getpid(), signal.SIGUSR2)

    before = signal.signal(signal.SIGUSR2, handle)
    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    yield is_asked
    is_asked.set()
    thread.join()
    signal.signal(signal.SIGUSR2, before)


def test_a_signal_ends_the_wait_for_a_list(tmp_path: Path, stopping: threading.Event) -> None:
    def answer(request: BaseHTTPRequestHandler) -> None:
        stopping.set()
        slowly(request, b"HTTP/1.0 200 OK\r\n" + b"X: y\r\n" * 10_000)

    with odd_server(answer) as url, pytest.raises(StopForTest):
        fetch(s3_config(url, timeout_s=600.0), tmp_path)


@pytest.mark.parametrize("is_silent", [True, False])
def test_a_signal_ends_the_wait_for_photos(tmp_path: Path, stopping: threading.Event, is_silent: bool) -> None:
    def answer(request: BaseHTTPRequestHandler) -> None:
        if request.command == "HEAD":
            send(request, 200, "")
            return
        stopping.set()
        if is_silent:
            time.sleep(60)
        slow_body(request)

    ids = ", ".join(f'"data/metadata/{number}.json"' for number in range(9))
    (tmp_path / "list.json").write_text(f'{{"1": [{ids}]}}')
    with odd_server(answer) as url, pytest.raises(StopForTest):
        fetch(s3_config(url, timeout_s=600.0), tmp_path / "data", file_list=str(tmp_path / "list.json"))
    assert not [thread for thread in threading.enumerate() if re.fullmatch(r"s3_\d+", thread.name)]
    assert not list(tmp_path.rglob("*.part"))


@pytest.mark.long
@pytest.mark.parametrize(("signum", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
@pytest.mark.parametrize("is_list", [True, False])
def test_prepare_leaves_a_slow_server(tmp_path: Path, signum: signal.Signals, code: int, is_list: bool) -> None:
    is_asked = threading.Event()

    def answer(request: BaseHTTPRequestHandler) -> None:
        if request.command == "HEAD":
            send(request, 200, "")
            return
        is_asked.set()
        slowly(request, b"HTTP/1.0 200 OK\r\n" + b"X: y\r\n" * 100_000)

    (tmp_path / "list.json").write_text('{"1": ["data/metadata/1.json"]}')
    with odd_server(answer) as url:
        command = [
            sys.executable,
            "-c",
            "from binventory.launch.entry import main; main('prepare')",
            "data=abid",
            "data.source=s3://bins",
        ]
        command += [f"s3.endpoint_url={url}"] + ["data.file_list=list.json"] * (not is_list)
        with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as process:
            try:
                assert is_asked.wait(120)
                process.send_signal(signum)
                _, said = process.communicate(timeout=60)  # s3.timeout_s=30 alone would take longer
            finally:
                process.kill()
    assert process.returncode == code
    assert f"stopped by {signum.name}" in said
