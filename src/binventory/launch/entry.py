"""From a command line to jobs: compose and check once, then hand over to Hydra."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from binventory.config.capture import redact, redact_logs, redact_yaml, to_plain
from binventory.config.compose import CONFIG_DIR, compose_checked, path_keys, value_of
from binventory.config.paths import HYDRA_PATHS, as_path, quote_homes
from binventory.config.quoting import quote_value
from binventory.config.secrets import forget_hidden
from binventory.errors import ConfigError, UserError
from binventory.launch.folders import (
    FRESH,
    check_sweep_folders,
    folder_to_resume,
    hydra_folder,
    location_of_run,
    make_folder,
)
from binventory.launch.frozen import freeze, redact_output_subdir
from binventory.launch.ranks import run_spec
from binventory.launch.runner import (
    EXIT_INTERRUPTED,
    EXIT_PREEMPTED,
    EXIT_USER_ERROR,
    JobError,
    forget_foreign_ranks,
    prefer_system_memory,
    report_user_error,
)
from binventory.streams import keep_streams_open
from binventory.tracking.resume import AUTO, override_key, overrides_to_resume
from binventory.tracking.run_folder import register_resolvers
from binventory.tracking.sweep_record import overrides_to_resume_sweep


def main(task_name: str, argv: list[str] | None = None) -> None:
    """Run the task of a primary config (`train`, `predict`, …) as the command line says, and exit.

    Exit codes: 0 done, 1 failed, 2 bad config or input, 130 interrupted, 143 preempted.
    """
    keep_streams_open()
    if argv is not None:
        sys.argv = [sys.argv[0], *argv]
    prefer_system_memory()
    forget_foreign_ranks()
    redact_logs()
    forget_hidden()
    register_resolvers()
    arguments, unknown = get_args_parser().parse_known_args()
    try:
        if not _is_hydras_own(arguments):
            _refuse(arguments)
            given = [*arguments.overrides, *unknown]
            flags = [_with_home(word, arguments.config_dir) for word in sys.argv[1:] if word not in given]
            sys.argv = [sys.argv[0], *flags, *_checked_overrides(task_name, arguments, given)]
    except UserError as error:
        report_user_error(error)
        sys.exit(EXIT_USER_ERROR)
    run = hydra.main(version_base="1.3", config_path=str(CONFIG_DIR), config_name=task_name)(_job(task_name))
    if arguments.cfg is None:
        run()
    else:
        _print_redacted(run)


def _print_redacted(show: Callable[[], Any]) -> None:
    """Print what Hydra shows of a config, without secrets."""
    shown = io.StringIO()
    with redirect_stdout(shown):
        show()
    lines = shown.getvalue().splitlines(keepends=True)
    heading = [line for line in lines if line.startswith("#")]  # the package that --package names
    plain = OmegaConf.to_container(OmegaConf.create("".join(lines)), resolve=False)
    at = heading[0].split()[-1] if heading else ""
    print("".join(heading) + OmegaConf.to_yaml(OmegaConf.create(redact(plain, at=at))), end="")


def _checked_overrides(task_name: str, arguments: Any, given: list[str]) -> list[str]:
    """Compose and check what the command line asks for; return the overrides that Hydra shall run.

    Exits with code 0 where nothing is to be run.
    """
    given = [quote_homes(text, path_keys(task_name)) for text in given]
    overrides, is_multirun = given, arguments.multirun or "hydra.mode=MULTIRUN" in given
    if (sweep := _named("resume_sweep", given)) is not None:
        overrides, is_multirun = overrides_to_resume_sweep(sweep, task_name, given), True
    elif not is_multirun and (run := _named("resume", given)) is not None:
        overrides = overrides_to_resume(run, task_name, given)
    configs = compose_checked(
        task_name,
        overrides,
        multirun=is_multirun,
        config_name=arguments.config_name,
        config_dir=arguments.config_dir,
    )
    config = configs[0]
    _check_hydra_paths(config)
    if arguments.cfg is not None:
        return overrides
    if config.check:
        print(OmegaConf.to_yaml(OmegaConf.create(redact(to_plain(config)))), end="")
        sys.exit(0)
    _check_launcher(config, is_multirun=is_multirun)
    if is_multirun:
        if config.get("resume") not in (None, AUTO):
            raise ConfigError(f"resume={config.resume}: names one run; the jobs of a sweep take resume=auto")
        if sweep is None:
            check_sweep_folders(configs)
            # Named to Hydra, which knows of no ~.
            named = hydra_folder(config, "hydra.sweep.dir")
            return overrides if FRESH in named else [*overrides, f"hydra.sweep.dir={quote_value(named)}"]
        return overrides
    if (search := config.hydra.runtime.choices.get("hparams_search")) is not None:
        raise ConfigError(f"hparams_search={search}: a search is of several runs; add -m")
    location = location_of_run(config)
    if location.folder is not None:
        make_folder(location.key, location.folder)
    folder = folder_to_resume(task_name, config, location) or location.folder
    # Hydra makes the folder of the job; one that is known already is named to it.
    return overrides if folder is None else [*overrides, f"hydra.run.dir={quote_value(folder)}"]


def _check_hydra_paths(config: DictConfig) -> None:
    """Refuse folders of Hydra's that have no name: it would take the current one for them."""
    for key in (*HYDRA_PATHS, "hydra.sweep.subdir"):
        parent, _, name = key.rpartition(".")
        as_path(key, str(OmegaConf.select(config, parent)._get_node(name)))  # not resolved: ours would make the folder


