"""From what Hydra composed for one job to its frozen spec."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from binventory.config.capture import to_plain
from binventory.config.check import check_config
from binventory.errors import InputError
from binventory.launch.spec import JobSpec
from binventory.tracking.resume import AUTO, check_unchanged, find_run, task_path
from binventory.tracking.run_folder import RunFolder


def freeze(task_name: str, composed: DictConfig) -> JobSpec:
    """Check and freeze the job that Hydra's global config is set to.

    A job of a sweep that says resume=auto goes on with the run of its own config, where there is one.

    Args:
        task_name: train, predict, …
        composed: the job's config as Hydra composed it.

    Raises:
        UserError: it does not fit, or names a run that cannot be gone on with.
    """
    # A sweep is checked by values before it starts; here each job's own combination is.
    config = check_config(task_name, composed)
    hydra_config = HydraConfig.get()
    frozen_hydra = OmegaConf.to_container(OmegaConf.create({"hydra": hydra_config}), resolve=False)
    assert isinstance(frozen_hydra, dict)
    spec = JobSpec(
        task=task_path(task_name),
        config={**to_plain(config), "hydra": _json_plain(frozen_hydra["hydra"])},
        run_dir=str(Path(hydra_config.runtime.output_dir)),
        overrides=list(hydra_config.overrides.task),
    )
    if hydra_config.mode == RunMode.MULTIRUN and (folder := folder_to_resume(task_name, config)) is not None:
        return replace(spec, run_dir=str(folder))
    return spec


def folder_to_resume(task_name: str, config: DictConfig) -> Path | None:
    """Return the run folder that the `resume` of a checked config goes on with; None for a new one.

    Exits with code 0 where that run is done and nothing is left to do.

    Raises:
        UserError: another process writes it, or its maths would change.
    """
    resume = config.get("resume")
    if resume is None:
        return None
    plain = to_plain(config)
    folder = find_run(task_name, plain) if resume == AUTO else Path(resume)
    if folder is None:
        print("resume=auto: no run of this config to go on with, this is a new one", flush=True)
        return None
    if (pid := RunFolder(folder).writer()) is not None:
        raise InputError(f"resume={folder}: process {pid} writes this run; wait for it or stop it")
    has_changed = check_unchanged(folder, plain, allowed=config.resume_changed)
    if RunFolder(folder).read_state() == "done" and not has_changed:
        print(f"resume={folder}: this run is done; nothing is left to do", flush=True)
        sys.exit(0)
    print(f"resume={resume}: going on with {folder}", flush=True)
    return folder.resolve()


def _json_plain(value: Any) -> Any:
    return json.loads(json.dumps(value, default=lambda item: item.name if isinstance(item, RunMode) else str(item)))
