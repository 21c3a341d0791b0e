"""From what Hydra composed for one job to its frozen spec."""

from __future__ import annotations

import glob
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from binventory.config.capture import redact_yaml, to_plain
from binventory.config.check import check_config
from binventory.config.secrets import look_at
from binventory.launch.folders import RunLocation, folder_to_resume
from binventory.launch.spec import JobSpec
from binventory.tracking.resume import AUTO, find_run, task_path


def freeze(task_name: str, composed: DictConfig, resume_dir: Path | None = None) -> JobSpec:
    """Check and freeze the job that Hydra's global config is set to.

    A job of a sweep that says resume=auto goes on with the run of its own config, where there is one.

    Args:
        task_name: train, predict, …
        composed: the job's config as Hydra composed it.
        resume_dir: run folder of an earlier attempt at this job of a sweep, which it goes on in.

    Raises:
        UserError: it does not fit, names a run that cannot be gone on with, or would overwrite one.
    """
    # A sweep is checked by values before it starts; here each job's own combination is.
    config = check_config(task_name, composed)
    hydra_config = HydraConfig.get()
    frozen_hydra = OmegaConf.to_container(OmegaConf.create({"hydra": hydra_config}), resolve=False)
    assert isinstance(frozen_hydra, dict)
    look_at(hydra_config.job, "env_set", "hydra.job.env_set")
    frozen_hydra["hydra"]["job"]["env_set"] = OmegaConf.to_container(hydra_config.job.env_set, resolve=True)
    spec = JobSpec(
        task=task_path(task_name),
        config={**to_plain(config), "hydra": _json_plain(frozen_hydra["hydra"])},
        run_dir=str(Path(hydra_config.runtime.output_dir)),
        overrides=frozen_hydra["hydra"]["overrides"]["task"],  # unresolved: ${…} is not what it stands for
    )
    if resume_dir is None and hydra_config.mode == RunMode.MULTIRUN:
        # Of a sweep that is resumed under a launcher that is not ours, which knows of no earlier attempts.
        resume_dir = find_run(task_name, to_plain(config), [glob.escape(spec.run_dir)])
    if resume_dir is not None:
        resumed = {**spec.config, "resume": AUTO} if "resume" in spec.config else spec.config
        return replace(spec, run_dir=str(resume_dir), config=resumed)
    if hydra_config.mode == RunMode.MULTIRUN:
        root = glob.escape(config.paths.output_dir)
        earlier = (f"{root}/{glob.escape(hydra_config.job.name)}/*", f"{root}/sweeps/*/*")
        location = RunLocation("hydra.sweep.subdir", Path(spec.run_dir), earlier, is_job=True)
        folder = folder_to_resume(task_name, config, location)
        return spec if folder is None else replace(spec, run_dir=str(folder))
    return spec


def redact_output_subdir() -> None:
    """Redact the files of `hydra.output_subdir`, which Hydra writes before it starts a job, as they are."""
    node = HydraConfig.get()
    if node.output_subdir is not None:
        for name in ("config", "hydra", "overrides"):
            redact_yaml(Path(node.runtime.output_dir) / node.output_subdir / f"{name}.yaml")


def _json_plain(value: Any) -> Any:
    return json.loads(json.dumps(value, default=lambda item: item.name if isinstance(item, RunMode) else str(item)))
