"""Whether a run caches the features of its frozen backbone."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import numpy as np

from binventory.config.schema import TrainConfig
from binventory.data.augment import continuous_augmentations
from binventory.data.cache.photos import PackedPhotos
from binventory.data.datamodule import limit_batches
from binventory.data.preprocess import Preprocessing
from binventory.launch.runner import global_rank
from binventory.models.features import FrozenFeatures
from binventory.models.network import BinNetwork
from binventory.tasks.precision import runs_on_gpu


def make_features(
    config: TrainConfig, network: BinNetwork, preprocessing: Preprocessing, photos: PackedPhotos | None
) -> FrozenFeatures | None:
    """Return where a run gets the features of its photos from; None: it computes the whole network every time.

    That is so unless the head alone is trained and photos are cached. Where the config asks for features and they can
    or should not be cached all the same, one line says why.
    """
    if photos is None or config.model.finetune != "head" or not config.model.cache_features:
        return None
    flipped = np.unique(photos.rows["train"]) if config.data.hflip > 0 else np.array([], dtype=np.int64)
    reason = _why_not(config, photos, num_rows=len(photos.pixels) + len(flipped))
    if reason is not None:
        if global_rank() == 0:
            print(f"frozen features are not cached: {reason}", file=sys.stderr, flush=True)
        return None
    return FrozenFeatures(network, config.model.name, preprocessing, photos, flipped, Path(config.paths.cache_dir))


def _why_not(config: TrainConfig, photos: PackedPhotos, *, num_rows: int) -> str | None:
    if amounts := continuous_augmentations(config.data):
        said = ", ".join(f"data.{name}={amount}" for name, amount in amounts.items())
        return f"{said}: a photo has no end of augmented forms"
    if config.trainer.precision == "bf16-mixed" and not runs_on_gpu(config):
        return "trainer.precision=bf16-mixed: a CPU trains in bfloat16, validates in float32; take 32-true for features"
    # By the config alone, not by what is cached already: a resumed run must decide alike.
    if (num_seen := _num_seen(config, photos)) < num_rows:
        return f"this run looks at {num_seen:,} photos, and features of {num_rows:,} would have to be computed first"
    return None


def _num_seen(config: TrainConfig, photos: PackedPhotos) -> int:
    """Return how many photos a run looks at, each as often as it does."""
    asked, batch_size = config.trainer, config.data.batch_size

    def num_seen(split: str, limit: float | None) -> int:
        num_bins = len(photos.rows.get(split, ()))
        num_batches = limit_batches(limit, math.ceil(num_bins / batch_size))
        return num_bins if num_batches is None else min(num_bins, num_batches * batch_size)

    if asked.overfit_batches is not None:
        of_epoch = 2 * num_seen("train", asked.overfit_batches)
    else:
        of_epoch = num_seen("train", asked.limit_train_batches) + num_seen("val", asked.limit_val_batches)
    return asked.max_epochs * of_epoch + num_seen("test", asked.limit_test_batches)
