"""Which folder a run gets: a new one, one that the command line names, or that of an earlier attempt."""

from __future__ import annotations

import glob
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import setup_globals
from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from omegaconf.errors import OmegaConfBaseException

from binventory.config.capture import to_plain
from binventory.config.paths import as_path
from binventory.config.quoting import pasteable
from binventory.errors import ConfigError, InputError
from binventory.files import refuse_links
from binventory.tracking.resume import AUTO, FINAL_STATES, check_unchanged, find_run, task_path
from binventory.tracking.run_folder import OF_A_SWEEP, RunFolder, register_resolvers

FRESH = "\0"  # in a folder's name: what is another at each run, its time for one


@dataclass(frozen=True)
class RunLocation:
    """Where a run will lie.

    Attributes:
        key: of Hydra, that decides it.
        folder: the run folder; None where each run makes one of its own.
        earlier: globs of the folders in which earlier runs of the same config may lie.
        is_job: whether the run is a job of a sweep.
    """

    key: str
    folder: Path | None
    earlier: tuple[str, ...] = ()
    is_job: bool = False


def location_of_run(config: DictConfig) -> RunLocation:
    """Return where Hydra will put a single run. Raises ConfigError where that cannot be told."""
    folder = hydra_folder(config, "hydra.run.dir")
    if FRESH not in folder:
        return RunLocation("hydra.run.dir", Path(folder))
    beside = glob.escape(folder).replace(FRESH, "*")
    return RunLocation("hydra.run.dir", None, (beside, f"{glob.escape(config.paths.output_dir)}/sweeps/*/*"))


def hydra_folder(config: DictConfig, key: str, job_number: int | None = None) -> str:
    """Return the folder that Hydra will make, without making it; `FRESH` stands for what each run has of its own.

    Args:
        config: a checked config with Hydra's node.
        key: hydra.run.dir, hydra.sweep.dir or hydra.sweep.subdir.
        job_number: of a job of a sweep.

    Raises:
        ConfigError: it cannot be resolved.
    """
    before = HydraConfig.instance().cfg
    if job_number is not None:
        with read_write(config.hydra), open_dict(config.hydra):
            config.hydra.job.num, config.hydra.job.id = job_number, str(job_number)
    try:
        HydraConfig.instance().set_config(config)
        OmegaConf.register_new_resolver("run_dir", lambda root, task: f"{root}/{task}/{FRESH}", replace=True)
        OmegaConf.register_new_resolver("sweep_dir", lambda root: f"{root}/sweeps/{FRESH}", replace=True)
        OmegaConf.register_new_resolver("now", lambda _: FRESH, replace=True)
        folder = str(OmegaConf.select(config, key) or "")
    except OmegaConfBaseException as error:
        raise ConfigError(f"{key}: cannot be resolved ({str(error).splitlines()[0]}); name another folder") from error
    finally:
        setup_globals()
        register_resolvers()
        HydraConfig.instance().cfg = before
    if not folder:
        raise ConfigError(f"{key}: is empty; name a folder, e.g. . for this one")
    return as_path(key, folder)


def folder_to_resume(task_name: str, config: DictConfig, location: RunLocation) -> Path | None:
    """Return the run folder that a checked config goes on with; None for a new one.

    Exits with code 0 where that run is done and nothing is left to do.

    Raises:
        UserError: another process writes it, there are links in it, its maths would change, or a new run would
            overwrite an earlier one.
    """
    resume, plain = config.get("resume"), to_plain(config)
    if resume not in (None, AUTO):
        folder: Path | None = Path(resume)
        if location.folder is not None and location.folder.resolve() != Path(resume).resolve():
            raise ConfigError(
                f"{location.key}={location.folder}: resume={resume} stays in its own folder; leave one of them out"
            )
    else:
        folder = _named_run(task_name, location, is_resumed=resume == AUTO)
        if resume is None:
            return None
        folder = folder or find_run(task_name, plain, location.earlier)
    if folder is None:
        print("resume=auto: no run of this config to go on with, this is a new one", flush=True)
        return None
    refuse_links(folder)  # before Hydra opens its log there
    if (pid := RunFolder(folder).writer()) is not None:
        raise InputError(f"resume={folder}: process {pid} writes this run; wait for it or stop it")
    has_changed = check_unchanged(folder, plain, allowed=config.resume_changed)
    if RunFolder(folder).read_state() == "done" and not has_changed:
        print(f"resume={folder}: this run is done; nothing is left to do", flush=True)
        sys.exit(0)
    print(f"resume={resume}: going on with {folder}", flush=True)
    return folder.resolve()


