"""Where a run's numbers come from: code, command line, packages, machine."""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import platform
import secrets
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from binventory.config.capture import redact_text
from binventory.files import atomic_path, read_limited

KEY_BYTES = 32
PACKAGES = (
    "binventory", "torch", "torchvision", "timm", "pytorch-lightning", "torchmetrics", "hydra-core", "omegaconf",
    "numpy", "pillow", "pyarrow", "scikit-learn", "safetensors",
)  # fmt: skip


def provenance(
    overrides: Sequence[str], choices: Mapping[str, str | None], hydra_overrides: Sequence[str] = ()
) -> dict[str, Any]:
    """Return plain values for `provenance.json`; data and device facts are added by the task that knows them.

    Args:
        overrides: what was said on the command line.
        choices: the file that each config group was taken from.
        hydra_overrides: what was said of Hydra's own settings.
    """
    shown = [[redact_text(override) for override in given] for given in (overrides, hydra_overrides)]
    signature = sign([*shown[0], *shown[1]])
    return {
        "command": [redact_text(argument) for argument in sys.argv],
        "overrides": shown[0],
        "hydra_overrides": shown[1],
        **({} if signature is None else {"signature": signature}),
        "choices": dict(choices),
        "working_dir": str(Path.cwd()),
        "git": git_facts(),
        "python": platform.python_version(),
        "packages": {name: version for name in PACKAGES if (version := _version(name))},
        "hardware": {
            "platform": platform.platform(),
            "processor": _processor(),
            "cpu_cores": os.cpu_count(),
            "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        },
    }


def sign(overrides: Sequence[str]) -> str | None:
    """Sign overrides that name variables of the environment, so that a resumed run may read them again.

    A folder that came from somebody else could have them read into what it sends. The key lies in the user's home.

    Returns:
        None where no override names one, or no key can be kept.
    """
    if not any("${" in override for override in overrides) or (key := _own_key()) is None:
        return None
    return hmac.new(key, json.dumps(list(overrides)).encode(), "sha256").hexdigest()


def is_signed(overrides: Sequence[Any], signature: Any) -> bool:
    """Whether this user's own run wrote these overrides."""
    if not isinstance(signature, str) or not all(isinstance(override, str) for override in overrides):
        return False
    return hmac.compare_digest(signature.encode(), (sign(overrides) or "").encode())


def _own_key() -> bytes | None:
    """Return the user's key for signatures, made when it is first needed."""
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    path = Path(state) / "binventory" / "key"
    try:
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_path(path) as temporary:
                os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
                temporary.write_bytes(secrets.token_bytes(KEY_BYTES))
        key = read_limited(path)
    except (OSError, RuntimeError):  # no home, or it cannot be written to
        return None
    return key if len(key) == KEY_BYTES else None


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor()


def git_facts() -> dict[str, Any] | None:
    """Commit and a hash of what differs from it; None outside a checkout."""
    commit, index = (
        _run_git("rev-parse", "HEAD"),
        _run_git("rev-parse", "--path-format=absolute", "--git-path", "index"),
    )
    if commit is None or index is None or not (own := Path(index.decode().strip())).is_file():
        return None
    with tempfile.TemporaryDirectory() as folder:
        # git brings its index up to date while it compares; a kill would leave its lock behind in the user's checkout.
        copy = Path(folder) / "index"
        copy.write_bytes(own.read_bytes())
        diff = _run_git("diff", "HEAD", "--binary", index=copy) or b""
        changes = _run_git("status", "--porcelain", index=copy)
    return {
        "commit": commit.decode().strip(),
        "dirty": bool(changes),
        "diff_sha256": hashlib.sha256(diff).hexdigest() if diff else None,
    }


def _run_git(*arguments: str, index: Path | None = None) -> bytes | None:
    """Return what git says of the checkout that this file lies in; None where it has nothing to say."""
    environment = os.environ if index is None else {**os.environ, "GIT_INDEX_FILE": str(index)}
    try:
        done = subprocess.run(  # noqa: S603  our own arguments
            ["git", *arguments],  # noqa: S607  the user's own git, wherever it lies
            cwd=Path(__file__).resolve().parent, env=environment, capture_output=True, check=False, timeout=20,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None
