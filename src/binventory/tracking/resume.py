"""Which run a command goes on with, and what may differ from the command that started it."""

from __future__ import annotations

import glob
import hashlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf.errors import OmegaConfBaseException

from binventory.config.capture import load_config, redact, to_plain
from binventory.config.older import LIMITS, is_older, upgrade_overrides
from binventory.config.schema import SHARE, TrainConfig, declared
from binventory.config.secrets import REDACTED
from binventory.config.targets import check_overrides
from binventory.errors import ConfigError, InputError
from binventory.files import read_limited
from binventory.tracking.provenance import is_signed
from binventory.tracking.run_folder import RunFolder

AUTO = "auto"
FINAL_STATES = ("done", "pruned")

# A float of these is a share of all batches, an int a count: 1.0 is not 1.
SHARES = tuple(key for key, field in declared(TrainConfig).items() if field.metadata.get(SHARE))

# Two runs of one config are the same experiment whatever these say.
OUTSIDE_FINGERPRINT = ("resume", "resume_changed", "resume_sweep", "logger", "paths", "data.confirm_download")

# A run may go on under other values of these without being asked twice: no number it computes depends on them. Where
# the photos lie is one of them because the checkpoint knows the data's fingerprint.
HARMLESS = (
    *OUTSIDE_FINGERPRINT, "check", "s3", "data.source", "data.num_workers", "data.cache", "data.residence",
    "model.cache_features",  # rounds otherwise, no more
    "callbacks.checkpoint", "callbacks.progress", "callbacks.resources", "callbacks.trace", "trainer.log_every_n_steps",
    "trainer.profiler",
)  # fmt: skip


# Of Hydra's settings: what a file may say of how a run goes on, and what only the user may, for it can run anything.
OF_HYDRA = ("hydra.verbose", "hydra.output_subdir", "hydra.job.name")
USERS_OWN = (
    "hydra.job.env_set", "hydra.job.env_copy", "hydra.callbacks", "hydra/callbacks", "hydra.job_logging",
    "hydra/job_logging",
)  # fmt: skip


def find_run(task: str, config: dict[str, Any], patterns: Sequence[str]) -> Path | None:
    """Return the newest run of this task and config that is not done and that no process writes.

    Args:
        task: train, …
        config: plain checked config.
        patterns: globs of the run folders that are looked at.
    """
    wanted = fingerprint(config)
    found = {Path(path).parent for pattern in patterns for path in glob.glob(f"{pattern}/config.yaml")}  # noqa: PTH207  may be absolute
    runs = [(str(_status(folder).get("started")), folder) for folder in found if _can_go_on(folder, task, wanted)]
    return max(runs)[1] if runs else None


def _can_go_on(folder: Path, task: str, wanted: dict[str, Any]) -> bool:
    try:
        saved = _read_config(folder)
        return (
            saved is not None
            and fingerprint(saved) == wanted
            and _status(folder).get("task") == task_path(task)
            and _status(folder).get("state") not in FINAL_STATES
            and RunFolder(folder).writer() is None
        )
    except InputError as error:  # a run that cannot be read is none to go on with; the command still has its work to do
        print(f"warning: resume=auto passes over {error}", file=sys.stderr, flush=True)
        return False


def fingerprint(config: dict[str, Any]) -> dict[str, Any]:
    """Return what makes two configs the same experiment, as flat plain values, secrets redacted."""
    flat = _compared(config)
    return {key: value for key, value in flat.items() if not _is_below(key, OUTSIDE_FINGERPRINT)}


def maths_of(config: dict[str, Any]) -> str:
    """Return a hash of the values that decide what a run computes."""
    flat = {key: value for key, value in _compared(config).items() if not _is_below(key, HARMLESS)}
    for key in (f"trainer.{name}" for name in LIMITS):
        if isinstance(flat.get(key), int):  # as older checkpoints, which hold this hash, have counts
            flat[key] = float(flat[key])
    return hashlib.sha256(json.dumps(flat, sort_keys=True).encode()).hexdigest()


