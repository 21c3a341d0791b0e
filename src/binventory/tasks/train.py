"""Train one model: fit, take the best epoch, test once, write the run folder."""

from __future__ import annotations

import json
import logging
import math
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from hydra.utils import instantiate
from pytorch_lightning.callbacks import Callback, EarlyStopping, ModelCheckpoint

from binventory.callbacks.metrics_csv import MetricsCsv
from binventory.callbacks.progress import ProgressReport
from binventory.callbacks.stopping import StopBetweenSteps
from binventory.config.schema import TrainConfig
from binventory.data.datamodule import BinDataModule, make_preprocessing
from binventory.data.prepare import PreparedBins, prepare_bins
from binventory.data.preprocess import Preprocessing
from binventory.errors import ConfigError
from binventory.files import write_json
from binventory.models.backbones import freeze, make_backbone
from binventory.models.module import CHECKPOINT_KEY, BinCounter
from binventory.models.network import BinNetwork
from binventory.objectives import make_objective, num_outputs
from binventory.reports.table import print_results
from binventory.serving.bundle import describe, load_bundle, save_bundle
from binventory.tasks.predictions import write_predictions
from binventory.tracking.loggers import finish_loggers, make_loggers

log = logging.getLogger(__name__)

# Of these, more is better; of every other metric, less.
MAXIMIZED = ("accuracy", "within_one")


def run(config: TrainConfig, run_dir: Path) -> float | None:
    """Train as the config says.

    Args:
        config: a checked config.
        run_dir: the run folder; rank 0 writes it.

    Returns:
        `objective_metric` at the best epoch; None when there is none.
    """
    quiet_lightning()
    # Before anything else: a wrong name or an unreachable hub shall not cost a download of all photos first.
    pl.seed_everything(config.seed, workers=True, verbose=False)
    weights = config.model.weights if config.init_from is None else "none"
    backbone = make_backbone(config.model.name, weights, num_outputs(config.objective, list(config.data.counts)))
    prepared = prepare_bins(config.data, config.s3, config.paths)
    if int(os.environ.get("RANK", "0")) == 0:
        print(*prepared.summary.lines(), sep="\n", flush=True)
    preprocessing = make_preprocessing(config.data, prepared)
    module = make_module(config, backbone, preprocessing)
    data = BinDataModule(
        config.data, prepared, preprocessing, seed=config.seed, overfit_batches=config.trainer.overfit_batches
    )
    progress = ProgressReport(config.callbacks.progress.every_n_steps)
    has_val = config.objective_metric is not None
    callbacks = [progress, *make_callbacks(config, run_dir, has_val=has_val)]
    trainer = make_trainer(config, run_dir, callbacks, data)
    _add_data_facts(trainer, run_dir, prepared)

    with ending_together(trainer):
        trainer.fit(module, datamodule=data)
        best = _load_chosen(module, run_dir, has_val=has_val)
        trainer.test(module, datamodule=data, verbose=False)
        figures = {
            "val": best["val"],
            "test": module.last_test,
            "epochs": trainer.current_epoch,
            "best_epoch": best["epoch"],
            "train_seconds": round(progress.train_seconds, 3),
            "images_per_second": round(progress.images_per_second, 3),
        }
        rows = _gather(module.test_rows)
        if trainer.is_global_zero:
            save_bundle(run_dir / "bundle", module.network, module.description)
            write_predictions(run_dir, data.bins("test"), rows, list(config.data.counts))
            write_json(run_dir / "metrics.json", figures)
    if trainer.is_global_zero:
        print_results(figures, run_dir)
    return _objective(figures, config.objective_metric)


@contextmanager
def ending_together(trainer: pl.Trainer) -> Iterator[None]:
    """Close the loggers with what came of the run; ranks leave when all are through.

    A rank that leaves while its process group is open is aborted by gloo's threads now and then.
    """
    done = False
    try:
        yield
        done = True
    finally:
        finish_loggers(trainer.loggers, failed=not done)
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            if done:
                torch.distributed.barrier()
            torch.distributed.destroy_process_group()


def quiet_lightning() -> None:
    """Keep out of the user's terminal what is no news: Lightning's tips, and two warnings that don't apply."""
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    # torch renamed what Lightning uses.
    warnings.filterwarnings(
        "ignore", message=r"`isinstance\(treespec, LeafSpec\)` is deprecated", category=FutureWarning
    )
    # The figures that we log are summed over ranks by torchmetrics already.
    warnings.filterwarnings("ignore", message=r"It is recommended to use `self\.log\(.*sync_dist=True")


def make_module(config: TrainConfig, backbone: torch.nn.Module, preprocessing: Preprocessing) -> BinCounter:
    """Put the network, its objective and its optimization together."""
    counts = list(config.data.counts)
    freeze(backbone, config.model.finetune)
    network = BinNetwork(backbone, preprocessing, channels_last=config.model.channels_last)
    if config.init_from is not None:
        network.load_state_dict(_weights_of(config, config.init_from))
    if config.trainer.compile:
        network.compile()  # in place: the names in the state dict stay
    return BinCounter(
        network,
        make_objective(config.objective, counts),
        counts,
        instantiate(config.optimizer, _partial_=True, _convert_="all"),
        instantiate(config.scheduler, _partial_=True, _convert_="all"),
        config.seed,
        describe(config, preprocessing),
    )


def _weights_of(config: TrainConfig, init_from: str) -> dict[str, torch.Tensor]:
    """Return the weights of another run of the same network."""
    start = load_bundle(Path(init_from))
    for key, found, wanted in (
        ("model.name", start.description["model"]["name"], config.model.name),
        ("data.counts", start.counts, list(config.data.counts)),
        ("objective", start.description["objective"]["_target_"], config.objective["_target_"]),
    ):
        if found != wanted:
            raise ConfigError(
                f"init_from={init_from}: that run has {key}={found}, this one {key}={wanted}; make them equal"
            )
    return start.network.state_dict()


