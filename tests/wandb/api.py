"""The part of W&B's GraphQL API that its client, its sweep agent and wandb-workspaces use."""

from __future__ import annotations

import base64
import json
from typing import TYPE_CHECKING, Any

import yaml

from tests.wandb.graphql import Arguments, Resolver

if TYPE_CHECKING:
    from tests.wandb.server import SeenArtifact, SeenRun, SeenSweep, SeenView, WandbServer

Node = dict[str, Any]

# Features of today's servers that the clients ask for by name; without them they refuse or fall back to older calls.
FEATURES = ("FILESTREAM_GZIP",)


def connection(nodes: list[Node]) -> Node:
    """A page of nodes, the only one."""
    edges = [{"cursor": str(position), "node": node} for position, node in enumerate(nodes)]
    return {
        "edges": edges,
        "pageInfo": {"__typename": "PageInfo", "endCursor": None, "hasNextPage": False},
        "totalCount": len(nodes),
    }


def global_id(kind: str, *names: str) -> str:
    """An opaque id, made as W&B's are."""
    return base64.b64encode(":".join((kind, *names)).encode()).decode()


class Api:
    """Resolvers of the top-level fields; each gets the field's arguments."""

    def __init__(self, server: WandbServer) -> None:
        self._server = server
        self.roots: dict[str, Resolver] = {
            "viewer": lambda _: self._viewer(),
            "serverInfo": lambda _: self._server_info(),
            "organization": lambda _: {"featureFlags": []},
            "entity": lambda a: {"name": a["name"], "organization": None, "isTeam": False, "xxhashDigestsEnabled": False},
            "model": lambda a: self._project(a),
            "project": lambda a: self._project(a),
            "models": lambda a: connection([self._project({"entityName": e, "name": p}) for e, p in server.projects
                                            if e == a["entityName"]]),
            "upsertModel": self._upsert_project,
            "upsertBucket": self._upsert_run,
            "createRunFiles": self._create_run_files,
            "markRunFilesUploaded": lambda _: {"success": True},
            "createArtifact": self._create_artifact,
            "createArtifactManifest": self._create_manifest,
            "updateArtifactManifest": self._create_manifest,
            "createArtifactFiles": self._create_artifact_files,
            "commitArtifact": self._commit_artifact,
            "clientIDMapping": lambda a: {"serverID": a["clientID"]} if a["clientID"] in server.artifacts else None,
            "upsertSweep": self._upsert_sweep,
            "createAgent": self._create_agent,
            "agentHeartbeat": self._heartbeat,
            "upsertView": self._upsert_view,
            "view": lambda a: view_node(server.views[a["id"]]) if a["id"] in server.views else None,
        }  # fmt: skip

    # Who asks, and what the server can do

    def _viewer(self) -> Node:
        from tests.wandb.server import ENTITY

        return {
            "__typename": "User", "id": global_id("User", ENTITY), "name": ENTITY, "username": ENTITY, "admin": False,
            "entity": self._server.default_entity, "email": f"{ENTITY}@example.org", "flags": "{}", "deletedAt": None, "apiKeys": connection([]),
            "teams": connection([{"name": ENTITY}]),
        }  # fmt: skip

    def _server_info(self) -> Node:
        return {
            "cliVersionInfo": {"max_cli_version": "99.0.0", "min_cli_version": "0.0.0"},
            "latestLocalVersionInfo": None,
            "features": [{"name": name, "isEnabled": True} for name in FEATURES],
        }

    # Projects and runs

    def _project(self, arguments: Arguments) -> Node | None:
        entity, name = arguments.get("entityName") or self._viewer()["entity"], arguments["name"]
        if (entity, name) not in self._server.projects:
            return None
        number = self._server.projects.index((entity, name))
        return {
            "__typename": "Project", "id": global_id("Project", "v1", name, entity), "internalId": f"UHJvamVjdA{number}",
            "name": name, "entityName": entity, "entity": {"id": global_id("Entity", entity), "name": entity},
            "createdAt": "2026-01-01T00:00:00", "isBenchmark": False, "user": self._viewer(), "readOnly": False,
            "description": "", "access": "USER_READ", "views": "{}",
            "bucket": lambda a: self._run(a["name"]), "run": lambda a: self._run(a["name"]),
            "sweep": lambda a: self._sweep(a["sweepName"]),
            "allViews": lambda a: connection([view_node(view) for view in self._server.views.values()
                                              if view.name == a["viewName"] and view.type == a["viewType"]]),
            "artifactType": lambda _: None, "artifact": lambda _: None,
        }  # fmt: skip

    def _upsert_project(self, arguments: Arguments) -> Node:
        said = arguments["input"]
        is_new = self._server.add_project(said["entityName"], said["name"])
        project = self._project(said)
        return {"project": project, "model": project, "inserted": is_new}

    def _run(self, run_id: str) -> Node | None:
        return run_node(self._server.runs[run_id]) if run_id in self._server.runs else None

    def _upsert_run(self, arguments: Arguments) -> Node:
        said = arguments["input"]
        entity = said.get("entityName") or self._viewer()["entity"]
        is_new = said["name"] not in self._server.runs
        if said.get("host") and said.get("id") is None and not is_new:
            self._server.overwrite(said["name"])
        run = self._server.run_of(entity, said.get("modelName") or "uncategorized", said["name"])
        names = {"display_name": "displayName", "group": "groupName", "job_type": "jobType", "notes": "notes",
                 "tags": "tags", "commit": "commit", "program": "jobProgram", "sweep": "sweep"}  # fmt: skip
        for attribute, name in names.items():
            if said.get(name) is not None:
                setattr(run, attribute, said[name])
        if said.get("config") is not None:
            values = {key: node["value"] for key, node in json.loads(said["config"]).items()}
            run.internal = values.pop("_wandb", run.internal)
            run.config = values
        if said.get("summaryMetrics") is not None:
            run.summary = json.loads(said["summaryMetrics"])
        if said.get("host"):  # only an attempt that starts says where; later requests bring the config up to date
            run.num_starts += 1
            run.state, run.exit_code, run.is_preempting = "running", None, False
        project = self._project({"entityName": entity, "name": run.project})
        return {"bucket": {**run_node(run), "project": project}, "inserted": is_new}

    def _create_run_files(self, arguments: Arguments) -> Node:
        said = arguments["input"]
        files = [{"name": name, "uploadUrl": self._server.upload_url("run", said["runName"], name)}
                 for name in said["files"]]  # fmt: skip
        return {"runID": said["runName"], "uploadHeaders": [], "files": files}

    # Artifacts

    def _create_artifact(self, arguments: Arguments) -> Node:
        from tests.wandb.server import SeenArtifact

        said = arguments["input"]
        names = said.get("artifactCollectionNames") or [said.get("artifactCollectionName")]
        artifact = SeenArtifact(
            id=said.get("clientID") or global_id("Artifact", str(len(self._server.artifacts))),
            name=names[0], type=said["artifactTypeName"], run=said.get("runName") or "",
            aliases=[alias["alias"] for alias in said.get("aliases") or []],
            metadata=json.loads(said.get("metadata") or "{}"),
        )  # fmt: skip
        self._server.artifacts[artifact.id] = artifact
        return {"artifact": artifact_node(artifact)}

    def _create_manifest(self, arguments: Arguments) -> Node:
        said = arguments["input"]
        artifact_id = said.get("artifactID") or said["artifactManifestID"]
        url = self._server.upload_url("manifest", artifact_id, "wandb_manifest.json")
        return {
            "artifactManifest": {"id": artifact_id, "file": {"id": artifact_id, "uploadUrl": url, "uploadHeaders": []}}
        }

    def _create_artifact_files(self, arguments: Arguments) -> Node:
        nodes = [
            {
                "name": file["name"], "storagePath": file["name"], "uploadHeaders": [], "uploadMultipartUrls": None,
                "uploadUrl": self._server.upload_url("artifact", file["artifactID"], file["name"]),
                "artifact": {"id": file["artifactID"]},
            } for file in arguments["input"]["artifactFiles"]
        ]  # fmt: skip
        return {"files": connection(nodes)}

    def _commit_artifact(self, arguments: Arguments) -> Node:
        artifact = self._server.artifacts[arguments["input"]["artifactID"]]
        artifact.is_committed = True
        return {"artifact": artifact_node(artifact)}

    # Sweeps and their agents

    def _sweep(self, sweep_id: str) -> Node | None:
        sweep = self._server.sweeps.get(sweep_id)
        return None if sweep is None else sweep_node(sweep, [self._server.runs[run_id] for run_id in sweep.run_ids])

    def _upsert_sweep(self, arguments: Arguments) -> Node:
        said = arguments["input"]
        if said.get("id") is None:
            sweep = self._server.add_sweep(yaml.safe_load(said["config"]), [], said["projectName"])
        else:
            sweep = self._server.sweeps[said["id"]]
            if said.get("config") is not None:
                sweep.config = yaml.safe_load(said["config"])
        sweep.state = said.get("state") or sweep.state
        project = self._project({"entityName": sweep.entity, "name": sweep.project})
        node = {"id": sweep.id, "name": sweep.id, "state": sweep.state, "project": project}
        return {"sweep": node, "configValidationWarnings": []}

    def _create_agent(self, arguments: Arguments) -> Node:
        sweep = self._server.sweeps[arguments["input"]["sweep"]]
        sweep.agents.append(f"{sweep.id}:{len(sweep.agents)}")
        return {"agent": {"id": sweep.agents[-1]}}

    def _heartbeat(self, arguments: Arguments) -> Node:
        said = arguments["input"]
        sweep = self._server.sweeps[said["id"].partition(":")[0]]
        running: dict[str, bool] = json.loads(said["runState"])
        sweep.heartbeats.append(running)
        commands: list[Node] = [{"type": "stop", "run_id": run_id} for run_id in running if run_id in sweep.stop]
        if not running:
            commands = [self._next_job(sweep) if sweep.jobs else {"type": "exit"}]
        return {"agent": {"id": said["id"]}, "commands": json.dumps(commands)}

    def _next_job(self, sweep: SeenSweep) -> Node:
        values = sweep.jobs.pop(0)
        run = self._server.run_of(sweep.entity, sweep.project, f"{sweep.id}job{len(sweep.run_ids)}")
        run.sweep, run.config = sweep.id, dict(values)  # the server makes the run, before it starts
        sweep.run_ids.append(run.id)
        arguments = {name: {"value": value} for name, value in values.items()}
        return {"id": run.id, "type": "run", "run_id": run.id, "program": sweep.config["program"], "args": arguments}

    # Workspaces and reports

    def _upsert_view(self, arguments: Arguments) -> Node:
        from tests.wandb.server import SeenView

        said = arguments["input"]
        is_new = said.get("id") is None
        view_id = said.get("id") or global_id("View", str(len(self._server.views))).rstrip("=")
        self._server.views[view_id] = SeenView(
            id=view_id, entity=said["entityName"], project=said["projectName"], name=said["name"],
            display_name=said["displayName"], description=said.get("description") or "", type=said["type"],
            spec=json.loads(said["spec"]),
        )  # fmt: skip
        return {"view": view_node(self._server.views[view_id]), "inserted": is_new}


