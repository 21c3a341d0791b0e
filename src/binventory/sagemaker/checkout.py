"""What a project's checkout holds: the files that git tracks or would track, as they are on disk now."""

from __future__ import annotations

import os
import stat
import subprocess
from dataclasses import dataclass
from pathlib import Path

from binventory.data.text import printable
from binventory.errors import InputError

READ_ATTEMPTS = 3
# no link that took the file's place, and no waiting for a pipe that did
OPEN_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
SUBMODULE_MODE = b"160000"


@dataclass(frozen=True)
class CheckoutFile:
    """A file of a checkout.

    Attributes:
        name: path relative to the project, with '/'; a name that is no UTF-8 comes as Python's file names do.
        path: the file.
        size_bytes: its size when it was listed; 0 for a link.
    """

    name: str
    path: Path
    size_bytes: int


def list_files(root: Path) -> list[CheckoutFile]:
    """List tracked and untracked files below `root` that git does not ignore, submodules' included, in byte order.

    Tracked files that were deleted are left out.

    Raises:
        InputError: no git checkout, a submodule that is not checked out, or something that is neither file nor link.
    """
    real_root = Path(os.path.realpath(root))
    names = sorted(_names(root, ""), key=os.fsencode)
    found = []
    for name in names:
        path = root / name
        try:
            status = path.lstat()
        except (FileNotFoundError, NotADirectoryError):
            continue  # deleted and not yet committed
        except OSError as error:
            raise InputError(f"{printable(str(path))}: cannot be read: {error.strerror}") from error
        if stat.S_ISDIR(status.st_mode):
            continue  # a tracked file that became a folder, whose files are listed themselves
        if not (stat.S_ISREG(status.st_mode) or stat.S_ISLNK(status.st_mode)):
            raise InputError(f"{printable(str(path))}: is neither file nor link; remove it or add it to .gitignore")
        if not Path(os.path.realpath(path.parent)).is_relative_to(real_root):
            raise InputError(f"{printable(str(path))}: its folder is a link out of the project; remove the link")
        found.append(CheckoutFile(name, path, status.st_size if stat.S_ISREG(status.st_mode) else 0))
    return found


def read_link(file: CheckoutFile, root: Path) -> str | None:
    """Return where a link points, relative to its own folder; None for a regular file.

    Raises:
        InputError: it points out of the project, where the container has nothing, or something else than here.
    """
    try:
        if not file.path.is_symlink():
            return None
        target = str(file.path.readlink())
    except OSError as error:
        raise _unreadable(file, error) from error
    written = os.path.normpath(os.path.join(os.path.dirname(file.name), target))  # noqa: PTH118, PTH120  as written
    leaves = target.startswith("/") or written == ".." or written.startswith("../")
    if leaves or not Path(os.path.realpath(file.path)).is_relative_to(os.path.realpath(root)):
        where = f"{printable(file.name)} -> {printable(target)}"
        raise InputError(f"{where}: a link out of the project; replace it by the file or add it to .gitignore")
    return target


def read_file(file: CheckoutFile, max_bytes: int) -> tuple[bytes, bool]:
    """Return a regular file's bytes and whether its owner may execute it.

    Raises:
        InputError: it cannot be read, is larger than `max_bytes`, or changes each time that it is read.
    """
    for _ in range(READ_ATTEMPTS):
        try:
            with os.fdopen(os.open(file.path, OPEN_FLAGS), "rb") as opened:
                before = os.fstat(opened.fileno())
                content = opened.read(max_bytes + 1)
                after = os.fstat(opened.fileno())
        except OSError as error:
            raise _unreadable(file, error) from error
        if len(content) > max_bytes:
            raise InputError(f"{printable(file.name)}: grew over {max_bytes:,} bytes while it was read")
        stamps = {(status.st_size, status.st_mtime_ns) for status in (before, after)}
        if len(stamps) == 1 and len(content) == after.st_size:
            return content, bool(after.st_mode & stat.S_IXUSR)
    raise InputError(f"{printable(file.name)}: changes while it is read; wait for what writes it, or ignore it")


def _unreadable(file: CheckoutFile, error: OSError) -> InputError:
    reason = f"cannot be read: {error.strerror}; mend it or add it to .gitignore"
    return InputError(f"{printable(file.name)}: {reason}")


def _names(folder: Path, prefix: str) -> set[str]:
    """The names of `folder`'s files, each after `prefix`, those of its submodules included."""
    names: set[str] = set()
    for entry in _git(folder, "ls-files", "-z", "--cached", "--stage"):
        facts, _, raw = entry.partition(b"\t")
        name = os.fsdecode(raw)
        if not facts.startswith(SUBMODULE_MODE):
            names.add(prefix + name)
        elif (folder / name / ".git").exists():
            names |= _names(folder / name, f"{prefix}{name}/")
        else:
            shown = printable(prefix + name)
            raise InputError(f"{shown}: a submodule that is not checked out; git submodule update --init '{shown}'")
    for raw in _git(folder, "ls-files", "-z", "--others", "--exclude-standard"):
        name = prefix + os.fsdecode(raw)
        if name.endswith("/"):  # git does not look into it
            raise InputError(f"{printable(name)}: another checkout in this one; add it to .gitignore or as a submodule")
        names.add(name)
    return names


def _git(folder: Path, *arguments: str) -> list[bytes]:
    # GIT_DIR and the like, which git sets for its hooks, would name another checkout
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    try:
        done = subprocess.run(  # noqa: S603
            ["git", "-C", str(folder), *arguments],  # noqa: S607
            capture_output=True,
            check=False,
            env=environment | {"LC_ALL": "C"},
        )
    except OSError as error:
        raise InputError(f"git: cannot be run ({error.strerror}); install git: it says what a job needs") from error
    if done.returncode == 0:
        return done.stdout.split(b"\0")[:-1]
    said = printable(" ".join(done.stderr.decode(errors="replace").split()), 300)
    if "not a git repository" in said:
        raise InputError(
            f"{folder}: no git checkout, and git says what is sent to a job; run `git init` there and list what no job"
            " needs in .gitignore (nothing has to be committed)"
        )
    raise InputError(f"{folder}: git cannot list its files: {said}")
