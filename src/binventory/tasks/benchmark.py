"""`binventory benchmark`: the largest batch and the fastest settings of a training on this machine."""

from __future__ import annotations

import itertools
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]
import torch
from rich.console import Console
from rich.table import Table

from binventory.config.schema import TrainConfig
from binventory.errors import ConfigError
from binventory.tasks.precision import gpu_has_bfloat16, runs_on_gpu
from binventory.tasks.step_speed import NoMemoryError, Settings, StepSpeed, measure
from binventory.tasks.train import quiet_lightning
from binventory.tracking.provenance import provenance

MEMORY_SHARE = 0.7  # of the RAM that is available when the search begins; the rest is for what else runs there
MIN_BATCH = 2  # BatchNorm cannot learn from one photo
NO_MEMORY = "out of memory"
EQUALLY_FAST = 0.97  # of the most images/s: of such settings the smallest batch is proposed


@dataclass(frozen=True)
class Tried:
    """What came of one setting: its speed, or why it has none."""

    settings: Settings
    speed: StepSpeed | None
    problem: str | None = None

    @property
    def images_per_second(self) -> float:
        """Throughput of training; 0 where it does not work."""
        return 0.0 if self.speed is None else self.settings.batch_size / self.speed.step_s

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, for the JSON file."""
        speed = self.speed
        return {
            **{key.rsplit(".", 1)[1]: value for key, value in self.settings.overrides().items()},
            "step_ms": None if speed is None else round(1e3 * speed.step_s, 3),
            "images_per_second": None if speed is None else round(self.images_per_second, 1),
            "peak_memory_bytes": None if speed is None else speed.peak_bytes,
            "problem": self.problem,
        }


def run(
    config: TrainConfig, overrides: Sequence[str], *, max_batch: int, seconds: float, with_compile: bool | None
) -> dict[str, Any]:
    """Measure the training of a config with other batch sizes and settings, print a table and what to run.

    Args:
        config: a checked config of `train.py`.
        overrides: the command line that it was composed from.
        max_batch: the largest batch tried.
        seconds: how long each setting is measured; a batch whose step would take longer is not tried.
        with_compile: whether to try `trainer.compile`; None: on a GPU.

    Returns:
        Plain values: what was tried, the largest batch, the settings proposed, and the command for them.

    Raises:
        ConfigError: several devices; or not even two photos fit into memory.
    """
    if config.trainer.devices > 1:
        raise ConfigError(
            f"trainer.devices={config.trainer.devices}: one device is measured; set trainer.devices=1 and"
            " trainer.strategy=auto, and multiply the batch that is found by the number of devices"
        )
    quiet_lightning()
    search = Search(config, max_batch=max_batch, seconds=seconds)
    for settings in _eager_settings(config):
        search.double(settings)
    if not any(tried.speed for tried in search.tried):
        raise ConfigError(
            f"data.image_size={config.data.image_size}: not even a batch of {MIN_BATCH} fits into memory with"
            f" model.name={config.model.name}; take a smaller image or network"
        )
    largest, limited_by = search.largest(search.fastest().settings)
    if with_compile or (with_compile is None and (config.trainer.compile or runs_on_gpu(config))):
        search.attempt(replace(search.fastest().settings, compile=True))
    chosen = search.fastest()
    command = _command(overrides, chosen.settings)
    _print(search.tried, largest, limited_by, command)
    return {
        "hardware": provenance((), {})["hardware"],
        "gpu": torch.cuda.get_device_name() if runs_on_gpu(config) else None,
        "seconds": seconds,
        "tried": [tried.to_dict() for tried in search.tried],
        "largest_batch": {**largest.to_dict(), "limited_by": limited_by},
        "fastest": chosen.to_dict(),
        "command": command,
    }


class Search:
    """Tries settings, none of them larger than what memory and time allow.

    On a GPU a batch fits unless it raises torch's own error. On the CPU batches are approached from the smallest: the
    next is tried only where the memory that the one before took on top of what there was, in proportion, is at most
    `MEMORY_SHARE` of what is available; one that took more all the same counts as one that does not fit.

    Args:
        config: a checked config.
        max_batch: the largest batch tried.
        seconds: how long each setting is measured.
    """

    def __init__(self, config: TrainConfig, *, max_batch: int, seconds: float) -> None:
        self.config = config
        self.max_batch = max_batch
        self.seconds = seconds
        self.tried: list[Tried] = []
        available_bytes = _available_memory()
        self._allowed_bytes = MEMORY_SHARE * available_bytes
        self._rss_before = psutil.Process().memory_info().rss
        self._console = Console()

    def double(self, settings: Settings) -> None:
        """Try batches that double, from a quarter of the config's own; where that does not fit, ever smaller ones."""
        own = self.config.data.batch_size
        size = min(self.max_batch, own // 4 if own % 4 == 0 and own > 4 * MIN_BATCH else own)
        if not runs_on_gpu(self.config):
            size = self._approach(settings, size)
        tried = self.attempt(replace(settings, batch_size=size))
        while tried.problem == NO_MEMORY and size > MIN_BATCH:
            size = max(MIN_BATCH, size // 2)
            tried = self.attempt(replace(settings, batch_size=size))
            if tried.speed is not None:
                return
        while tried.speed is not None and self._limit(tried, 2 * size) is None:
            size *= 2
            tried = self.attempt(replace(settings, batch_size=size))

    def _approach(self, settings: Settings, wanted: int) -> int:
        """Return the batch to begin with on the CPU: the wanted one, or as far as doubling from the smallest gets.

        A process does not always survive a lack of memory, so no batch is tried of which nothing is known.
        """
        size = min(MIN_BATCH, wanted)
        while size < wanted:
            tried = self._measured(replace(settings, batch_size=size), seconds=0)
            if tried.speed is None or self._limit(tried, min(2 * size, wanted)) == NO_MEMORY:
                break
            size = min(2 * size, wanted)
        return size

    def largest(self, settings: Settings) -> tuple[Tried, str]:
        """Find the largest batch of some settings, and say what keeps it from being larger."""
        same = [
            tried for tried in self.tried if replace(tried.settings, batch_size=0) == replace(settings, batch_size=0)
        ]
        best = max((tried for tried in same if tried.speed is not None), key=lambda tried: tried.settings.batch_size)
        failed = [tried.settings.batch_size for tried in same if tried.problem == NO_MEMORY]
        above = min(failed, default=2 * best.settings.batch_size)
        limit = NO_MEMORY if failed else self._limit(best, above)
        if limit != NO_MEMORY:
            return best, str(limit)

        def fits(size: int) -> bool:
            nonlocal best
            if self._limit(best, size) is not None:
                return False
            tried = self.attempt(replace(settings, batch_size=size))
            best = tried if tried.speed is not None else best
            return tried.speed is not None

        bisect(best.settings.batch_size, above, fits)
        return best, NO_MEMORY

    def attempt(self, settings: Settings) -> Tried:
        """Measure one setting and keep what came of it."""
        self.tried.append(self._measured(settings, self.seconds))
        return self.tried[-1]

    def _measured(self, settings: Settings, seconds: float) -> Tried:
        words = f"batch {settings.batch_size}, {settings.precision}, channels_last={settings.channels_last}"
        with self._console.status(f"{words}, compile={settings.compile}".lower()):
            try:
                speed = measure(self.config, settings, seconds)
            except NoMemoryError:
                return Tried(settings, None, NO_MEMORY)
            except torch._dynamo.exc.TorchDynamoException as error:
                return Tried(settings, None, f"does not compile: {str(error).splitlines()[0][:80]}")
        is_over = not runs_on_gpu(self.config) and speed.peak_bytes - self._rss_before > self._allowed_bytes
        return Tried(settings, None, NO_MEMORY) if is_over else Tried(settings, speed)

    def fastest(self) -> Tried:
        """Return the smallest batch that trains about as many images per second as any, with its fastest settings."""
        most = max(tried.images_per_second for tried in self.tried)
        fast = [tried for tried in self.tried if tried.images_per_second >= EQUALLY_FAST * most]
        return min(fast, key=lambda tried: (tried.settings.batch_size, -tried.images_per_second))

    def _limit(self, tried: Tried, size: int) -> str | None:
        """Say what keeps a larger batch from being tried; None: nothing does."""
        assert tried.speed is not None
        growth = size / tried.settings.batch_size
        taken = tried.speed.peak_bytes - self._rss_before
        if not runs_on_gpu(self.config) and growth * taken > self._allowed_bytes:
            return NO_MEMORY
        if size > self.max_batch:
            return f"--max-batch={self.max_batch}"
        return f"a step takes over {self.seconds:g} s" if growth * tried.speed.step_s > self.seconds else None


def bisect(fits: int, fits_not: int, try_: Callable[[int], bool]) -> int:
    """Return the largest size that fits, to an eighth of it and above 16 to a multiple of 8."""
    while fits_not - fits > max(1, fits // 8):
        middle = (fits + fits_not) // 2
        middle -= middle % 8 if middle - middle % 8 > fits else 0
        if try_(middle):
            fits = middle
        else:
            fits_not = middle
    return fits


def _eager_settings(config: TrainConfig) -> list[Settings]:
    """Return what is tried without compiling; a precision that is not `auto` was chosen by the user."""
    precisions = [config.trainer.precision]
    if precisions == ["auto"]:
        on_gpu = runs_on_gpu(config)
        has_bf16 = not on_gpu or gpu_has_bfloat16()
        precisions = ["32-true", *(["16-mixed"] if on_gpu else []), *(["bf16-mixed"] if has_bf16 else [])]
    return [Settings(0, precision, layout, False) for precision, layout in itertools.product(precisions, (True, False))]


def _available_memory() -> int:
    """Return the bytes of RAM that can be taken without anything being killed: of the machine, or of the container."""
    available = int(psutil.virtual_memory().available)
    limit, used = (Path("/sys/fs/cgroup") / name for name in ("memory.max", "memory.current"))
    if limit.exists() and (most := limit.read_text().strip()) != "max":
        available = min(available, int(most) - int(used.read_text()))
    return available


def _command(overrides: Sequence[str], settings: Settings) -> str:
    """Return the command line for `train.py`: what the user said, but for what was found."""
    found = settings.overrides()
    said = [text for text in overrides if text.partition("=")[0].lstrip("+") not in found]
    return shlex.join(["python", "train.py", *said, *(f"{key}={_said(value)}" for key, value in found.items())])


def _said(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _print(rows: Sequence[Tried], largest: Tried, limited_by: str, command: str) -> None:
    fastest = {
        max((row for row in rows if row.settings.batch_size == size), key=lambda row: row.images_per_second)
        for size in {row.settings.batch_size for row in rows}
    }
    table = Table(title="Training steps, * the fastest of a batch size", title_justify="left")
    for name in ("batch", "precision", "channels_last", "compile"):
        table.add_column(name)
    for name in ("images/s", "peak memory"):
        table.add_column(name, justify="right")
    table.add_column("")
    for row in sorted(rows, key=lambda row: (row.settings.batch_size, -row.images_per_second)):
        asked = row.settings
        cells = [row.problem or "", "", ""]
        if row.speed is not None:
            cells = [f"{row.images_per_second:,.1f}", f"{row.speed.peak_bytes / 1e9:.2f} GB", "*" * (row in fastest)]
        table.add_row(*map(_said, (asked.batch_size, asked.precision, asked.channels_last, asked.compile)), *cells)
    Console().print(table)
    print(f"largest batch: {largest.settings.batch_size} ({largest.settings.precision}); above it: {limited_by}")
    print("data.batch_size changes what is learned: with another one the learning rate has to be tuned anew")
    print(command)
