"""Checkpoint files: written whole or not at all, the one before kept, damage noticed before anything is loaded."""

from __future__ import annotations

import os
import shutil
import sys
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.plugins.io import CheckpointIO

from binventory.errors import InputError
from binventory.files import atomic_path, open_limited
from binventory.models.finite import find_not_finite

MAX_CHECKPOINT_BYTES = 2**38
LAST, PREVIOUS, BEST = "last.ckpt", "previous.ckpt", "best.ckpt"

# What reading a damaged zip archive raises; NotImplementedError and RuntimeError: a flipped flag asks for a feature.
DAMAGE = (zipfile.BadZipFile, zlib.error, EOFError, ValueError, NotImplementedError, RuntimeError)


class CheckpointError(OSError):
    """A checkpoint could not be written; the ones before are as they were."""


def write_checkpoint(checkpoint: dict[str, Any], path: Path) -> None:
    """Write a checkpoint and read it back before it takes the place of the one that is there.

    What was `path` before is kept beside it as previous.ckpt.

    Args:
        checkpoint: what `torch.load` with `weights_only=True` can read again.
        path: the file, e.g. checkpoints/last.ckpt.

    Raises:
        CheckpointError: no room, a folder that cannot be written to, or what was read back is damaged.
    """
    try:
        with atomic_path(path) as temporary:
            with temporary.open("wb") as file:
                torch.save(checkpoint, file)
            if problem := find_damage(temporary):
                raise CheckpointError(f"what was written differs from what was read back ({problem})")
            if path.exists():
                copy_checkpoint(path, path.with_name(PREVIOUS))
    except (OSError, RuntimeError) as error:
        # torch turns what the file system said into an error of its own.
        cause = error.__context__ if isinstance(error.__context__, OSError) else error
        number = cause.errno if isinstance(cause, OSError) else None
        reason = os.strerror(number) if number else str(error)
        raise CheckpointError(
            number,
            f"{path}: this checkpoint could not be written ({reason}); the one before is whole: mend it, then resume",
        ) from error


def copy_checkpoint(source: Path, target: Path) -> None:
    """Make `target` the same checkpoint as `source`, atomically; no second copy of it where there are hard links."""
    with atomic_path(target) as temporary:
        try:
            os.link(source, temporary)
        except OSError:
            shutil.copyfile(source, temporary)


def find_damage(path: Path) -> str | None:
    """Return what is wrong with a checkpoint, by the checksum of each of its parts; None when it is whole."""
    try:
        with open_limited(path, MAX_CHECKPOINT_BYTES) as file, zipfile.ZipFile(file) as archive:
            damaged = archive.testzip()
    except DAMAGE as error:
        return f"{type(error).__name__}: {error}"
    except OSError as error:
        return str(error.strerror or error)
    return None if damaged is None else f"the checksum of {damaged} differs"


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Load a checkpoint onto the CPU without running any code that it may hold.

    Raises:
        InputError: it is damaged or holds anything but tensors and plain values.
    """
    if problem := find_damage(path):
        raise InputError(f"{path}: this checkpoint is damaged ({problem}); name another run, or copy the file again")
    try:
        with open_limited(path, MAX_CHECKPOINT_BYTES) as file:
            checkpoint: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a hostile file provokes
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"{path}: not a checkpoint of tensors and plain values ({reason}); name another run"
        ) from error
    return checkpoint


def find_useless(path: Path) -> str | None:
    """Return why nothing can go on from a checkpoint; None when it can.

    Besides damage: torch cannot read it, which uses parts of the archive's index that no checksum covers, or weights
    in it are not finite.
    """
    if damage := find_damage(path):
        return damage
    try:
        weights = weights_in(torch.load(path, map_location="cpu", weights_only=True, mmap=True))
    except Exception as error:  # noqa: BLE001  whatever a flipped bit provokes
        return " ".join(str(error).split())[:200]
    name = find_not_finite(weights)
    return None if name is None else f"{name} holds NaN or infinity"


def weights_in(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """Return all weights of a checkpoint: with an average of them, the averaged and the raw ones."""
    raw = checkpoint.get("current_model_state", {})
    return {**checkpoint["state_dict"], **{f"{name} (not averaged)": value for name, value in raw.items()}}


def find_checkpoint(folder: Path) -> Path | None:
    """Return the newest whole checkpoint of a `checkpoints` folder; None when it holds none at all.

    Raises:
        InputError: there are checkpoints and all are damaged.
    """
    damaged: list[str] = []
    for name in (LAST, PREVIOUS):
        path = folder / name
        if not path.exists():
            continue
        problem = find_useless(path)
        if problem is None:
            if damaged:
                print(
                    f"warning: {'; '.join(damaged)}; going on from the one before, {path}", file=sys.stderr, flush=True
                )
            return path
        damaged.append(f"{path} is damaged ({problem})")
    if damaged:
        raise InputError(f"{'; '.join(damaged)}; there is none to go on from: remove {folder} to start this run over")
    return None


class VerifiedCheckpointIO(CheckpointIO):
    """Lightning's way to checkpoint files, through the functions above.

    A failed write is kept in `error` instead of raised: rank 0 alone writes, and the others wait for it at a barrier.
    """

    def __init__(self) -> None:
        self.error: CheckpointError | None = None

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write a checkpoint; see `write_checkpoint`."""
        try:
            write_checkpoint(checkpoint, Path(path))
        except CheckpointError as error:
            self.error = error

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """Load a checkpoint; see `read_checkpoint`."""
        return read_checkpoint(Path(path))

    def remove_checkpoint(self, path: Any) -> None:
        """Remove a checkpoint."""
        Path(path).unlink(missing_ok=True)
