"""Who may call the control plane: only who has this start's keys, and no web page. Before both of its servers."""

from __future__ import annotations

import hmac
import io
import json
import re
import secrets
import socket
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from email.message import Message
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

MAX_BODY_BYTES = 4 << 20
MAX_OBJECT_BYTES = 5 << 30  # as AWS lets one PUT have
IDLE_S = 120.0  # between two requests of a connection
HEAD_S = 20.0  # for the request line and all headers
BODY_S, MIN_BYTES_PER_S = 30.0, 64 << 10
SEND_S = 600.0
DRAIN_S, DRAIN_BYTES = 2.0, 1 << 20
NAMES = ("127.0.0.1", "localhost")
MAX_SKEW_S = 900.0  # a signature is valid this long, as AWS has it

_AUTHORIZATION = re.compile(
    r"AWS4-HMAC-SHA256 Credential=([^/,\s]+)/(\d{8})/([^/,\s]+)/([^/,\s]+)/aws4_request,\s*"
    r"SignedHeaders=([^,\s]+),\s*Signature=([0-9a-f]{64})"
)


class Keys(NamedTuple):
    """The access key and the secret key of one start of the control plane."""

    access_key: str
    secret_key: str

    @classmethod
    def new(cls) -> Keys:
        """Draw keys that nobody can guess, each 160 bits or more."""
        return cls(f"LOCAL{secrets.token_hex(20).upper()}", secrets.token_urlsafe(40))


class RefusedError(Exception):
    """A request that is not let in: its HTTP status, AWS's code as S3 and as JSON services spell it, and why."""

    def __init__(self, status: int, code: str, json_code: str, message: str) -> None:
        super().__init__(message)
        self.status, self.code, self.json_code = status, code, json_code


@dataclass(frozen=True)
class _Signed:
    """What an Authorization header says."""

    date: str
    region: str
    service: str
    names: tuple[str, ...]
    signature: str

    @property
    def is_s3(self) -> bool:
        return self.service == "s3"


