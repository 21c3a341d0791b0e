"""Train one model: fit, take the best epoch, test once, write the run folder."""

from __future__ import annotations

import json
import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from hydra.utils import instantiate

from binventory.callbacks.checkpoint_file import BEST, LAST, find_checkpoint, read_checkpoint
from binventory.callbacks.progress import ProgressReport
from binventory.config.schema import TrainConfig
from binventory.data.cache.photos import open_photos
from binventory.data.cache.staging import StagedPhotos
from binventory.data.datamodule import BinDataModule, make_preprocessing
from binventory.data.prepare import PreparedBins, prepare_bins
from binventory.data.preprocess import Preprocessing
from binventory.distributed import all_gather_objects, from_rank_0, is_distributed
from binventory.errors import ConfigError
from binventory.files import read_limited, write_json
from binventory.launch.runner import Pruned, global_rank
from binventory.models.backbones import freeze, make_backbone
from binventory.models.finite import ADVICE, DivergedError, find_not_finite
from binventory.models.module import CHECKPOINT_KEY, BinCounter
from binventory.models.network import BinNetwork
from binventory.models.stages import describe_trained
from binventory.objectives import make_objective, num_outputs
from binventory.reports.table import print_results
from binventory.serving.bundle import describe, load_bundle, save_bundle
from binventory.tasks.features import make_features
from binventory.tasks.predictions import write_predictions
from binventory.tasks.training import make_callbacks, make_checkpoints, make_trainer
from binventory.tracking.loggers import finish_loggers, log_provenance, log_results

log = logging.getLogger(__name__)


def run(config: TrainConfig, run_dir: Path) -> float | None:
    """Train as the config says.

    Args:
        config: a checked config.
        run_dir: the run folder; rank 0 writes it.

    Returns:
        `objective_metric` at the best epoch; None when there is none.
    """
    quiet_lightning()
    checkpoint = None if config.resume is None else find_checkpoint(run_dir / "checkpoints")
    # Before anything else: a wrong name or an unreachable hub shall not cost a download of all photos first.
    pl.seed_everything(config.seed, workers=True, verbose=False)
    weights = config.model.weights if config.init_from is None and checkpoint is None else "none"
    backbone = make_backbone(config.model.name, weights, num_outputs(config.objective, list(config.data.counts)))
    staged = StagedPhotos.of(config.data, config.paths) if config.data.cache else None
    prepared = prepare_bins(config.data, config.s3, config.paths, staged)
    if global_rank() == 0:
        print(*prepared.summary.lines(), sep="\n", flush=True)
    preprocessing = make_preprocessing(config.data, prepared)
    module = make_module(config, backbone, preprocessing, is_resumed=checkpoint is not None)
    if global_rank() == 0 and config.model.finetune != "full":
        print(describe_trained(backbone), flush=True)
    photos = open_photos(config.data, config.paths, prepared, preprocessing, staged) if config.data.cache else None
    data = BinDataModule(
        config.data,
        prepared,
        preprocessing,
        seed=config.seed,
        overfit_batches=config.trainer.overfit_batches,
        photos=photos,
        features=make_features(config, module.network, preprocessing, photos),
    )
    progress = ProgressReport(config.callbacks.progress.every_n_steps)
    checkpoints = make_checkpoints(config, run_dir, prepared.fingerprint, checkpoint)
    callbacks = make_callbacks(config, progress, run_dir, checkpoints)
    trainer = make_trainer(config, module.network, run_dir, callbacks, checkpoints, data, checkpoint)
    with ending_together(trainer):
        _add_data_facts(trainer, run_dir, prepared)
        trainer.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=True)
        chosen = _load_chosen(module, run_dir, LAST if config.objective_metric is None else BEST)
        trainer.test(module, datamodule=data, verbose=False)
        figures = {
            "val": chosen["val"],
            "test": module.last_test,
            "epochs": trainer.current_epoch,
            "best_epoch": chosen["position"]["epoch"],
            "train_seconds": round(progress.train_seconds, 3),
            "images_per_second": round(progress.images_per_second, 3),
        }
        rows = {place: row for part in all_gather_objects(_by_place(module)) for place, row in part.items()}
        if trainer.is_global_zero:
            predictions = write_predictions(run_dir, data.bins("test"), rows, list(config.data.counts))
        if module.test_problem is not None:
            raise DivergedError(f"{module.test_problem}, see predictions.csv: {ADVICE}")
        if trainer.is_global_zero:
            save_bundle(run_dir / "bundle", module.network, module.description)
            write_json(run_dir / "metrics.json", figures)
            log_results(
                trainer.loggers, figures, predictions, data.bins("test").paths, preprocessing, trainer.global_step
            )
    if trainer.is_global_zero:
        print_results(figures, run_dir)
    return _objective(figures, config.objective_metric)


