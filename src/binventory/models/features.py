"""Features of a frozen backbone: computed once and kept, so that a run that trains the head computes nothing else."""

from __future__ import annotations

import hashlib
import inspect
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from binventory.data.cache.build import build_rows
from binventory.data.cache.pack import FEATURES, Pack
from binventory.data.cache.photos import PackedPhotos
from binventory.data.preprocess import Preprocessing
from binventory.models.backbones import frozen_to_eval
from binventory.models.finite import DivergedError
from binventory.models.network import BinNetwork
from binventory.models.stages import head_names
from binventory.models.timm_alone import timm

NUM_CHECKED = 8  # photos whose outputs are computed both ways
# What is computed of so few photos stays in a CPU's caches: ResNet-18 takes a fifth less time than with 64.
CPU_BATCH_SIZE = 8
# Largest difference between outputs, as a share of the largest output: of the same batch computed twice, and of one
# computed earlier among others, where a GPU may take other algorithms.
SAME_BATCH, OTHER_BATCH = 1e-3, 0.02


@dataclass(frozen=True)
class FrozenFeatures:
    """What a frozen backbone makes of packed photos, from `<paths.cache_dir>/features/<key>` or computed now.

    The key is a hash of what the features depend on: the backbone's weights and code, the preprocessing, the photos,
    which of them are wanted flipped, the precision and the kind of device.

    Attributes:
        network: with `model.finetune=head`.
        model_name: `model.name`.
        preprocessing: the network's.
        photos: the decoded photos.
        flipped: the rows of `photos` whose flip is wanted too; empty: none.
        cache_dir: `paths.cache_dir`.
    """

    network: BinNetwork
    model_name: str
    preprocessing: Preprocessing
    photos: PackedPhotos
    flipped: npt.NDArray[np.int64]
    cache_dir: Path

    def __call__(self, trainer: pl.Trainer) -> npt.NDArray[np.float32] | None:
        """Return (num_photos, num_views, num_features) float32, or None where the head cannot be run alone.

        View 0 is the photo, view 1, where any is wanted, its flip; flips that are not wanted are zeros. Computed in
        eval mode on the trainer's device and under its precision, by one process while others wait.

        Raises:
            ConfigError: the folder cannot be written to, or has no room.
            DivergedError: some are not finite.
        """
        found = self._open(trainer)
        if isinstance(found, str):
            if trainer.is_global_zero:
                print(f"frozen features are not cached: {found}", file=sys.stderr, flush=True)
            return None
        return found

    def _open(self, trainer: pl.Trainer) -> npt.NDArray[np.float32] | str:
        """Return the features, or why there are none."""
        computer = _Computer(self, trainer)
        if (problem := computer.problem()) is not None:
            return f"model.name={self.model_name}: {problem}"
        checked = np.arange(min(NUM_CHECKED, len(self.photos.pixels)))
        features, outputs = computer.compute(checked, flip=False), computer.outputs(checked)
        if not computer.difference(features, outputs) <= SAME_BATCH:  # a NaN is no agreement
            return f"model.name={self.model_name}: its classifier alone gives other outputs than training would see"
        pack = self._pack(trainer, features.shape[1])
        found = pack.open()
        if found is None:
            # On one thread: the network uses all cores by itself.
            found = build_rows(pack, computer.rows, 1, f"computing features of {self.model_name}, once").rows
        if not computer.difference(torch.from_numpy(np.array(found[checked, 0])), outputs) <= OTHER_BATCH:
            return f"those in {pack.folder} are of another network of this name; remove that folder"
        if trainer.is_global_zero:
            print(f"frozen features: {len(found):,} photos, {pack.folder}", flush=True)
        return found

    def _pack(self, trainer: pl.Trainer, num_features: int) -> Pack:
        facts = {
            "model": self.model_name,
            "weights": _digest_of_weights(self.network.backbone),
            "code": [_digest_of_code(self.network.backbone), timm.__version__, str(torch.__version__)],
            "preprocessing": self.preprocessing.to_dict(),
            "photos": self.photos.folder.name,
            "flipped": hashlib.sha256(np.sort(self.flipped).tobytes()).hexdigest() if len(self.flipped) else None,
            "precision": f"{trainer.precision} on {trainer.strategy.root_device.type}",
        }
        num_views = 2 if len(self.flipped) else 1
        return Pack.at(self.cache_dir, FEATURES, facts, (len(self.photos.pixels), num_views, num_features))