def _named_run(task_name: str, location: RunLocation, *, is_resumed: bool) -> Path | None:
    """Return the folder that the config names, if it holds a run; a run that is not resumed is not overwritten."""
    if location.folder is None or (occupant := RunFolder(location.folder).occupant()) is None:
        return None
    status = RunFolder(location.folder).read_status()
    is_same_task, state = status.get("task") == task_path(task_name), status.get("state")
    may_resume = task_name == "train" and is_same_task and not (location.is_job and state in FINAL_STATES)
    if is_resumed and may_resume:
        return location.folder
    hint = "; resume=auto resumes it, or name" if may_resume and state not in FINAL_STATES else "; name"
    raise InputError(
        f"{location.key}={location.folder}: holds {occupant}, which is not overwritten{hint} another folder"
    )


def make_folder(key: str, folder: Path) -> None:
    """Make a folder that the command line names.

    Raises:
        ConfigError: it cannot be made; names the key.
        InputError: there are links in it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:  # ValueError: a null byte
        reason = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(f"{key}={str(folder)[:200]}: {reason}; name another folder") from error
    refuse_links(folder)  # before Hydra opens its log there


def check_sweep_folders(configs: Sequence[DictConfig]) -> None:
    """Find what is wrong with the folders of a new sweep and its jobs before anything is sent or started.

    Args:
        configs: of the jobs, or of some of them; one for a search.

    Raises:
        UserError: a folder cannot be made, holds a sweep or a run, or is that of two jobs.
    """
    named = hydra_folder(configs[0], "hydra.sweep.dir")
    sweep = None if FRESH in named else Path(named)
    if sweep is not None:
        make_folder("hydra.sweep.dir", sweep)
        if (occupant := RunFolder(sweep).occupant()) is not None:
            hint = (
                f"{pasteable('resume_sweep', sweep)} goes on with it"
                if (sweep / OF_A_SWEEP).exists()
                else "name another folder"
            )
            raise InputError(f"hydra.sweep.dir={sweep}: holds {occupant}; {hint}")
    subdirs = [hydra_folder(config, "hydra.sweep.subdir", number) for number, config in enumerate(configs)]
    if len(subdirs) == 1 and not _is_one_job(configs[0]):
        subdirs.append(hydra_folder(configs[0], "hydra.sweep.subdir", 1))
    numbers: dict[Path, int] = {}
    for number, subdir in enumerate(subdirs):
        folder = Path(named, subdir)
        if (owner := numbers.setdefault(folder, number)) != number or folder == Path(named):
            whose = f"that of job {owner} and of job {number}" if owner != number else "the sweep's own"
            raise ConfigError(
                f"hydra.sweep.subdir={subdir.replace(FRESH, '*')}: this folder is {whose}; let each job have its own,"
                " e.g. with ${hydra:job.num}"
            )
        if sweep is not None and configs[0].get("resume") is None and RunFolder(folder).occupant() is not None:
            raise InputError(f"hydra.sweep.dir={sweep}: {folder} holds a run; name another folder")


def _is_one_job(config: DictConfig) -> bool:
    """Return whether a command line without choices is one job, and no search."""
    sweeper = config.hydra.sweeper
    is_grid = config.hydra.runtime.choices["hydra/sweeper"] in ("binventory_grid", "basic")
    return is_grid and not sweeper.get("params")
