"""From what a user names to runs: run folders, sweeps, folders of runs, globs, and the first characters of an id."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from binventory.compare.run import Run, read_run, unstarted_run
from binventory.data.text import printable
from binventory.errors import InputError
from binventory.tracking.sweep_record import SWEEP_FILE, read_sweep

OUTPUTS = Path("outputs")  # where ids are looked for
RUN_FILES = {"status.json", "config.yaml"}  # either makes a folder a run's


def find_runs(places: Sequence[str]) -> list[Run]:
    """Return the runs that the places name, each once, in the order of the places; within one by name.

    Args:
        places: each a run folder, a sweep's folder, a folder with such folders anywhere below it, a glob of those, or
            the id of a run or sweep under `outputs/`: the first characters of its name or of the 4 hex digits that
            end it. What several ids start with means all of them.

    Raises:
        InputError: a place does not exist or holds no run; names it.
    """
    found: dict[tuple[Path, str], Run] = {}
    for place in places:
        folders = _folders_of(place)
        runs = [run for folder in folders for run in _runs_in(folder)]
        if not runs:
            raise InputError(
                f"{printable(place)}: holds no run (a folder with status.json or config.yaml, or a sweep with"
                f" {SWEEP_FILE}); name another folder"
            )
        for run in runs:
            found.setdefault((run.path.resolve(), run.name), run)
    return list(found.values())


def _folders_of(place: str) -> list[Path]:
    path = Path(place)
    if place and path.is_dir():
        return [path]
    if place and path.exists():
        raise InputError(f"{printable(place)}: a file; name the run folder, e.g. {printable(str(path.parent))}")
    is_glob = glob.has_magic(place)
    matches = [Path(name) for name in sorted(glob.glob(place)) if Path(name).is_dir()] if is_glob else []  # noqa: PTH207  a glob can be absolute
    if not matches:
        matches = [folder for folder in _walk(OUTPUTS) if _has_id(folder, place, is_glob=is_glob)]
    if not matches:
        raise InputError(
            f"{printable(place) or repr(place)}: no such folder, and no run or sweep under {OUTPUTS}/ has this id;"
            " name a run, a sweep or a folder that holds them"
        )
    return matches


def _has_id(folder: Path, text: str, *, is_glob: bool) -> bool:
    if is_glob:
        return fnmatchcase(folder.name, text)
    return bool(text) and (folder.name.startswith(text) or folder.name.rpartition("-")[2].startswith(text))


def _runs_in(folder: Path) -> Iterator[Run]:
    for path in _walk(folder):
        if (path / SWEEP_FILE).is_file():
            yield from _runs_of_sweep(path)
        else:
            yield read_run(path)


def _walk(top: Path) -> Iterator[Path]:
    """Yield the run folders and sweeps in a folder and below, in order; nothing inside of them, nothing hidden."""
    for name, folders, files in os.walk(top):
        path = Path(name)
        if SWEEP_FILE in files or RUN_FILES & set(files):
            yield path
            folders.clear()
        folders[:] = sorted(folder for folder in folders if not folder.startswith("."))


def _runs_of_sweep(folder: Path) -> Iterator[Run]:
    known = set()
    for job in _recorded_jobs(folder):
        # Killed before it could be written: its folder has its number.
        path = folder / str(job["job"] if job["run_dir"] is None else job["run_dir"])
        if (path / "status.json").is_file():
            yield read_run(path)
        else:
            yield unstarted_run(folder, job)
        known.add(path.resolve())
    yield from (read_run(path) for path in _by_number(_job_folders(folder)) if path.resolve() not in known)


def _recorded_jobs(folder: Path) -> list[dict[str, Any]]:
    """Return the jobs of sweep.json; none where it is damaged: then the folders of the jobs say what there is."""
    try:
        jobs: list[dict[str, Any]] = read_sweep(folder)["jobs"]
    except InputError:
        return []
    return jobs


def _job_folders(sweep: Path) -> Iterator[Path]:
    for path in sweep.iterdir():
        if path.is_dir() and not path.name.startswith(".") and any((path / name).is_file() for name in RUN_FILES):
            yield path


def _by_number(folders: Iterable[Path]) -> list[Path]:
    """Sort folders by name, job 10 after job 9."""
    return sorted(folders, key=lambda path: (not path.name.isdecimal(), path.name.zfill(9), path.name))