class GuardedHandler(BaseHTTPRequestHandler):
    """Turns away, with 403 and before anything of it is looked at, what is not signed with `keys`.

    A subclass sets `keys`. The methods that answer see a body of known length in `rfile`: the whole of it, but for
    S3's, which is read as it comes and may have `max_object_bytes`.
    """

    keys: Keys
    max_object_bytes = MAX_BODY_BYTES

    def setup(self) -> None:
        """Read through what keeps time: a client may send a byte now and then."""
        super().setup()
        self._timed = _TimedInput(self.connection)
        self._stream = io.BufferedReader(self._timed)

    def finish(self) -> None:
        """Close what `setup` opened."""
        super().finish()
        self._stream.close()

    def handle_one_request(self) -> None:
        """Begin with what the connection brings next, whatever the request before made of `rfile`."""
        self.rfile = self._stream
        self._timed.wait_for_request()
        super().handle_one_request()

    def handle_expect_100(self) -> bool:
        """Nothing is asked for before the request is let in."""
        return True

    def parse_request(self) -> bool:
        """Read the head of a request; False when it is not to be answered any more."""
        if not super().parse_request():
            return False
        try:
            self._let_in()
        except RefusedError as refusal:
            self._turn_away(refusal)
            return False
        return True

    def _let_in(self) -> None:
        headers = self.headers
        _check_origin(self.path, headers, self.connection.getsockname()[1])
        signed = _read_authorization(headers, self.keys)
        if signed.is_s3:  # of its body the hash is signed
            _check_signature(self.keys, signed, self.command, self.path, headers, None)
        length = _length(headers, self.max_object_bytes if signed.is_s3 else MAX_BODY_BYTES)
        self._timed.allow(BODY_S + length / MIN_BYTES_PER_S)
        if "Expect" in headers:
            del headers["Expect"]
            self.send_response_only(100)
            self.end_headers()
        if signed.is_s3:
            return
        body = self._stream.read(length)
        if len(body) < length:
            raise RefusedError(400, "IncompleteBody", "SerializationException", "The body is shorter than it says")
        _check_signature(self.keys, signed, self.command, self.path, headers, body)
        self.rfile = io.BufferedReader(io.BytesIO(body))

    def _turn_away(self, refusal: RefusedError) -> None:
        self.close_connection = True
        if "X-Amz-Target" in self.headers:
            kind = "application/x-amz-json-1.1"
            text = json.dumps({"__type": refusal.json_code, "message": str(refusal), "Message": str(refusal)})
        else:
            kind, text = "application/xml", f"<Error><Code>{refusal.code}</Code><Message>{refusal}</Message></Error>"
        body = text.encode()
        self.send_response(refusal.status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
        self._drain()

    def _drain(self) -> None:
        """Throw away some of what is still coming: closing at once would take the answer from the client."""
        self._timed.allow(DRAIN_S)
        try:
            self.connection.shutdown(socket.SHUT_WR)
            left = DRAIN_BYTES
            while left > 0 and (data := self._stream.read1(65536)):
                left -= len(data)
        except OSError:
            return

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


class _TimedInput(io.RawIOBase):
    """A connection's bytes, each read with what is left of the time for all of them."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._deadline: float | None = None

    def wait_for_request(self) -> None:
        """Wait for the next request's first byte for `IDLE_S`, then for all of its head for `HEAD_S`."""
        self._deadline = None

    def allow(self, seconds: float) -> None:
        """Let what is read from now on take so long, in all."""
        self._deadline = time.monotonic() + seconds

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        left = IDLE_S if self._deadline is None else self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("the client sends too slowly")
        self._connection.settimeout(left)
        try:
            return self._connection.recv_into(buffer)
        finally:
            self._connection.settimeout(SEND_S)  # answers take their own time
            if self._deadline is None:
                self.allow(HEAD_S)


def _check_origin(path: str, headers: Message, port: int) -> None:
    hosts = headers.get_all("Host") or []
    names = {f"{name}:{port}" for name in NAMES}
    if len(hosts) != 1 or hosts[0].strip().lower() not in names:
        raise _denied(f"The Host header is none of {', '.join(sorted(names))}")
    if "Origin" in headers:
        raise _denied("Web pages are not let in")
    if not path.startswith("/"):
        raise _denied("The path does not begin with a slash")


def _read_authorization(headers: Message, keys: Keys) -> _Signed:
    lines = headers.get_all("Authorization") or []
    found = _AUTHORIZATION.fullmatch(lines[0].strip()) if len(lines) == 1 else None
    if found is None:
        raise RefusedError(
            403, "AccessDenied", "MissingAuthenticationTokenException", "The request is not signed: Signature Version 4"
        )
    if not hmac.compare_digest(found[1].encode(), keys.access_key.encode()):
        raise RefusedError(
            403,
            "InvalidAccessKeyId",
            "UnrecognizedClientException",
            "The access key is not that of this start of the local control plane",
        )
    return _Signed(found[2], found[3], found[4], tuple(found[5].split(";")), found[6])


def _check_signature(
    keys: Keys, signed: _Signed, command: str, path: str, headers: Message, body: bytes | None
) -> None:
    """Compare with the signature that botocore makes of the same request; without `body` S3's way."""
    from botocore.auth import S3SigV4Auth, SigV4Auth
    from botocore.awsrequest import AWSRequest
    from botocore.credentials import Credentials

    needed = {"host", "x-amz-date"} | ({"x-amz-content-sha256"} if signed.is_s3 else set())
    needed |= {"x-amz-target"} & {name.lower() for name in headers}
    values = {name: ",".join(headers.get_all(name) or []) for name in signed.names}
    date = headers.get("X-Amz-Date", "")
    if needed <= values.keys() and re.fullmatch(r"\d{8}T\d{6}Z", date) and date.startswith(signed.date):
        request = AWSRequest(command, f"http://{headers['Host']}{path}", values, body)
        request.context["timestamp"] = date
        kind = S3SigV4Auth if signed.is_s3 else SigV4Auth
        auth = kind(Credentials(keys.access_key, keys.secret_key), signed.service, signed.region)
        canonical = auth.canonical_request(request)
        expected = auth.signature(auth.string_to_sign(request, canonical), request)
        if hmac.compare_digest(expected.encode(), signed.signature.encode()):
            _check_time(date)
            return
    raise RefusedError(
        403, "SignatureDoesNotMatch", "InvalidSignatureException", "The signature is not that of this request"
    )


def _check_time(date: str) -> None:
    try:
        signed_at = datetime.strptime(date, "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC).timestamp()
    except ValueError:  # the 32nd of a month
        signed_at = 0.0
    if abs(time.time() - signed_at) > MAX_SKEW_S:
        message = f"The request was signed at {date}, more than {MAX_SKEW_S / 60:.0f} minutes from now"
        raise RefusedError(403, "RequestTimeTooSkewed", "InvalidSignatureException", message)


def _length(headers: Message, max_bytes: int) -> int:
    """The Content-Length, checked; bodies of unknown length are not taken."""
    lengths = [line.strip() for line in headers.get_all("Content-Length") or ["0"]]
    if "Transfer-Encoding" in headers:
        raise RefusedError(411, "MissingContentLength", "SerializationException", "A request needs a Content-Length")
    if len(lengths) != 1 or re.fullmatch(r"[0-9]{1,18}", lengths[0]) is None:
        raise RefusedError(400, "InvalidRequest", "SerializationException", "Content-Length is no number of bytes")
    if int(lengths[0]) > max_bytes:
        message = f"A request has at most {max_bytes} bytes"
        raise RefusedError(413, "EntityTooLarge", "RequestEntityTooLargeException", message)
    return int(lengths[0])


def _denied(message: str) -> RefusedError:
    return RefusedError(403, "AccessDenied", "AccessDeniedException", message)
