"""One run as its folder tells it. Nothing here is trusted to be whole: what cannot be read becomes its problem."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from binventory.config.capture import load_plain, one_line
from binventory.data.text import printable
from binventory.errors import InputError
from binventory.files import read_limited
from binventory.tracking.resume import task_name, tell_shares_apart
from binventory.tracking.run_folder import RunFolder
from binventory.tracking.sweep_record import SWEEP_FILE

BROKEN = "broken"  # the state of a run whose status.json cannot be read
SCORING_TASKS = ("train", "evaluate")  # a prediction has no figures
STATES = ("queued", "running", "done", "failed", "preempted", "pruned")
# Of metrics.json: what a run took and how far it got.
TRAINING_FIGURES = ("epochs", "best_epoch", "train_seconds", "images_per_second")


@dataclass(frozen=True)
class Run:
    """A row of the comparison.

    Attributes:
        path: the run folder; of a job that never got one, its sweep's folder.
        name: the folder's name; of a sweep's job `<sweep>/<job>`.
        state: as in status.json, or "broken".
        task: train, evaluate, …; None where the run does not say.
        config: dotted key → value; a list is one value. None where there is no readable config.yaml.
        figures: metrics.json by logged name (`test/accuracy`), and `epochs`, `train_seconds`, …; finite numbers only.
        fingerprint: of the data, from provenance.json; None where the run does not say.
        overrides: of its command line or its sweep, as they were given.
        experiment: the preset of configs/experiment that it was started from; None where it was from none.
        working_dir: where it was started; None where the run does not say.
        machine: its GPUs or else its processor; None where the run does not say.
        started: ISO 8601; None before the run started.
        problem: why it failed or what of it cannot be read, in one line.
    """

    path: Path
    name: str
    state: str
    task: str | None = None
    config: Mapping[str, Any] | None = None
    figures: Mapping[str, float] = field(default_factory=dict)
    fingerprint: str | None = None
    overrides: tuple[str, ...] = ()
    experiment: str | None = None
    working_dir: str | None = None
    machine: str | None = None
    started: str | None = None
    problem: str | None = None

    @property
    def is_done(self) -> bool:
        """Whether its figures are final."""
        return self.state == "done"

    @property
    def num_tested(self) -> int:
        """Photos that its test figures are of."""
        return int(self.figures.get("test/num_images", 0))


def read_run(path: Path) -> Run:
    """Read a run folder; whatever is missing or damaged in it, it is a row."""
    problems: list[str] = []
    status = _read_status(path, problems)
    state, task = status.get("state", BROKEN), _short_task(status.get("task"))
    figures = _read_json(path / "metrics.json", problems, is_expected=state == "done" and task in SCORING_TASKS)
    provenance = _read_json(path / "provenance.json", problems, is_expected=state == "done")
    data, choices = _dict_of(provenance, "data"), _dict_of(provenance, "choices")
    return Run(
        path=path,
        name=f"{path.parent.name}/{path.name}" if (path.parent / SWEEP_FILE).is_file() else path.name,
        state=state,
        task=task,
        config=_read_config(path / "config.yaml", problems),
        figures=_figures(figures),
        fingerprint=_text(data, "fingerprint"),
        overrides=_texts(provenance, "overrides"),
        experiment=_text(choices, "experiment"),
        working_dir=_text(provenance, "working_dir"),
        machine=_machine(provenance),
        started=_text(status, "started"),
        problem="; ".join(problems) or None,
    )


def unstarted_run(sweep: Path, job: Mapping[str, Any]) -> Run:
    """Return the row of a job of sweep.json that left no status: not started yet, or killed before it could say so."""
    state = job["state"] if job["state"] in STATES else BROKEN
    problem = None if job["error"] is None else _said(job["error"])
    return Run(path=sweep, name=f"{sweep.name}/{printable(str(job['job']), 20)}", state=state, problem=problem)


def _read_status(path: Path, problems: list[str]) -> dict[str, Any]:
    folder = RunFolder(path)
    try:
        status = folder.read_status()
        state = status.get("state")
        if state not in STATES:
            raise InputError("there is no status.json" if not status else f"status.json: state={state!r:.40} is none")
    except (InputError, RecursionError) as error:
        problems.append(_said(error))
        return {}
    if state == "failed":
        problems.append(_failure(status.get("error")))
    if state == "running" and _is_abandoned(folder):
        problems.append("no process on this machine writes it")
    return status


def _failure(error: Any) -> str:
    if not isinstance(error, dict):
        return "failed"
    return printable(one_line(f"{error.get('type')}: {error.get('message')}"), 300)


def _is_abandoned(folder: RunFolder) -> bool:
    try:
        return folder.writer() is None
    except (OSError, ValueError):  # not ours to open, or a pid that is none
        return False


def _read_json(path: Path, problems: list[str], *, is_expected: bool) -> dict[str, Any]:
    try:
        read = json.loads(read_limited(path))
    except FileNotFoundError:
        if is_expected:
            problems.append(f"there is no {path.name}")
        return {}
    except (OSError, ValueError, RecursionError) as error:
        problems.append(f"{path.name}: cannot be read ({_said(error)})")
        return {}
    if not isinstance(read, dict):
        problems.append(f"{path.name}: cannot be read (not an object)")
        return {}
    return read


def _read_config(path: Path, problems: list[str]) -> dict[str, Any] | None:
    try:
        return tell_shares_apart(dict(flat(load_plain(path))))
    except FileNotFoundError:
        problems.append("there is no config.yaml")
    except InputError as error:
        problems.append(_said(error))
    except OSError as error:
        problems.append(f"{path.name}: cannot be read ({_said(error)})")
    return None


def flat(node: Any, prefix: str = "") -> list[tuple[str, Any]]:
    """Return (dotted key, value) of nested dicts; `load_plain` bounds how deep they are."""
    if not isinstance(node, dict):
        return [(prefix, node)]
    return [pair for key, child in node.items() for pair in flat(child, f"{prefix}.{key}" if prefix else str(key))]


def _machine(provenance: Mapping[str, Any]) -> str | None:
    names = _dict_of(provenance, "device").get("names")
    if isinstance(names, list) and names:
        return ", ".join(map(str, names))
    return _text(_dict_of(provenance, "hardware"), "processor")


def _dict_of(read: Mapping[str, Any], name: str) -> dict[str, Any]:
    found = read.get(name)
    return found if isinstance(found, dict) else {}


def _text(read: Mapping[str, Any], name: str) -> str | None:
    found = read.get(name)
    return found if isinstance(found, str) else None


def _texts(read: Mapping[str, Any], name: str) -> tuple[str, ...]:
    found = read.get(name)
    return tuple(each for each in found if isinstance(each, str)) if isinstance(found, list) else ()


def canonical(value: Any) -> str:
    """Return text that is the same for the same config value; 1 and 1.0 in YAML are the same, 1 and true are not."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return json.dumps(value, sort_keys=True, default=str)


def plain_text(value: Any) -> str:
    """Return a config's value as YAML would have it in one line."""
    return printable(value, 200) if isinstance(value, str) else printable(json.dumps(value, default=str), 200)


def _figures(read: Mapping[str, Any]) -> dict[str, float]:
    figures = {}
    for split in ("val", "test"):
        values = read.get(split)
        if isinstance(values, dict):
            figures.update({f"{split}/{name}": value for name, value in values.items()})
    figures.update({name: read.get(name) for name in TRAINING_FIGURES})
    return {name: value for name, value in figures.items() if _is_number(value)}


def _is_number(value: Any) -> bool:
    # NaN, infinity and an integer of 400 digits are in JSON files, too.
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300


def _short_task(task: Any) -> str | None:
    return printable(task_name(task), 60) if isinstance(task, str) else None


def _said(error: object) -> str:
    return printable(one_line(str(error)) or type(error).__name__, 300)
