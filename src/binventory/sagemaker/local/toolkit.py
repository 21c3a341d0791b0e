"""The Python that runs jobs: AWS's training toolkit in an environment of its own.

The toolkit is never installed beside binventory: it brings packages of its own. Its environment sees the
packages of the one that started the control plane, behind its own: what a training image has (torch and so on) is there
without a second copy.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import site
import subprocess
import sys
from importlib import metadata
from pathlib import Path

from filelock import FileLock

from binventory.config.paths import as_path
from binventory.errors import InputError
from binventory.files import write_text

REQUIREMENT = "sagemaker-training==5.1.4"


def cache_folder() -> Path:
    """Where the environment is kept: BINVENTORY_CACHE_DIR as in `paths.cache_dir`, else .cache of this folder."""
    return Path(as_path("BINVENTORY_CACHE_DIR", os.environ.get("BINVENTORY_CACHE_DIR", ".cache")))


def toolkit_python(cache: Path | None = None) -> Path:
    """Find or make the environment of the training toolkit and return its Python; making it takes 20 s and a network.

    It is made once for a Python, its packages and their folders; a second process waits for the first. What the toolkit
    needs is of the versions that are installed here: what a job requires is then there, and pip looks for nothing.

    Raises:
        InputError: pip could not install the toolkit, or the cache folder cannot be written to.
    """
    sites = site.getsitepackages()
    versions = _installed()
    key = hashlib.sha256("\n".join([REQUIREMENT, sys.version, *sites, *versions]).encode()).hexdigest()[:12]
    folder = ((cache or cache_folder()) / "sagemaker-toolkit" / key).absolute()
    python, is_complete = folder / "bin" / "python", folder / "complete"
    if is_complete.exists():
        return python
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_suffix(".lock")):
            if not is_complete.exists():
                shutil.rmtree(folder, ignore_errors=True)  # what a killed process left
                _make(folder, python, sites, versions)
                write_text(is_complete, REQUIREMENT + "\n")
    except OSError as error:
        reason = error.strerror or error
        raise InputError(f"{folder} cannot be written to ({reason}); set BINVENTORY_CACHE_DIR") from error
    return python


def _installed() -> list[str]:
    """The packages of this Python, each as `name==version`; of two of one name the first, which is the one imported."""
    found: dict[str, str] = {}
    for package in metadata.distributions():
        found.setdefault(package.metadata["Name"], package.version)
    return sorted(f"{name}=={version}" for name, version in found.items() if name != "binventory")


def _make(folder: Path, python: Path, sites: list[str], versions: list[str]) -> None:
    print(f"making the training toolkit's environment in {folder} (once, 20 s)", file=sys.stderr, flush=True)
    _call([sys.executable, "-m", "venv", str(folder)], folder)
    constraints = folder / "constraints.txt"
    write_text(constraints, "".join(f"{version}\n" for version in versions))
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    # not the venv's own setuptools, which torch refuses
    same = [version for version in versions if version.startswith("setuptools==")]
    _call([*pip, "--constraint", str(constraints), *same, REQUIREMENT], folder)
    (own,) = folder.glob("lib/python*/site-packages")
    # addsitedir, not a plain path: what those packages' own .pth files add (an editable install) is then seen too
    lines = [f"import site; site.addsitedir({path!r})" for path in sites]
    write_text(own / "zz_binventory_base.pth", "\n".join(lines) + "\n")


def _call(command: list[str], folder: Path) -> None:
    done = subprocess.run(  # noqa: S603 (a fixed command)
        command, capture_output=True, text=True, check=False
    )
    if done.returncode:
        shutil.rmtree(folder, ignore_errors=True)
        lines = [line for line in (done.stderr + done.stdout).splitlines() if line.strip()]
        reason = next((line for line in lines if line.startswith("ERROR")), lines[-1] if lines else "no reason given")
        raise InputError(f"{REQUIREMENT} could not be installed into {folder}: {reason}; is a package index reachable?")