def run_node(run: SeenRun) -> Node:
    """A run as GraphQL gives it."""
    internal = {"_wandb": {"value": run.internal}} if run.internal else {}
    config = {key: {"value": value} for key, value in run.config.items()} | internal
    return {
        "id": global_id("Run", "v1", run.id, run.project, run.entity), "name": run.id, "displayName": run.display_name,
        "description": "", "config": json.dumps(config), "summaryMetrics": json.dumps(run.summary),
        "sweepName": run.sweep or None, "state": run.state, "exitcode": run.exit_code, "tags": run.tags,
        "notes": run.notes, "group": run.group, "jobType": run.job_type, "heartbeatAt": None,
        "historyLineCount": len(run.history), "eventsLineCount": len(run.events), "logLineCount": len(run.output),
        "historyTail": json.dumps([json.dumps(row) for row in run.history[-1:]]),
        "eventsTail": json.dumps([json.dumps(row) for row in run.events[-1:]]),
        "wandbConfig": lambda a: json.dumps({key: run.internal[key] for key in a["keys"] if key in run.internal}),
        "stopped": run.is_stop_asked, "shouldStop": run.is_stop_asked, "failed": run.state == "failed",
        "running": run.state == "running", "sampledHistory": lambda _: [run.history],
    }  # fmt: skip


