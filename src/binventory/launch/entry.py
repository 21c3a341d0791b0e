"""From a command line to jobs: compose and check once, then hand over to Hydra."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from binventory.config.capture import redact, to_plain
from binventory.config.check import check_config
from binventory.config.compose import CONFIG_DIR, compose_checked
from binventory.errors import ConfigError, UserError
from binventory.launch.runner import EXIT_USER_ERROR, execute, report_user_error
from binventory.launch.spec import JobSpec
from binventory.tracking.run_folder import register_resolvers


def main(task_name: str, argv: list[str] | None = None) -> None:
    """Run the task of a primary config (`train`, `predict`, …) as the command line says, and exit.

    Exit codes: 0 done, 1 failed, 2 bad config or input, 130 interrupted, 143 preempted.
    """
    if argv is not None:
        sys.argv = [sys.argv[0], *argv]
    register_resolvers()
    arguments, unknown = get_args_parser().parse_known_args()
    try:
        if not _is_hydras_own(arguments):
            _refuse(arguments)
            configs = compose_checked(
                task_name,
                [*arguments.overrides, *unknown],
                multirun=arguments.multirun or "hydra.mode=MULTIRUN" in arguments.overrides,
                config_name=arguments.config_name,
                config_dir=arguments.config_dir,
            )
            if configs[0].check and arguments.cfg is None:
                print(OmegaConf.to_yaml(OmegaConf.create(redact(to_plain(configs[0])))), end="")
                sys.exit(0)
    except UserError as error:
        report_user_error(error)
        sys.exit(EXIT_USER_ERROR)
    hydra.main(version_base="1.3", config_path=str(CONFIG_DIR), config_name=task_name)(_job(task_name))()


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
        exit_code, result = _start(freeze(task_name, config), config)
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
        task=f"binventory.tasks.{task_name}:run",
        config={**to_plain(config), "hydra": _json_plain(frozen_hydra["hydra"])},
        run_dir=str(Path(hydra_config.runtime.output_dir)),
        overrides=list(hydra_config.overrides.task),
    )


def _json_plain(value: Any) -> Any:
    return json.loads(json.dumps(value, default=lambda item: item.name if isinstance(item, RunMode) else str(item)))


def _start(spec: JobSpec, config: DictConfig) -> tuple[int, Any]:
    world_size = config.trainer.devices if "trainer" in config else 1
    if world_size == 1:
        return execute(spec)
    from binventory.launch.ranks import run_ranks

    spec_path = Path(spec.run_dir) / "job.json"
    spec.save(spec_path)
    exit_code = run_ranks(spec_path, world_size)
    return exit_code, None if exit_code else returned_value(Path(spec.run_dir), config)


def returned_value(run_dir: Path, config: DictConfig) -> float | None:
    """Return the objective metric that a finished run wrote."""
    metric = config.get("objective_metric")
    if metric is None:
        return None
    split, _, name = metric.partition("/")
    value: float = json.loads((run_dir / "metrics.json").read_text())[split][name]
    return value
