"""The Lightning Trainer of a run and its callbacks."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, cast

import pytorch_lightning as pl
import torch
from lightning_fabric.plugins.environments.lightning import LightningEnvironment
from omegaconf import OmegaConf
from pytorch_lightning.callbacks import Callback, EarlyStopping
from torch import nn

from binventory.callbacks.checkpoint_file import read_checkpoint
from binventory.callbacks.checkpoints import Checkpoints
from binventory.callbacks.ema import Ema
from binventory.callbacks.metrics_csv import MetricsCsv
from binventory.callbacks.progress import ProgressReport
from binventory.callbacks.resources import BottleneckReport
from binventory.callbacks.trace import Trace
from binventory.callbacks.train_figures import StepFigures, TrainFigures
from binventory.callbacks.wandb_summary import WandbSummary
from binventory.config.capture import to_plain
from binventory.config.schema import TrainConfig
from binventory.data.datamodule import BinDataModule, limit_batches
from binventory.errors import ConfigError
from binventory.launch.runner import global_rank
from binventory.metrics.direction import direction
from binventory.models.module import CHECKPOINT_KEY
from binventory.tasks.precision import precision_options
from binventory.tracking.loggers import make_loggers
from binventory.tracking.resume import maths_of


def make_callbacks(
    config: TrainConfig, progress: ProgressReport, run_dir: Path, checkpoints: Checkpoints
) -> list[Callback]:
    """Return the callbacks of a run, in the order in which Lightning calls them; those that save come last."""
    epochs = MetricsCsv(run_dir / "metrics.csv")
    callbacks: list[Callback] = [TrainFigures(), progress, epochs, StepFigures(config.trainer.log_every_n_steps)]
    callbacks.append(WandbSummary(epochs, config.objective_metric))
    asked = config.callbacks
    if asked.ema.decay is not None:
        callbacks.append(Ema(asked.ema.decay))
    metric, patience = config.objective_metric, asked.early_stopping.patience_epochs
    if metric is not None and patience is not None:
        callbacks.append(EarlyStopping(metric, asked.early_stopping.min_delta, patience, mode=direction(metric)))
    if asked.trace.num_steps is not None:
        callbacks.append(Trace(run_dir, asked.trace.num_steps))
    if asked.resources.sample_every_s is not None:
        seconds, is_compiled = asked.resources.sample_every_s, config.trainer.compile
        callbacks.append(BottleneckReport(run_dir, seconds, config.data, is_compiled=is_compiled))
    return [*callbacks, checkpoints]


def make_checkpoints(config: TrainConfig, run_dir: Path, data_fingerprint: str, resumed: Path | None) -> Checkpoints:
    """Return the callback that saves.

    Raises:
        ConfigError: the data are not those that the resumed run was trained on.
    """
    facts = {"data": data_fingerprint, "config": maths_of(to_plain(OmegaConf.create(cast(Any, config))))}
    metric = config.objective_metric
    return Checkpoints(
        run_dir / "checkpoints",
        config.callbacks.checkpoint,
        metric,
        direction(metric or ""),
        facts,
        restart_epoch=resumed is not None and _has_changed(resumed, facts, allowed=config.resume_changed),
    )


def _has_changed(resumed: Path, facts: dict[str, Any], *, allowed: bool) -> bool:
    before = read_checkpoint(resumed)[CHECKPOINT_KEY]
    for name, is_there in (("data", "the photos, their quantities or their split"), ("config", "the config")):
        if before[name] != facts[name] and not allowed:
            raise ConfigError(
                f"resume={resumed.parent.parent}: {is_there} differ from those of {resumed.name}; bring them back, or"
                " add resume_changed=true to go on from the start of its epoch all the same"
            )
    return any(before[name] != facts[name] for name in facts)


def make_trainer(
    config: TrainConfig,
    network: nn.Module,
    run_dir: Path,
    callbacks: list[Callback],
    checkpoints: Checkpoints,
    data: BinDataModule,
    resumed: Path | None,
) -> pl.Trainer:
    """Build the Lightning Trainer that a config asks for, and its loggers."""
    resumed_step = None if resumed is None else read_checkpoint(resumed)["global_step"]
    asked = config.trainer
    num_batches = {
        split: math.ceil(len(data.bins(split).ids) / config.data.batch_size) for split in ("train", "val", "test")
    }
    options = step_options(config, network)
    return pl.Trainer(
        **options | {"plugins": [checkpoints.io, *options["plugins"]]},
        max_epochs=asked.max_epochs,
        devices=asked.devices,
        num_nodes=asked.num_nodes,
        strategy=asked.strategy,
        sync_batchnorm=asked.sync_batchnorm,
        limit_train_batches=limit_batches(asked.limit_train_batches, num_batches["train"]),
        limit_val_batches=limit_batches(asked.limit_val_batches, num_batches["val"]),
        limit_test_batches=limit_batches(asked.limit_test_batches, num_batches["test"]),
        log_every_n_steps=asked.log_every_n_steps,
        profiler=_profiler(asked.profiler, run_dir),
        default_root_dir=checkpoints.folder,  # under Slurm, Lightning takes its own hpc_ckpt_*.ckpt from this folder
        logger=make_loggers(config, run_dir, resumed_step),
        callbacks=callbacks,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,  # our own sampler shares out global batches
        enable_progress_bar=False,  # our own callback says where the run is
        enable_model_summary=False,
    )


def step_options(config: TrainConfig, network: nn.Module) -> dict[str, Any]:
    """Return what decides how fast a step is, as keywords of Lightning's Trainer; prepare torch for it."""
    # Where algorithms are deterministic torch would write NaN over all new memory: a pass over every activation, 4 % of
    # a ResNet-18's step on a CPU, for operations that read what nobody wrote. There are none here.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    asked, options = config.trainer, precision_options(config, network)
    # Named, Lightning looks for no cluster: whatever Slurm, LSF, MPI or torchrun say, `run_ranks` alone makes ranks.
    environment = LightningEnvironment()
    environment.set_global_rank(global_rank())  # with one device Lightning would leave it at what SLURM_PROCID says
    return {
        **options,
        "plugins": [environment, *options["plugins"]],
        "accelerator": asked.accelerator,
        "accumulate_grad_batches": asked.accumulate_grad_batches,
        "gradient_clip_val": asked.gradient_clip_val,
        "deterministic": asked.deterministic,
        "benchmark": not asked.deterministic,  # cuDNN tries its algorithms once for each shape and keeps the fastest
    }


def _profiler(name: str | None, run_dir: Path) -> Any:
    from pytorch_lightning.profilers import AdvancedProfiler, SimpleProfiler

    kinds = {"simple": SimpleProfiler, "advanced": AdvancedProfiler}
    return None if name is None else kinds[name](dirpath=run_dir, filename="profile")
