"""A W&B server on loopback for tests: the real client, agent and wandb-workspaces talk to it, a test reads what it saw.

`pytest_plugins = ["tests.wandb.server"]` gives the fixture `wandb_server`, a running WandbServer that the environment
points to. It keeps everything in memory and knows as much of the API as those clients use; whatever else they ask for
stands in `unknown`, which a test asserts to be empty.
"""

from __future__ import annotations

import gzip
import json
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlsplit

import pytest

from tests.wandb.api import Api
from tests.wandb.graphql import Document

API_KEY = "0123456789abcdef0123456789abcdef01234567"
ENTITY = "warehouse"  # whose key it is: what a client that names no entity gets
HISTORY, EVENTS, SUMMARY, OUTPUT = "wandb-history.jsonl", "wandb-events.jsonl", "wandb-summary.json", "output.log"


@dataclass
class SeenRun:
    """A run as the server holds it.

    Attributes:
        config: values without W&B's {"value": …}; `internal` holds what W&B keeps for itself under `_wandb`.
        history: rows in order; each start of a resumed run goes on behind the rows that are there.
        state: pending (a sweep's job that has not started), running, finished, failed, preempted.
        sweep: id of its sweep, "" without one.
        num_starts: attempts that were made with this id; a run of which `wandb sync` uploads a part counts as one too.
        is_stop_asked: set by a test: the client is told that the user pressed "stop".
    """

    id: str
    entity: str
    project: str
    display_name: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    internal: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    events: list[dict[str, Any]] = field(default_factory=list)
    output: list[str] = field(default_factory=list)
    files: dict[str, bytes] = field(default_factory=dict)
    exit_code: int | None = None
    state: str = "pending"
    group: str = ""
    job_type: str = ""
    notes: str = ""
    tags: list[str] = field(default_factory=list)
    commit: str = ""
    program: str = ""
    sweep: str = ""
    num_starts: int = 0
    is_preempting: bool = False
    is_stop_asked: bool = False


@dataclass
class SeenSweep:
    """A sweep: its config, the jobs that are still to be handed out, and what its agents said.

    Attributes:
        jobs: parameters of the jobs to come, one dict each; when none is left, agents are told to exit.
        run_ids: of the jobs handed out, in order.
        heartbeats: run states that agents sent: run id -> True while it runs.
        stop: ids of runs that agents are told to stop.
    """

    id: str
    entity: str
    project: str
    config: dict[str, Any]
    jobs: list[dict[str, Any]] = field(default_factory=list)
    run_ids: list[str] = field(default_factory=list)
    agents: list[str] = field(default_factory=list)
    heartbeats: list[dict[str, bool]] = field(default_factory=list)
    stop: set[str] = field(default_factory=set)
    state: str = "RUNNING"


@dataclass
class SeenView:
    """A saved workspace view (type "project-view") or a report (type "runs"), its spec parsed."""

    id: str
    entity: str
    project: str
    name: str
    display_name: str
    description: str
    type: str
    spec: dict[str, Any]


@dataclass
class SeenArtifact:
    """An artifact; `files` by their path in it, `is_committed` once the client said that all is there."""

    id: str
    name: str
    type: str
    run: str
    aliases: list[str] = field(default_factory=list)
    metadata: dict[str, Any] = field(default_factory=dict)
    manifest: bytes = b""
    files: dict[str, bytes] = field(default_factory=dict)
    is_committed: bool = False