def make_callbacks(config: TrainConfig, run_dir: Path, *, has_val: bool) -> list[Callback]:
    """Return the callbacks of a run but for its progress."""
    checkpoints = partial(ModelCheckpoint, dirpath=run_dir / "checkpoints", enable_version_counter=False)
    callbacks: list[Callback] = [StopBetweenSteps(), MetricsCsv(run_dir / "metrics.csv")]
    if config.callbacks.checkpoint.save_last or not has_val:
        callbacks.append(checkpoints(filename="last"))
    if config.objective_metric is not None:
        mode = direction(config.objective_metric)
        callbacks.append(checkpoints(filename="best", monitor=config.objective_metric, mode=mode))
        stopping = config.callbacks.early_stopping
        if stopping.patience_epochs is not None:
            patience, min_delta = stopping.patience_epochs, stopping.min_delta
            callbacks.append(EarlyStopping(config.objective_metric, min_delta, patience, mode=mode))
    return callbacks


def direction(metric: str) -> str:
    """Return max or min: which way a metric is better."""
    return "max" if metric.rsplit("/", maxsplit=1)[-1] in MAXIMIZED else "min"


def make_trainer(config: TrainConfig, run_dir: Path, callbacks: list[Callback], data: BinDataModule) -> pl.Trainer:
    """Build the Lightning Trainer that a config asks for."""
    asked = config.trainer
    return pl.Trainer(
        max_epochs=asked.max_epochs,
        accelerator=asked.accelerator,
        devices=asked.devices,
        num_nodes=asked.num_nodes,
        strategy=asked.strategy,
        precision=choose_precision(asked.precision, asked.accelerator),  # type: ignore[arg-type]
        accumulate_grad_batches=asked.accumulate_grad_batches,
        gradient_clip_val=asked.gradient_clip_val,
        sync_batchnorm=asked.sync_batchnorm,
        deterministic=asked.deterministic,
        limit_train_batches=_batches(asked.limit_train_batches, data, "train"),
        limit_val_batches=_batches(asked.limit_val_batches, data, "val"),
        limit_test_batches=_batches(asked.limit_test_batches, data, "test"),
        log_every_n_steps=asked.log_every_n_steps,
        profiler=_profiler(asked.profiler, run_dir),
        default_root_dir=run_dir,
        logger=make_loggers(config, run_dir),
        callbacks=callbacks,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,  # our own sampler shares out global batches
        enable_progress_bar=False,  # our own callback says where the run is
        enable_model_summary=False,
    )


def choose_precision(precision: str, accelerator: str) -> str:
    """Return the precision that `auto` stands for on this machine: bf16-mixed on a GPU that has it, else 32-true."""
    if precision != "auto":
        return precision
    on_gpu = accelerator != "cpu" and torch.cuda.is_available()
    return "bf16-mixed" if on_gpu and torch.cuda.is_bf16_supported(including_emulation=False) else "32-true"


def _batches(limit: float | None, data: BinDataModule, split: str) -> int | None:
    """Turn a share into a number of batches, at least one: Lightning refuses a share that comes to less."""
    if limit is None:
        return None
    num_batches = math.ceil(len(data.bins(split).ids) / data.data.batch_size)
    return int(limit) if limit >= 1 else max(1, int(limit * num_batches))


def _profiler(name: str | None, run_dir: Path) -> Any:
    from pytorch_lightning.profilers import AdvancedProfiler, SimpleProfiler

    kinds = {"simple": SimpleProfiler, "advanced": AdvancedProfiler}
    return None if name is None else kinds[name](dirpath=run_dir, filename="profile")


def _add_data_facts(trainer: pl.Trainer, run_dir: Path, prepared: PreparedBins) -> None:
    """Add to provenance.json what only the task knows: the data's fingerprint and the devices."""
    path = run_dir / "provenance.json"
    if not trainer.is_global_zero or not path.exists():
        return
    facts = json.loads(path.read_text())
    facts["data"] = {"fingerprint": prepared.fingerprint, "index": str(prepared.index_path)}
    facts["device"] = {
        "accelerator": type(trainer.accelerator).__name__,
        "devices": trainer.num_devices,
        "precision": trainer.precision,
        "names": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
    }
    write_json(path, facts)


def _load_chosen(module: BinCounter, run_dir: Path, *, has_val: bool) -> dict[str, Any]:
    """Load the weights of the best epoch (without a validation split: of the last) and return what they reached."""
    path = run_dir / "checkpoints" / ("best.ckpt" if has_val else "last.ckpt")
    checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    module.load_state_dict(checkpoint["state_dict"])
    return {"epoch": int(checkpoint["epoch"]) + 1, "val": checkpoint[CHECKPOINT_KEY]["val"]}


def _gather(rows: list[tuple[torch.Tensor, torch.Tensor]]) -> dict[int, list[float]]:
    """Return probabilities by position in the test split, from all ranks."""
    mine = {
        position: values
        for index, probabilities in rows
        for position, values in zip(index.tolist(), probabilities.tolist(), strict=True)
    }
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return mine
    parts: list[dict[int, list[float]] | None] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(parts, mine)
    return {position: values for part in parts if part is not None for position, values in part.items()}


def _objective(figures: dict[str, Any], metric: str | None) -> float | None:
    if metric is None:
        return None
    split, _, name = metric.partition("/")
    value = figures[split][name]
    return None if value is None else float(value)