def _check_launcher(config: DictConfig, *, is_multirun: bool) -> None:
    """Find what is wrong with a launcher before Hydra makes folders for its jobs."""
    node = config.hydra.launcher
    if not str(node.get("_target_", "")).startswith("hydra_plugins.binventory_sagemaker_launcher."):
        return
    choice = config.hydra.runtime.choices["hydra/launcher"]
    if not is_multirun:
        raise ConfigError(f"hydra/launcher={choice}: a launcher starts the jobs of -m; add -m")
    if config.get("resume") is not None:
        raise ConfigError(f"resume={config.resume}: hydra/launcher={choice} goes on with sweeps; give resume_sweep=DIR")
    from binventory.sagemaker.settings import LaunchSettings

    try:
        LaunchSettings.of(to_plain(node))
    except OmegaConfBaseException as error:
        raise ConfigError(f"hydra.launcher: {str(error).splitlines()[0]}") from error


def _named(key: str, overrides: Sequence[str]) -> Path | None:
    """Return the folder of `resume=DIR` or `resume_sweep=DIR`, whose own command comes before what is added to it."""
    named = [override for override in overrides if override_key(override) == key and "=" in override]
    value = value_of(named[-1]) if named else None
    return Path(as_path(key, value)) if isinstance(value, str) and value != AUTO else None


def _with_home(word: str, config_dir: str | None) -> str:
    """Spell out the home in a word of the command line that names `--config-dir`, which Hydra reads too."""
    if not config_dir or not word.endswith(config_dir):
        return word
    return word.removesuffix(config_dir) + as_path("--config-dir", config_dir)


def _is_hydras_own(arguments: Any) -> bool:
    """Help, shell completion and the like run nothing: they are Hydra's to answer."""
    return bool(
        arguments.help or arguments.hydra_help or arguments.shell_completion or arguments.info is not None
    )  # fmt: skip


def _refuse(arguments: Any) -> None:
    """Refuse the flags of Hydra that would run another config than the one that was checked."""
    if arguments.config_path is not None:
        raise ConfigError(f"--config-path={arguments.config_path}: add configs of your own with --config-dir")
    if arguments.cfg is not None and arguments.multirun:
        raise ConfigError("--cfg: shows one config; leave out -m and give single values")
    if arguments.experimental_rerun is not None:
        raise ConfigError("--experimental-rerun: loads a pickle, which can run anything; give the overrides again")


def _job(task_name: str) -> Callable[[DictConfig], Any]:
    """Return the function that Hydra calls once per job. Our own launchers only look at its `task_name`."""

    def job(composed: DictConfig) -> Any:
        is_multirun = HydraConfig.get().mode == RunMode.MULTIRUN
        redact_output_subdir()
        try:
            spec = freeze(task_name, composed)
        except UserError as error:
            if is_multirun:
                raise  # one job's fault: Hydra tells the sweeper
            report_user_error(error)
            sys.exit(EXIT_USER_ERROR)
        if is_multirun:  # Hydra's own sweeper wrote it as it is
            redact_yaml(Path(HydraConfig.get().sweep.dir) / "multirun.yaml")
        exit_code, result = run_spec(spec)
        if exit_code == 0:
            return result
        if is_multirun and exit_code not in (EXIT_INTERRUPTED, EXIT_PREEMPTED):
            raise JobError(f"{spec.run_dir}: ended with exit code {exit_code}")
        sys.exit(exit_code)

    job.task_name = task_name  # type: ignore[attr-defined]
    return job