@contextmanager
def ending_together(trainer: pl.Trainer) -> Iterator[None]:
    """Close the loggers with what came of the run; ranks leave when all are through.

    A rank that leaves while its process group is open is aborted by gloo's threads now and then.
    """
    error: BaseException | None = None
    try:
        yield
    except BaseException as raised:
        error = raised
        raise
    finally:
        finish_loggers(trainer.loggers, error)
        if is_distributed():
            if error is None or isinstance(error, Pruned):
                torch.distributed.barrier()
            torch.distributed.destroy_process_group()


def quiet_lightning() -> None:
    """Keep out of the user's terminal what is no news: Lightning's tips, and two warnings that don't apply."""
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    # torch renamed what Lightning uses.
    warnings.filterwarnings(
        "ignore", message=r"`isinstance\(treespec, LeafSpec\)` is deprecated", category=FutureWarning
    )
    # Steps are logged by their number in the run: `StepFigures`.
    warnings.filterwarnings("ignore", message=r"The number of training batches .* is smaller than the logging interval")
    # The figures that we log are summed over ranks by torchmetrics already.
    warnings.filterwarnings("ignore", message=r"It is recommended to use `self\.log\(.*sync_dist=True")


def make_module(
    config: TrainConfig, backbone: torch.nn.Module, preprocessing: Preprocessing, *, is_resumed: bool
) -> BinCounter:
    """Put the network, its objective and its optimization together."""
    counts = list(config.data.counts)
    freeze(backbone, config.model.finetune)
    network = BinNetwork(backbone, preprocessing, channels_last=config.model.channels_last)
    if config.init_from is not None and not is_resumed:
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
        config.objective_metric,
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


def _add_data_facts(trainer: pl.Trainer, run_dir: Path, prepared: PreparedBins) -> None:
    """Add to provenance.json what only the task knows, the data's fingerprint and the devices; then W&B gets it."""
    path = run_dir / "provenance.json"
    if not trainer.is_global_zero or not path.exists():
        return
    facts = json.loads(read_limited(path))
    _warn_of_another_precision(facts.get("earlier_attempts", []), trainer.precision)
    facts["data"] = {"fingerprint": prepared.fingerprint, "index": str(prepared.index_path)}
    facts["device"] = {
        "accelerator": type(trainer.accelerator).__name__,
        "devices": trainer.num_devices,
        "precision": trainer.precision,
        "names": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
    }
    write_json(path, facts)
    log_provenance(trainer.loggers, run_dir)


def _warn_of_another_precision(earlier_attempts: list[dict[str, Any]], precision: str) -> None:
    """Say so if `trainer.precision=auto` stands for something else on this machine than on the last one."""
    before = [attempt["device"]["precision"] for attempt in earlier_attempts if "device" in attempt]
    if before and before[-1] != precision:
        print(f"warning: this run was trained in {before[-1]}, and goes on in {precision}", file=sys.stderr, flush=True)


def _load_chosen(module: BinCounter, run_dir: Path, name: str) -> dict[str, Any]:
    """Load the weights of the best epoch (where nothing chooses: of the last) and return what is known of them."""
    # Rank 0 wrote the file; another machine has none.
    checkpoint = from_rank_0(lambda: read_checkpoint(run_dir / "checkpoints" / name))
    if weights := find_not_finite(checkpoint["state_dict"]):
        raise DivergedError(f"checkpoints/{name}: {weights} holds NaN or infinity: {ADVICE}")
    module.load_state_dict(checkpoint["state_dict"])
    chosen: dict[str, Any] = checkpoint[CHECKPOINT_KEY]
    return chosen


def _by_place(module: BinCounter) -> dict[int, list[float]]:
    """Return this rank's probabilities by position in the test split."""
    assert module.test_rows is not None
    position, probabilities = module.test_rows
    return dict(zip(position.tolist(), probabilities.tolist(), strict=True))


def _objective(figures: dict[str, Any], metric: str | None) -> float | None:
    if metric is None:
        return None
    split, _, name = metric.partition("/")
    value = figures[split][name]
    return None if value is None else float(value)
