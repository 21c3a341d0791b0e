"""Where a run's numbers come from: code, command line, packages, machine."""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from binventory.config.capture import redact_text

PACKAGES = (
    "binventory", "torch", "torchvision", "timm", "pytorch-lightning", "torchmetrics", "hydra-core", "omegaconf",
    "numpy", "pillow", "pyarrow", "scikit-learn", "safetensors",
)  # fmt: skip


def provenance(overrides: list[str]) -> dict[str, Any]:
    """Return plain values for `provenance.json`; data and device facts are added by the task that knows them."""
    return {
        "command": [redact_text(argument) for argument in sys.argv],
        "overrides": [redact_text(override) for override in overrides],
        "working_dir": str(Path.cwd()),
        "git": _git(),
        "python": platform.python_version(),
        "packages": {name: version for name in PACKAGES if (version := _version(name))},
        "hardware": {
            "platform": platform.platform(),
            "processor": _processor(),
            "cpu_cores": os.cpu_count(),
            "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        },
    }


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


def _git() -> dict[str, Any] | None:
    """Commit and a hash of what differs from it; None outside a checkout."""
    folder = Path(__file__).resolve().parent

    def git(*arguments: str) -> bytes | None:
        try:
            done = subprocess.run(  # noqa: S603  our own arguments
                ["git", "--no-optional-locks", *arguments],  # noqa: S607  the user's own git, wherever it lies
                cwd=folder, capture_output=True, check=False, timeout=20,
            )  # fmt: skip
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout if done.returncode == 0 else None

    commit = git("rev-parse", "HEAD")
    if commit is None:
        return None
    diff = git("diff", "HEAD", "--binary") or b""
    return {
        "commit": commit.decode().strip(),
        "dirty": bool(git("status", "--porcelain")),
        "diff_sha256": hashlib.sha256(diff).hexdigest() if diff else None,
    }
