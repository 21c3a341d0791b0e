"""The frozen job: what any launcher starts, as one file without secrets and the environment that goes with it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from binventory.config.capture import leaves, redact, refuse_interpolations
from binventory.config.older import upgrade_config, upgrade_overrides
from binventory.config.secrets import REDACTED, hide
from binventory.config.targets import ALLOW_VARIABLE, KNOWN, check_targets, check_task, dotted_task, targets_of
from binventory.errors import InputError
from binventory.files import read_limited, write_json

SPEC_VERSION = 2
# What the file hides: JSON, dotted key of the config -> value.
SECRETS_VARIABLE = "BINVENTORY_JOB_SECRETS"


@dataclass(frozen=True)
class JobSpec:
    """One run, fully decided.

    Attributes:
        task: `package.module:function`, called with the config and the run folder.
        config: resolved config, including Hydra's own node under `hydra` (absent when composed without Hydra).
        run_dir: the run folder.
        overrides: what was said on the command line, for provenance.
    """

    task: str
    config: dict[str, Any]
    run_dir: str
    overrides: list[str]

    @property
    def choices(self) -> dict[str, Any]:
        """The file that each config group was taken from, Hydra's own groups left out."""
        runtime = self.config.get("hydra", {}).get("runtime", {})
        return {name: file for name, file in runtime.get("choices", {}).items() if not name.startswith("hydra/")}

    @property
    def hydra_overrides(self) -> list[str]:
        """What was said on the command line of Hydra's own settings."""
        said: list[str] = self.config.get("hydra", {}).get("overrides", {}).get("hydra", [])
        return said

    def save(self, path: Path) -> None:
        """Write the spec as JSON, atomically, with secrets redacted."""
        write_json(path, self.saved())

    def saved(self) -> dict[str, Any]:
        """Return what `save` writes."""
        hidden = {"config": redact(self.config), "overrides": redact(self.overrides)}
        return {"version": SPEC_VERSION, **asdict(self), **hidden}

    def environment(self) -> dict[str, str]:
        """Return the environment variables with which a process of the same user can `load` what `save` wrote.

        They hold what the file hides, and allow what this config names. The names come from the command line of the
        user who starts the job; a file cannot allow itself anything.
        """
        own = self._own_config()
        redacted = dict(leaves(redact(own)))
        secrets = {key: value for key, value in leaves(own) if redacted.get(key) != value}
        allowed = {*targets_of(own), dotted_task(self.task)} - KNOWN.keys()
        before = os.environ.get(ALLOW_VARIABLE)
        return {
            SECRETS_VARIABLE: json.dumps(secrets),
            ALLOW_VARIABLE: ",".join([*([before] if before else []), *sorted(allowed)]),
        }

    @classmethod
    def load(cls, path: Path) -> JobSpec:
        """Read a spec and put back what `environment` gave.

        Raises:
            InputError: not a job spec of this version; it names what it may not; a secret of it is not given.
        """
        try:
            spec = cls._read(path)
            own = spec._own_config()
            check_task(spec.task, str(path))
            check_targets(own, str(path))
            refuse_interpolations(own, str(path))
            config = {**spec.config, **_restored(own, _given_secrets(), path)}
        except RecursionError as error:
            raise InputError(f"{path}: not a job spec (nested too deep); submit the job again") from error
        return replace(spec, config=config)

    @classmethod
    def _read(cls, path: Path) -> JobSpec:
        try:
            values = json.loads(read_limited(path))
        except (OSError, ValueError) as error:
            raise InputError(f"{path}: cannot read this job spec ({error})") from error
        version = values.pop("version", None) if isinstance(values, dict) else None
        if version not in (1, SPEC_VERSION):
            raise InputError(f"{path}: not a job spec of version {SPEC_VERSION}; submit the job again")
        kinds = {"task": str, "config": dict, "run_dir": str, "overrides": list}
        wrong = [name for name, kind in kinds.items() if not isinstance(values.get(name), kind)]
        wrong += sorted(values.keys() - kinds.keys())
        if wrong or not all(isinstance(override, str) for override in values["overrides"]):
            raise InputError(f"{path}: not a job spec (see {(wrong or ['overrides'])[0]!r}); submit the job again")
        spec = cls(**values)
        if version == SPEC_VERSION:
            return spec
        return replace(spec, config=upgrade_config(spec.config), overrides=upgrade_overrides(spec.overrides))

    def _own_config(self) -> dict[str, Any]:
        """The config without Hydra's node, which no task reads and from which nothing is ever built."""
        return {name: value for name, value in self.config.items() if name != "hydra"}


def _given_secrets() -> dict[str, Any]:
    try:
        given = json.loads(os.environ.get(SECRETS_VARIABLE, "{}"))
    except ValueError:
        given = None
    if not isinstance(given, dict):
        raise InputError(f"{SECRETS_VARIABLE}: not a JSON object of config keys and their values")
    return given


def _restored(own: dict[str, Any], given: Mapping[str, Any], path: Path) -> dict[str, Any]:
    hidden = {key for key, value in leaves(own) if isinstance(value, str) and REDACTED in value}
    if missing := sorted(hidden - given.keys()):
        raise InputError(
            f"{path}: holds no secrets, and these are not given: {', '.join(missing)};"
            f' set {SECRETS_VARIABLE}=\'{{"{missing[0]}": "…"}}\' in the environment'
        )

    for key, shown in leaves(own):
        if key in hidden and shown.startswith(REDACTED):  # the whole value
            hide(key, given[key], decides=shown != REDACTED)

    def restore(node: Any, dotted: str) -> Any:
        if isinstance(node, dict):
            return {key: restore(child, f"{dotted}.{key}" if dotted else key) for key, child in node.items()}
        if isinstance(node, list):
            return [restore(child, f"{dotted}.{place}") for place, child in enumerate(node)]
        return given[dotted] if dotted in hidden else node

    restored: dict[str, Any] = restore(own, "")
    return restored
