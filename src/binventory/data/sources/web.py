"""One file of bounded size from a web server."""

from __future__ import annotations

import ipaddress
import threading
from typing import TYPE_CHECKING
from urllib.parse import SplitResult, urljoin, urlsplit

from binventory.data.text import printable
from binventory.errors import InputError

if TYPE_CHECKING:
    import http.client

TIMEOUT_S = 120.0  # for the whole file, however slowly its bytes come
CONNECT_TIMEOUT_S = 30.0
CHUNK_BYTES = 1 << 20
MAX_REDIRECTS = 5
REDIRECTS = (301, 302, 303, 307, 308)


def is_url(location: str) -> bool:
    """Whether a location is on a web server."""
    return location.lower().startswith(("https://", "http://"))


def check_url(url: str) -> None:
    """Refuse a URL that is not read: one with a password, or without TLS on another machine.

    Raises:
        InputError: names the URL without what may be secret in it, and why.
    """
    parts = _split(url)
    if not parts.hostname:
        raise InputError(f"{_shown(url)}: names no server")
    if "@" in parts.netloc:
        raise InputError(f"{_shown(url)}: a user and a password in a URL are not sent; save the file and name it")
    if parts.scheme != "https" and not _is_loopback(parts):
        raise InputError(f"{_shown(url)}: http is read from this machine only; write https:// or save the file")


def read_url(url: str, max_bytes: int) -> bytes:
    """Read a file of at most `max_bytes` by https, or by http from this machine, within 120 seconds.

    At most 5 redirects are followed, none from https to http and none from another machine to this one.

    Raises:
        InputError: it cannot be had; the message names the URL and why.
    """
    found: list[bytes | Exception] = []
    done = threading.Event()

    def read() -> None:
        try:
            found.append(_follow(url, max_bytes))
        except Exception as error:  # noqa: BLE001  raised again below, in the thread that waits
            found.append(error)
        done.set()

    # On a thread: a server that sends a byte now and then would hold any read up for ever, past signals too.
    threading.Thread(target=read, name="url", daemon=True).start()
    if not done.wait(TIMEOUT_S):
        raise InputError(f"{_shown(url)}: took longer than {TIMEOUT_S:g} s; save the file and name it")
    if isinstance(found[0], Exception):
        raise found[0]
    return found[0]


def _follow(url: str, max_bytes: int) -> bytes:
    here = url
    for _ in range(MAX_REDIRECTS + 1):
        found = _request(here, max_bytes)
        if isinstance(found, bytes):
            return found
        _check_redirect(here, found)
        here = found
    raise InputError(f"{_shown(url)}: redirects more than {MAX_REDIRECTS} times")


def _check_redirect(here: str, there: str) -> None:
    if is_url(there):
        check_url(there)
    before, after = _split(here), _split(there)
    is_weaker = before.scheme == "https" and after.scheme == "http"
    if not is_url(there) or is_weaker or (_is_loopback(after) and not _is_loopback(before)):
        raise InputError(f"{_shown(here)}: redirects to {_shown(there)}, where it is not followed")


def _request(url: str, max_bytes: int) -> bytes | str:
    """Return the file, or the URL to which it redirects."""
    from http.client import HTTPException
    from urllib.error import HTTPError, URLError
    from urllib.request import HTTPRedirectHandler, ProxyHandler, Request, build_opener

    class Refuse(HTTPRedirectHandler):
        def redirect_request(self, *args: object) -> None:
            return None

    check_url(url)
    handlers = [Refuse, ProxyHandler({})] if _is_loopback(_split(url)) else [Refuse]
    request = Request(url, headers={"User-Agent": "binventory", "Accept": "application/json, */*"})  # noqa: S310  see check_url
    try:
        with build_opener(*handlers).open(request, timeout=CONNECT_TIMEOUT_S) as answer:
            return _body(answer, url, max_bytes)
    except InputError:
        raise
    except HTTPError as error:
        error.close()
        location = error.headers.get("Location")
        if error.code in REDIRECTS and location:
            return urljoin(url, location)
        raise InputError(f"{_shown(url)}: HTTP {error.code} {printable(str(error.reason), 60)}".rstrip()) from error
    except (OSError, HTTPException, ValueError) as error:  # ValueError: a URL that http.client cannot send
        reason = error.reason if isinstance(error, URLError) else error
        shown = printable(" ".join(str(reason).split()) or type(error).__name__, 200)
        raise InputError(f"{_shown(url)}: cannot be read: {shown}; check the URL and the network") from error


def _body(answer: http.client.HTTPResponse, url: str, max_bytes: int) -> bytes:
    too_large = InputError(f"{_shown(url)}: too large: at most {max_bytes // 2**20} MiB are read")
    if (answer.length or 0) > max_bytes:
        raise too_large
    body = bytearray()
    while chunk := answer.read(CHUNK_BYTES):
        body += chunk
        if len(body) > max_bytes:
            raise too_large
    if answer.length:  # http.client gives what there is of a body that was cut off
        raise InputError(f"{_shown(url)}: cut off after {len(body):,} bytes; try again")
    return bytes(body)


def _split(url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        _ = parts.port  # also of a port that is no number
    except ValueError as error:
        raise InputError(f"{_shown(url)}: is no URL: {error}") from error
    return parts


def _is_loopback(parts: SplitResult) -> bool:
    if parts.hostname == "localhost":
        return True
    try:
        return ipaddress.ip_address(parts.hostname or "").is_loopback
    except ValueError:
        return False


def _shown(url: str) -> str:
    """A URL for a message: a query may hold a signature, a user part a password."""
    bare = url.split("?", 1)[0].split("#", 1)[0]
    scheme, _, rest = bare.partition("://")
    host, slash, path = rest.partition("/")
    return printable(f"{scheme}://{host.rpartition('@')[2]}{slash}{path}", 200)