def sweep_node(sweep: SeenSweep, runs: list[SeenRun]) -> Node:
    """A sweep as GraphQL gives it."""
    return {
        "id": sweep.id, "name": sweep.id, "displayName": sweep.config.get("name"), "method": sweep.config["method"],
        "state": sweep.state, "description": sweep.config.get("description"), "config": yaml.safe_dump(sweep.config),
        "createdAt": "2026-01-01T00:00:00", "heartbeatAt": None, "updatedAt": None, "earlyStopJobRunning": False,
        "bestLoss": None, "controller": None, "scheduler": None, "runCount": len(runs), "runCountExpected": None,
        "runs": connection([run_node(run) for run in runs]),
    }  # fmt: skip


def artifact_node(artifact: SeenArtifact) -> Node:
    """An artifact as GraphQL gives it."""
    state = "COMMITTED" if artifact.is_committed else "PENDING"
    return {"id": artifact.id, "state": state, "digest": "", "artifactSequence": {"latestArtifact": None}}


def view_node(view: SeenView) -> Node:
    """A workspace view or a report as GraphQL gives it."""
    project = {"id": global_id("Project", "v1", view.project, view.entity), "name": view.project}
    return {
        "id": view.id, "type": view.type, "name": view.name, "displayName": view.display_name,
        "description": view.description, "project": {**project, "entityName": view.entity},
        "createdAt": "2026-01-01T00:00:00Z", "updatedAt": "2026-01-01T00:00:00Z", "spec": json.dumps(view.spec),
    }  # fmt: skip