class WandbServer:
    """What clients sent, by id.

    Attributes:
        url: for WANDB_BASE_URL.
        requests: names of the GraphQL operations, in order.
        unknown: operations, fields and addresses that this server does not know.
        refuse_with: HTTP status that every request gets while it is set.
        default_entity: of the account whose key it is; a test may set it to None.
        errors: name of a GraphQL operation -> the error that it gets, set by a test.
    """

    def __init__(self) -> None:
        self.runs: dict[str, SeenRun] = {}
        self.sweeps: dict[str, SeenSweep] = {}
        self.views: dict[str, SeenView] = {}
        self.artifacts: dict[str, SeenArtifact] = {}
        self.projects: list[tuple[str, str]] = []
        self.requests: list[str] = []
        self.unknown: list[str] = []
        self.refuse_with: int | None = None
        self.default_entity: str | None = ENTITY
        self.errors: dict[str, str] = {}
        self._lock = threading.RLock()
        self._api = Api(self)
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"
        threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()

    def add_sweep(
        self,
        config: dict[str, Any],
        jobs: list[dict[str, Any]],
        project: str = "binventory",
        sweep_id: str | None = None,
    ) -> SeenSweep:
        """Make a sweep whose agents get these jobs (parameter -> value), one at a time, and are then told to exit."""
        sweep = SeenSweep(sweep_id or f"sweep{len(self.sweeps):03d}", ENTITY, project, config, list(jobs))
        self.sweeps[sweep.id] = sweep
        self.add_project(ENTITY, project)
        return sweep

    def add_project(self, entity: str, project: str) -> bool:
        """Return whether it is new."""
        if is_new := (entity, project) not in self.projects:
            self.projects.append((entity, project))
        return is_new

    def run_of(self, entity: str, project: str, run_id: str) -> SeenRun:
        """Return a run, made if need be."""
        self.add_project(entity, project)
        return self.runs.setdefault(run_id, SeenRun(run_id, entity, project))

    def overwrite(self, run_id: str) -> None:
        """Forget what an earlier attempt sent: one that does not resume starts anew under its id."""
        before = self.runs[run_id]
        self.runs[run_id] = SeenRun(
            run_id, before.entity, before.project, sweep=before.sweep, num_starts=before.num_starts
        )

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, bytes]:
        """Return the status and body of one request's response."""
        parts = [unquote(part) for part in path.strip("/").split("/")]
        with self._lock:
            if self.refuse_with is not None:
                return self.refuse_with, json.dumps({"errors": [{"message": "refused by the test"}]}).encode()
            if method == "GET" and path in ("", "/"):  # the web application: whoever looks whether the server is there
                return 200, b""
            if path == "/graphql":
                return 200, json.dumps(self._graphql(json.loads(body))).encode()
            if parts[0] == "files" and parts[-1] == "file_stream":
                return 200, json.dumps(self._file_stream(self.run_of(*parts[1:4]), json.loads(body))).encode()
            if method == "PUT" and parts[0] == "storage":
                self._store(parts[1], parts[2], "/".join(parts[3:]), body)
                return 200, b""
            self.unknown.append(f"{method} {path}")
            return 404, b'{"error": "not found"}'

    def upload_url(self, kind: str, owner: str, name: str) -> str:
        """Return where a file of a run, or of an artifact, is to be put."""
        return f"{self.url}/storage/{kind}/{quote(owner, safe='')}/{quote(name)}"

    def _graphql(self, request: dict[str, Any]) -> dict[str, Any]:
        document = Document(request["query"], request.get("variables") or {})
        self.requests.append(document.name)
        if document.name in self.errors:
            return {"data": None, "errors": [{"message": self.errors[document.name]}]}
        data = document.answer(self._api.roots)
        self.unknown += document.unknown
        return {"data": data}

    def _store(self, kind: str, owner: str, name: str, body: bytes) -> None:
        if kind == "run":
            self.runs[owner].files[name] = body
        elif kind == "manifest":
            self.artifacts[owner].manifest = body
        else:
            self.artifacts[owner].files[name] = body

    def _file_stream(self, run: SeenRun, said: dict[str, Any]) -> dict[str, Any]:
        for name, chunk in said.get("files", {}).items():
            offset, lines = chunk["offset"], chunk["content"]
            if name == SUMMARY:
                run.summary = json.loads(lines[-1])
            elif name in (HISTORY, EVENTS):
                rows = run.history if name == HISTORY else run.events
                rows[offset : offset + len(lines)] = [json.loads(line) for line in lines]
            elif name == OUTPUT:
                run.output[offset : offset + len(lines)] = lines
            else:
                self.unknown.append(f"file_stream {name}")
        run.is_preempting |= bool(said.get("preempting"))
        if said.get("complete"):
            run.exit_code = said["exitcode"]
            run.state = "finished" if run.exit_code == 0 else "preempted" if run.is_preempting else "failed"
        return {"limits": {}, "stopped": run.is_stop_asked}


def _handler(server: WandbServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if self.headers.get("Content-Encoding") == "gzip":
                body = gzip.decompress(body)
            status, answer = server.answer(self.command, urlsplit(self.path).path, body)
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        do_GET = do_PUT = do_POST  # noqa: N815  what http.server looks for

        def log_message(self, *args: object) -> None:
            pass

    return Handler


@pytest.fixture
def wandb_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[WandbServer]:
    """A server of this test alone; the environment, also of processes that the test starts, points to it."""
    server = WandbServer()
    # Rows are sent each second, the least there is; by default a run of 15 s shows none before it ends.
    settings = {
        "X_FILE_STREAM_TRANSMIT_INTERVAL": "1",
        "BASE_URL": server.url,
        "API_KEY": API_KEY,
        "MODE": "online",
        "ERROR_REPORTING": "false",
    }
    for name in ("DIR", "CACHE_DIR", "CONFIG_DIR", "DATA_DIR"):
        settings[name] = str(tmp_path / "wandb-client" / name.lower())
        Path(settings[name]).mkdir(parents=True)
    for name, value in settings.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    for name in ("ENTITY", "PROJECT", "RUN_ID", "SWEEP_ID", "RESUME", "RUN_GROUP", "NAME", "TAGS"):
        monkeypatch.delenv(f"WANDB_{name}", raising=False)
    stop_client()  # it may hold settings of an earlier test
    yield server
    stop_client()
    server.close()


def stop_client() -> None:
    """End the client's background process; it reads the environment again when it starts next."""
    if wandb := sys.modules.get("wandb"):
        wandb.teardown()
