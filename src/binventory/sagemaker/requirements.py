"""requirements.txt of a job: what the project needs besides what the training image has, at the tested versions."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from binventory.data.text import printable
from binventory.errors import ConfigError, InputError

if TYPE_CHECKING:
    from packaging.requirements import Requirement

# The image has these with all that they bring: other builds of them would not fit its CUDA.
IN_IMAGE = {"torch", "torchvision"}
# Where the job runs, whatever machine submits it.
CONTAINER = {
    "os_name": "posix",
    "sys_platform": "linux",
    "platform_system": "Linux",
    "platform_machine": "x86_64",
    "implementation_name": "cpython",
    "platform_python_implementation": "CPython",
}


def container_requirements(root: Path, extras: Sequence[str] = (), python: str | None = None) -> str:
    """Return the text of a requirements.txt, `name==version` in lines sorted by name.

    It holds what the project's core dependencies and those of `extras` need, transitively. What the project needs its
    pyproject.toml says (an editable install's own record may be older), what packages need their installed metadata.
    Left out are the project itself, torch, torchvision, and what only these two need.

    Args:
        root: the project's folder, with pyproject.toml and constraints.txt (`name==version` a line).
        extras: of the project, such as s3 and wandb.
        python: version of the image's Python, e.g. "3.12"; None: this one's.

    Raises:
        InputError: one of the two files cannot be read, or constraints.txt has a line that is no pin, or lacks a pin.
        ConfigError: there is no such extra, or a needed package is not installed here.
    """
    environment = dict(CONTAINER)
    if python is not None:
        environment |= {"python_version": python, "python_full_version": f"{python}.0"}
    constraints = root / "constraints.txt"
    pins = _read_pins(constraints, environment)
    needed = _closure(_project_requirements(root / "pyproject.toml", extras), environment)
    missing = sorted(needed - pins.keys())
    if missing:
        raise InputError(
            f"{constraints}: has no version of {', '.join(missing)}, which a job needs; add NAME==VERSION as"
            " `pip freeze` says it"
        )
    return "".join(f"{pins[name]}\n" for name in sorted(needed))


def _closure(requirements: Sequence[Requirement], environment: dict[str, str]) -> set[str]:
    """Normalised names of all packages that are needed, from those that the project names."""
    from packaging.utils import canonicalize_name

    visited: set[tuple[str, str]] = set()
    waiting = [requirement for requirement in requirements if _holds(requirement, "", environment)]
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        # a package's extra may be asked for after the package itself
        for extra in {"", *requirement.extras} if name not in IN_IMAGE else ():
            if (name, extra) not in visited:
                visited.add((name, extra))
                waiting += _requirements(name, extra, environment)
    return {name for name, _ in visited}


def _requirements(name: str, extra: str, environment: dict[str, str]) -> list[Requirement]:
    """What an installed package needs where the job runs, with one of its extras or without."""
    from packaging.requirements import Requirement

    try:
        declared = [Requirement(line) for line in metadata.requires(name) or ()]
    except metadata.PackageNotFoundError as error:
        raise ConfigError(
            f"{name}: a job needs it with all that it needs, and it is not installed here; pip install '{name}'"
        ) from error
    return [requirement for requirement in declared if _holds(requirement, extra, environment)]


def _holds(requirement: Requirement, extra: str, environment: dict[str, str]) -> bool:
    return requirement.marker is None or requirement.marker.evaluate(environment | {"extra": extra})


def _project_requirements(pyproject: Path, extras: Sequence[str]) -> list[Requirement]:
    """What the project itself names, extras that name other extras of its own followed."""
    from packaging.requirements import InvalidRequirement, Requirement
    from packaging.utils import canonicalize_name

    try:
        project = tomllib.loads(_read(pyproject)).get("project", {})
        optional = project.get("optional-dependencies", {})
        lists, waiting = [project["dependencies"]], list(extras)
        for extra in waiting:  # grows while it is walked through
            if extra not in optional:
                raise ConfigError(f"extras: {pyproject} has no extra {extra!r}; choose among {', '.join(optional)}")
            of_others = [Requirement(line) for line in optional[extra]]
            own = [other for other in of_others if canonicalize_name(other.name) == canonicalize_name(project["name"])]
            waiting += [name for other in own for name in sorted(other.extras) if name not in waiting]
            lists.append([line for line, other in zip(optional[extra], of_others, strict=True) if other not in own])
        return [Requirement(line) for lines in lists for line in lines]
    except (tomllib.TOMLDecodeError, InvalidRequirement, KeyError, TypeError) as error:
        raise InputError(f"{pyproject}: says not what the project needs ({_one_line(error)}); mend it") from error


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "is not UTF-8"
        raise InputError(f"{path}: cannot be read: {reason}; it says what a job needs") from error


def _one_line(error: Exception) -> str:
    return printable(" ".join(str(error).split()), 200)


def _read_pins(constraints: Path, environment: dict[str, str]) -> dict[str, str]:
    """The lines of a constraints file by normalised name, those for other platforms left out."""
    from packaging.requirements import InvalidRequirement, Requirement
    from packaging.utils import canonicalize_name

    pins: dict[str, str] = {}
    for number, line in enumerate(_read(constraints).splitlines(), start=1):
        text = re.sub(r"(^|\s)#.*", "", line).strip()
        if not text:
            continue
        try:
            requirement = Requirement(text)
            (specifier,) = requirement.specifier
        except (InvalidRequirement, ValueError) as error:
            raise InputError(f"{constraints}:{number}: {text[:100]!r} is no pin; write NAME==VERSION") from error
        if specifier.operator != "==" or "*" in specifier.version or requirement.extras or requirement.url:
            raise InputError(f"{constraints}:{number}: {text[:100]!r} is no pin; write NAME==VERSION")
        if requirement.marker is None or requirement.marker.evaluate(environment):
            pins[canonicalize_name(requirement.name)] = f"{requirement.name}=={specifier.version}"
    return pins
