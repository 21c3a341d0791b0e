"""From a command line to jobs: compose and check once, then hand over to Hydra."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from binventory.config.capture import redact, redact_logs, redact_yaml, to_plain
from binventory.config.check import check_config
from binventory.config.compose import CONFIG_DIR, compose_checked
from binventory.errors import ConfigError, InputError, UserError
from binventory.launch.runner import EXIT_USER_ERROR, execute, report_user_error
from binventory.launch.spec import JobSpec
from binventory.tracking.resume import AUTO, check_unchanged, find_run, overrides_to_resume, task_path
from binventory.tracking.run_folder import RunFolder, register_resolvers


def main(task_name: str, argv: list[str] | None = None) -> None:
    """Run the task of a primary config (`train`, `predict`, …) as the command line says, and exit.

    Exit codes: 0 done, 1 failed, 2 bad config or input, 130 interrupted, 143 preempted.
    """
    if argv is not None:
        sys.argv = [sys.argv[0], *argv]
    redact_logs()
    register_resolvers()
    arguments, unknown = get_args_parser().parse_known_args()
    try:
        if not _is_hydras_own(arguments):
            _refuse(arguments)
            given = [*arguments.overrides, *unknown]
            flags = [word for word in sys.argv[1:] if word not in given]
            sys.argv = [sys.argv[0], *flags, *_checked_overrides(task_name, arguments, given)]
    except UserError as error:
        report_user_error(error)
        sys.exit(EXIT_USER_ERROR)
    hydra.main(version_base="1.3", config_path=str(CONFIG_DIR), config_name=task_name)(_job(task_name))()


def _checked_overrides(task_name: str, arguments: Any, given: list[str]) -> list[str]:
    """Compose and check what the command line asks for; return the overrides that Hydra shall run.

    Exits with code 0 where nothing is to be run.
    """
    is_multirun = arguments.multirun or "hydra.mode=MULTIRUN" in arguments.overrides
    overrides, named = given, None if is_multirun else _named_run(given)
    if named is not None:
        overrides = overrides_to_resume(named, task_name, given)
    configs = compose_checked(
        task_name,
        overrides,
        multirun=is_multirun,
        config_name=arguments.config_name,
        config_dir=arguments.config_dir,
    )
    config = configs[0]
    if arguments.cfg is not None:
        return overrides
    if config.check:
        print(OmegaConf.to_yaml(OmegaConf.create(redact(to_plain(config)))), end="")
        sys.exit(0)
    if is_multirun:
        if config.get("resume") not in (None, AUTO):
            raise ConfigError(f"resume={config.resume}: names one run; the jobs of a sweep take resume=auto")
        return overrides
    folder = _folder_to_resume(task_name, config)
    # Hydra makes the folder of the job; a resumed one is named to it.
    return overrides if folder is None else [*overrides, "hydra.run.dir='{}'".format(str(folder).replace("'", "\\'"))]


def _named_run(overrides: list[str]) -> Path | None:
    """Return the run folder of `resume=DIR`, whose own command comes before what is added to it."""
    named = [override.split("=", maxsplit=1)[1] for override in overrides if override.startswith("resume=")]
    if not named or named[-1] in ("", "null", AUTO):
        return None
    return Path(named[-1].strip("'\""))


def _folder_to_resume(task_name: str, config: DictConfig) -> Path | None:
    """Return the run folder that a checked config goes on with; None for a new one.

    Exits with code 0 where that run is done and nothing is left to do.
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


def _is_hydras_own(arguments: Any) -> bool:
    """Help, shell completion and the like run nothing: they are Hydra's to answer."""
    return bool(
        arguments.help or arguments.hydra_help or arguments.shell_completion or arguments.info is not None
    )  # fmt: skip


def _refuse(arguments: Any) -> None:
    """Refuse the flags of Hydra that would run another config than the one that was checked."""
    if arguments.config_path is not None:
        raise ConfigError(f"--config-path={arguments.config_path}: add configs of your own with --config-dir")
    if arguments.experimental_rerun is not None:
        raise ConfigError("--experimental-rerun: loads a pickle, which can run anything; give the overrides again")


def _job(task_name: str) -> Callable[[DictConfig], Any]:
    """Return the function that Hydra calls once per job."""

    def job(composed: DictConfig) -> Any:
        # A sweep is checked by values before it starts; here each job's own combination is.
        try:
            config = check_config(task_name, composed)
        except UserError as error:
            report_user_error(error)
            sys.exit(EXIT_USER_ERROR)
        spec = freeze(task_name, config)
        if HydraConfig.get().mode == RunMode.MULTIRUN and config.get("resume") is not None:
            # Each job of a sweep goes on with the run of its own config.
            folder = _folder_to_resume(task_name, config)
            spec = replace(spec, run_dir=str(folder)) if folder else spec
        exit_code, result = _start(spec, config)
        if exit_code != 0:
            sys.exit(exit_code)
        return result

    return job


def freeze(task_name: str, config: DictConfig) -> JobSpec:
    """Freeze the job that Hydra is running now."""
    hydra_config = HydraConfig.get()
    frozen_hydra = OmegaConf.to_container(OmegaConf.create({"hydra": hydra_config}), resolve=False)
    assert isinstance(frozen_hydra, dict)
    return JobSpec(
        task=task_path(task_name),
        config={**to_plain(config), "hydra": _json_plain(frozen_hydra["hydra"])},
        run_dir=str(Path(hydra_config.runtime.output_dir)),
        overrides=list(hydra_config.overrides.task),
    )


def _json_plain(value: Any) -> Any:
    return json.loads(json.dumps(value, default=lambda item: item.name if isinstance(item, RunMode) else str(item)))


def _start(spec: JobSpec, config: DictConfig) -> tuple[int, Any]:
    if HydraConfig.get().mode == RunMode.MULTIRUN:
        redact_yaml(Path(HydraConfig.get().sweep.dir) / "multirun.yaml")
    world_size = config.trainer.devices if "trainer" in config else 1
    if world_size == 1:
        return execute(spec)
    from binventory.launch.ranks import run_ranks

    exit_code = run_ranks(spec, world_size)
    return exit_code, None if exit_code else returned_value(Path(spec.run_dir), config)


def returned_value(run_dir: Path, config: DictConfig) -> float | None:
    """Return the objective metric that a finished run wrote."""
    metric = config.get("objective_metric")
    if metric is None:
        return None
    split, _, name = metric.partition("/")
    value: float = json.loads((run_dir / "metrics.json").read_text())[split][name]
    return value