def overrides_to_resume(run_dir: Path, task: str, added: Sequence[str]) -> list[str]:
    """Return the command of a run again with what is added to it.

    Raises:
        InputError: no run folder of this task, or its command held a secret.
    """
    if not (run_dir / "provenance.json").is_file() or _status(run_dir).get("task") != task_path(task):
        raise InputError(f"resume={run_dir}: not the run folder of a {task} run; name one, or take resume=auto")
    facts = _read_provenance(run_dir)
    before, of_hydra = (_texts(facts.get(name)) for name in ("overrides", "hydra_overrides"))
    is_own = is_signed([*before, *of_hydra], facts.get("signature"))
    if is_older(run_dir / "config.yaml"):
        before = upgrade_overrides(before)
    named = {override_key(override) for override in added}
    for override in of_hydra:
        key = override_key(override)
        if _is_below(key, USERS_OWN) and not any(_is_below(key, (name,)) for name in named):
            raise ConfigError(
                f"resume={run_dir}: its command had {override}, which is not taken from a file; give it again, or"
                " another value"
            )
    before += [override for override in of_hydra if override_key(override) in OF_HYDRA]
    kept = [override for override in before if override_key(override) not in {*named, "resume", "resume_changed"}]
    if hidden := [override for override in kept if REDACTED in override]:
        raise ConfigError(f"resume={run_dir}: {hidden[0]} was a secret and is not kept; give it again")
    check_overrides(kept, str(run_dir / "provenance.json"), of_hydra=OF_HYDRA, is_own=is_own)
    return [*kept, *added]


def check_unchanged(run_dir: Path, config: dict[str, Any], *, allowed: bool) -> bool:
    """Say which values differ from those that a run was started with.

    Args:
        run_dir: the run folder.
        config: plain checked config of the command that resumes it.
        allowed: `resume_changed`.

    Returns:
        Whether anything that changes the maths differs.

    Raises:
        ConfigError: it does and it is not allowed.
    """
    saved = _read_config(run_dir)
    if saved is None:
        return False
    before, now = _compared(saved), _compared(config)
    changed = [
        f"{key}: {before.get(key, 'nothing')} -> {now.get(key, 'nothing')}"
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key) and not _is_below(key, OUTSIDE_FINGERPRINT)
    ]
    maths = [line for line in changed if not _is_below(line.split(":", maxsplit=1)[0], HARMLESS)]
    if maths and not allowed:
        raise ConfigError(
            f"resume={run_dir}: this would change what the run computes ({'; '.join(maths)});"
            " drop the change, or add resume_changed=true to go on from the start of its epoch all the same"
        )
    if changed:
        print(f"resume: changed since the run was started: {'; '.join(changed)}", file=sys.stderr, flush=True)
    return bool(maths)


def _compared(config: dict[str, Any]) -> dict[str, Any]:
    """Return a config as flat plain values, secrets redacted; what compares equal means the same."""
    return tell_shares_apart(_flat(redact(config)))


def tell_shares_apart(flat: dict[str, Any]) -> dict[str, Any]:
    """Return a flat config in which a share of 1.0, all batches, does not equal a count of 1."""
    return flat | {key: "1.0" for key in SHARES if isinstance(flat.get(key), float) and flat[key] == 1}


def _flat(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, dict) and value:
            flat.update(_flat(value, f"{prefix}{name}."))
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def _is_below(key: str, parents: Sequence[str]) -> bool:
    return any(key == parent or key.startswith(f"{parent}.") for parent in parents)


def override_key(override: str) -> str:
    """Return the key or group that an override sets."""
    return override.split("=", maxsplit=1)[0].lstrip("+~")


def _read_config(folder: Path) -> dict[str, Any] | None:
    """Return the saved config of a run; None where a kill came before it was written."""
    try:
        return to_plain(load_config(folder / "config.yaml"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, OmegaConfBaseException) as error:
        raise InputError(f"{folder / 'config.yaml'}: cannot be read ({' '.join(str(error).split())})") from error


def _read_provenance(folder: Path) -> dict[str, Any]:
    try:
        read = json.loads(read_limited(folder / "provenance.json"))
    except (OSError, ValueError) as error:
        raise InputError(f"{folder / 'provenance.json'}: cannot be read ({error})") from error
    return read if isinstance(read, dict) else {}


def _texts(read: Any) -> list[str]:
    return [line for line in read if isinstance(line, str)] if isinstance(read, list) else []


def task_path(task: str) -> str:
    """Return what a job spec calls the task of train.py, predict.py, …"""
    return f"binventory.tasks.{task}:run"


def task_name(path: str) -> str:
    """Return `train` for `binventory.tasks.train:run`."""
    return path.split(":", 1)[0].rsplit(".", 1)[-1]


def _status(folder: Path) -> dict[str, Any]:
    return RunFolder(folder).read_status()
