"""What this project is compared with: the source report's recipe for loading, training and validating.

ImageFolder, PIL, transforms for each sample, float32 in NCHW, a DataLoader with a worker for each core, a plain loop.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
import torchvision
from torch import nn
from torch.nn import functional as F
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader

from binventory.data.loader import Bins
from binventory.data.preprocess import IMAGENET_MEAN, IMAGENET_STD

CORES = len(os.sched_getaffinity(0))


def make_tree(bins: Bins, folder: Path) -> Path:
    """Link photos as ImageFolder reads them, `<target>/<name>`; return the folder."""
    shutil.rmtree(folder, ignore_errors=True)
    for path, target in zip(bins.paths, bins.targets, strict=True):
        link = folder / str(target) / Path(path).name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(Path(path).absolute())
    return folder


def make_loader(tree: Path, image_size: int, batch_size: int, *, is_training: bool) -> DataLoader[object]:
    """Return the loader of an ImageFolder tree; for training it shuffles and flips."""
    steps = torchvision.transforms
    recipe = [
        steps.Resize((image_size, image_size)),
        *([steps.RandomHorizontalFlip()] if is_training else []),
        steps.ToTensor(),
        steps.Normalize(IMAGENET_MEAN, IMAGENET_STD),
    ]
    photos = torchvision.datasets.ImageFolder(tree, steps.Compose(recipe))
    return DataLoader(photos, batch_size, shuffle=is_training, num_workers=CORES, persistent_workers=True)


def train(
    network: nn.Module,
    loader: Iterable[list[torch.Tensor]],
    optimizer: Optimizer,
    device: torch.device,
    *,
    epochs: int,
    scheduler: LRScheduler | None = None,
    epoch_ended: Callable[[], bool] = lambda: False,
) -> None:
    """Train with cross-entropy; the mean loss of each epoch is read at its end.

    Args:
        network: float32 NCHW to logits, on the device.
        loader: photos and targets.
        optimizer: of its parameters.
        device: where it is.
        epochs: how often the photos are gone through.
        scheduler: moved after every step.
        epoch_ended: called after each epoch; True ends the training.
    """
    for _ in range(epochs):
        network.train()
        total = torch.zeros((), device=device)
        for photos, targets in loader:
            optimizer.zero_grad()
            loss = F.cross_entropy(network(photos.to(device)), targets.to(device))
            loss.backward()
            optimizer.step()
            if scheduler is not None:
                scheduler.step()
            total += loss.detach()
        total.item()
        if epoch_ended():
            return


def accuracy(network: nn.Module, loader: Iterable[list[torch.Tensor]], device: torch.device) -> float:
    """Return the share of photos whose likeliest count is right."""
    network.eval()
    right = number = 0
    with torch.no_grad():
        for photos, targets in loader:
            right += int((network(photos.to(device)).argmax(dim=1).cpu() == targets).sum())
            number += len(targets)
    return right / number