class _Computer:
    """Computes features and outputs on the trainer's device and under its precision."""

    def __init__(self, of: FrozenFeatures, trainer: pl.Trainer) -> None:
        self.network = of.network
        self.photos = of.photos
        self.is_flipped = np.isin(np.arange(len(of.photos.pixels)), of.flipped)
        self.device = trainer.strategy.root_device
        self.precision = trainer.precision_plugin

    def problem(self) -> str | None:
        """Return why the network has no head that can be run alone; None: it may have one."""
        backbone: Any = self.network.backbone
        needed = ("forward_features", "forward_head", "get_classifier")
        if lacking := [name for name in needed if not hasattr(backbone, name)]:
            return f"it has no {lacking[0]}()"
        head = backbone.get_classifier()
        trained = {id(parameter) for parameter in backbone.parameters() if parameter.requires_grad}
        if not isinstance(head, nn.Module) or {id(parameter) for parameter in head.parameters()} != trained:
            return "more is trained than its classifier"
        if list(head.buffers()):  # looking at its outputs as in training would change them
            return "its classifier keeps statistics"
        return None

    def rows(self, rows: range) -> tuple[npt.NDArray[np.float32], dict[int, str]]:
        """Compute rows of the pack, and say which are useless."""
        numbers = np.arange(rows.start, rows.stop)
        plain = self.compute(numbers, flip=False)
        features = np.zeros((len(rows), 2 if self.is_flipped.any() else 1, plain.shape[1]), dtype=np.float32)
        features[:, 0] = plain.numpy()
        wanted = self.is_flipped[numbers]
        if wanted.any():
            features[wanted, 1] = self.compute(numbers[wanted], flip=True).numpy()
        return features, {row: reason for row, reason in self.photos.bad.items() if row in rows}

    def compute(self, rows: npt.NDArray[np.int64], *, flip: bool) -> Tensor:
        """Return features (len(rows), num_features) float32 on the CPU.

        Raises:
            DivergedError: some are not finite.
        """
        # These contexts are a thread's own, so each call enters them.
        with torch.inference_mode(), self.precision.forward_context(), _in_eval(self.network):
            step = CPU_BATCH_SIZE if self.device.type == "cpu" else len(rows)
            parts = [self._pixels(rows[first : first + step], flip=flip) for first in range(0, len(rows), step)]
            found = torch.cat([self.network.features(pixels).float().cpu() for pixels in parts])
        if not found.isfinite().all():
            raise DivergedError(
                "features of the frozen backbone are not finite: its weights are of no use; take others"
            )
        return found

    def outputs(self, rows: npt.NDArray[np.int64]) -> Tensor:
        """Return outputs (len(rows), num_outputs) as in a training step, on the device."""
        with torch.inference_mode(), self.precision.forward_context(), _as_trained(self.network):
            return self.network.forward(self._pixels(rows, flip=False)).float()  # never compiled

    def difference(self, features: Tensor, outputs: Tensor) -> float:
        """Return how far the head's outputs of features are from given ones, as a share of the largest of these."""
        with torch.inference_mode(), self.precision.forward_context(), _as_trained(self.network):
            found = self.network.outputs(features.to(self.device)).float()
        return float((found - outputs).abs().max() / outputs.abs().max())

    def _pixels(self, rows: npt.NDArray[np.int64], *, flip: bool) -> Tensor:
        pixels = torch.from_numpy(np.take(self.photos.pixels, rows, axis=0)).permute(0, 3, 1, 2).to(self.device)
        return pixels.flip(3) if flip else pixels


@contextmanager
def _in_eval(network: nn.Module) -> Iterator[None]:
    """Put all of a network into eval mode, and back."""
    modes = {module: module.training for module in network.modules()}
    network.eval()
    try:
        yield
    finally:
        for module, is_training in modes.items():
            module.training = is_training


@contextmanager
def _as_trained(network: nn.Module) -> Iterator[None]:
    """Put a network into the modes of a training step, and back."""
    with _in_eval(network):
        network.train()
        frozen_to_eval(network)
        yield


def _digest_of_weights(backbone: nn.Module) -> str:
    """Return a SHA-256 over names, types, shapes and values of all tensors outside the head."""
    digest = hashlib.sha256()
    head = tuple(f"{name}." for name in head_names(backbone))
    for name, tensor in sorted(backbone.state_dict().items()):
        if not name.startswith(head):
            values = tensor.detach().cpu().contiguous()
            digest.update(f"{name} {values.dtype} {tuple(values.shape)} ".encode())
            digest.update(values.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _digest_of_code(backbone: nn.Module) -> str:
    """Return a SHA-256 over the file that a backbone's class is from."""
    return hashlib.sha256(Path(inspect.getfile(type(backbone))).read_bytes()).hexdigest()
