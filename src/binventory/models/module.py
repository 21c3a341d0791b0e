"""The LightningModule: network, objective, optimizer and metrics of one run."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau
from torchmetrics import MeanMetric

from binventory.data.loader import PADDING, Batch
from binventory.distributed import all_gather_objects
from binventory.metrics.counting import CountingMetrics
from binventory.models.backbones import frozen_to_eval
from binventory.models.finite import ADVICE, DivergedError, finite_probabilities
from binventory.models.network import BinNetwork
from binventory.models.optimization import make_optimizer, make_schedule, require_length

CHECKPOINT_KEY = "binventory"


def seed_generators(seed: int, device: torch.device) -> None:
    """Do what `torch.manual_seed` does, for the two generators that a step draws from.

    On a machine without accelerators that function takes 0.3 ms: it writes down a traceback for each kind it lacks.
    """
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.default_generators[device.index or 0].manual_seed(seed)


class BinCounter(pl.LightningModule):
    """Trains a network to count.

    Args:
        network: uint8 pixels, or features of a frozen backbone, to outputs.
        objective: see `binventory.objectives`.
        counts: the quantities that are classes.
        optimizer: called with the trained parameters.
        scheduler: called with the optimizer and, where it takes them, with the length of the run; see `make_schedule`.
        seed: with (global step, rank) it decides every random draw of the network.
        description: plain values that travel in every checkpoint: model, objective, preprocessing, counts.
        objective_metric: what a schedule goes by that goes by a metric.
    """

    def __init__(
        self,
        network: BinNetwork,
        objective: nn.Module,
        counts: Sequence[int],
        optimizer: Callable[..., Optimizer],
        scheduler: Callable[..., LRScheduler],
        seed: int,
        description: dict[str, Any],
        objective_metric: str | None = None,
    ) -> None:
        super().__init__()
        self.network = network
        self.objective: Any = objective
        self.make_optimizer = optimizer
        self.make_scheduler = scheduler
        self.seed = seed
        self.description = description
        self.objective_metric = objective_metric
        self.train_loss = MeanMetric(nan_strategy="disable")  # a NaN in the epoch is a NaN of the epoch
        self.train_accuracy = MeanMetric(nan_strategy="disable")  # any other strategy looks at each value
        self.eval_metrics = CountingMetrics(counts)
        self.last_val: dict[str, Any] | None = None
        self.last_test: dict[str, Any] | None = None  # None too where they would not be finite
        self.test_problem: str | None = None  # why they would not be
        self.test_rows: tuple[Tensor, Tensor] | None = None  # position (N,) and probabilities (N, C)
        self._evaluated: list[tuple[Tensor, Tensor, Tensor]] = []  # of this epoch: outputs, target, position

    def forward(self, pixels: Tensor) -> Tensor:
        """Compute probabilities (B, C) over the counts from pixels (B, 3, H, W) uint8."""
        return finite_probabilities(self.objective, self.network(pixels))

    # Training

    def on_train_start(self) -> None:
        """Put frozen parts into eval mode, also where training goes on in the middle of an epoch.

        Raises:
            ConfigError: the schedule, as it was resumed, is shorter than the run is now.
        """
        self.network.train()
        frozen_to_eval(self.network)
        for schedule in self.trainer.lr_scheduler_configs:
            require_length(schedule.scheduler, int(self.trainer.estimated_stepping_batches))

    def on_train_epoch_start(self) -> None:
        """Put frozen parts into eval mode. Lightning itself only restores the modes that it found."""
        self.network.train()
        frozen_to_eval(self.network)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Reseed, so that a step's draws depend on (seed, step, rank) and on nothing that ran before."""
        entropy = np.random.SeedSequence([self.seed, self.global_step, self.global_rank])
        seed_generators(int(entropy.generate_state(1, np.uint64)[0] >> 1), self.device)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Compute the loss of a batch."""
        outputs = self.network.outputs(batch.inputs)
        loss: Tensor = self.objective.loss(outputs, batch.target)
        with torch.no_grad():
            outputs = outputs.detach()
            # Infinite outputs may have a finite loss: zero times infinity is NaN, and found at the end of the epoch.
            watched = loss.detach() + (0 * outputs).sum()
            self.train_loss.update(watched.expand(len(batch.target)))  # a weight is not looked at when NaNs count
            predicted = self.objective.probabilities(outputs).argmax(dim=1)
            self.train_accuracy.update((predicted == batch.target).float())
        return loss

    def log_train_figures(self) -> None:
        """Log the epoch's mean loss and accuracy over all ranks; called at its end, before the figures are read."""
        figures = {"train/loss": self.train_loss.compute(), "train/accuracy": self.train_accuracy.compute()}
        if not torch.isfinite(figures["train/loss"]):
            loss = float(figures["train/loss"])
            raise DivergedError(f"train/loss is {loss} in epoch {self.current_epoch + 1}: {ADVICE}")
        # `MetricsCsv` hands them to the loggers: Lightning would do so only after a run that stops here has left.
        self.log_dict(figures, on_step=False, on_epoch=True, logger=False)
        self.train_loss.reset()
        self.train_accuracy.reset()

    # Evaluation

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Keep what the figures need of a batch: nothing is looked at, so nothing waits for the device."""
        self._evaluated.append((self.network.outputs(batch.inputs).float(), batch.target, batch.position))

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Keep what the figures need of a batch."""
        self.validation_step(batch, batch_idx)

    def on_validation_epoch_end(self) -> None:
        """Log the validation figures.

        Raises:
            DivergedError: on all ranks, where those of one are not finite.
        """
        found, _ = self._finish("val")
        if isinstance(found, str):
            raise DivergedError(f"{found} in epoch {self.current_epoch + 1}: {ADVICE}")
        self.last_val = found

    def on_test_epoch_end(self) -> None:
        """Log the test figures and keep the probabilities of each bin; bins without finite ones have NaN."""
        found, self.test_rows = self._finish("test")
        self.last_test, self.test_problem = (None, found) if isinstance(found, str) else (found, None)

    def _finish(self, split: str) -> tuple[dict[str, Any] | str, tuple[Tensor, Tensor]]:
        """Return the figures of the epoch, and position (N,) and probabilities (N, C) of this rank's bins.

        Instead of figures of which one would not be finite there is what is not, the same on all ranks.
        """
        outputs, target, position = (torch.cat(parts) for parts in zip(*self._evaluated, strict=True))
        self._evaluated.clear()
        there = position != PADDING
        outputs, target = outputs[there], target[there]
        probabilities = finite_probabilities(self.objective, outputs)
        loss = self.objective.loss(outputs, target) if len(target) else None
        rows = position[there].cpu(), probabilities.cpu()
        if problem := _find_problem(split, probabilities, loss):
            return problem, rows
        self.eval_metrics.update(probabilities, target, loss)
        figures = self.eval_metrics.compute()
        self.eval_metrics.reset()
        if unknown := [name for name, value in figures.items() if value is None and figures["num_images"]]:
            return f"{split}/{unknown[0]} is not finite", rows
        shown = {f"{split}/{name}": value for name, value in figures.items() if isinstance(value, float)}
        self.log_dict(shown, logger=False)
        return figures, rows

    # Optimization and checkpoints

    def configure_optimizers(self) -> Any:
        """Complete the optimizer with the trained parameters and the schedule with the length of the run."""
        trained = [parameter for parameter in self.network.parameters() if parameter.requires_grad]
        # Lightning refuses to clip there: a fused optimizer may scale gradients back by itself.
        is_refused = self.trainer.gradient_clip_val is not None and self.trainer.precision != "32-true"
        optimizer = make_optimizer(self.make_optimizer, trained, may_fuse=not is_refused)
        max_epochs = self.trainer.max_epochs or 1
        steps_per_epoch = max(1, int(self.trainer.estimated_stepping_batches) // max_epochs)
        schedule = make_schedule(self.make_scheduler, optimizer, steps_per_epoch, max_epochs, self.objective_metric)
        return {"optimizer": optimizer, "lr_scheduler": schedule}

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        """Step a schedule, unless it goes by a metric: Lightning would step that one after the epoch is saved."""
        if not isinstance(scheduler, ReduceLROnPlateau):
            super().lr_scheduler_step(scheduler, metric)

    def step_plateau(self) -> None:
        """Step the schedule that goes by a metric; called at the end of an epoch, before it is saved."""
        for schedule in self.trainer.lr_scheduler_configs:
            if isinstance(schedule.scheduler, ReduceLROnPlateau):
                schedule.scheduler.step(self.trainer.callback_metrics[str(schedule.monitor)].item())

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Put what the weights mean beside them, the last validation figures, and every rank's sums of the epoch.

        Raises:
            DivergedError: on all ranks, where the sums of one are not finite.
        """
        own = checkpoint.setdefault(CHECKPOINT_KEY, {})
        sums = all_gather_objects([[float(metric.mean_value), float(metric.weight)] for metric in self._epoch_means()])
        if not np.isfinite(sums).all():
            raise DivergedError(f"train/loss is not finite in epoch {self.current_epoch + 1}: {ADVICE}")
        own.update(self.description, val=self.last_val, epoch_sums=sums)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the figures up again. Sums are this rank's own: added up in another order they would round otherwise."""
        own = checkpoint[CHECKPOINT_KEY]
        self.last_val = own["val"]
        if len(own["epoch_sums"]) != self.trainer.world_size:
            return  # another number of devices: the epoch starts over
        for metric, (value, weight) in zip(
            self._epoch_means(), own["epoch_sums"][self.trainer.global_rank], strict=True
        ):
            metric.update(0.0, weight=0.0)  # tells the metric that it has seen something
            metric.mean_value, metric.weight = torch.tensor(value), torch.tensor(weight)

    def _epoch_means(self) -> tuple[Any, Any]:
        return self.train_loss, self.train_accuracy


def _find_problem(split: str, probabilities: Tensor, loss: Tensor | None) -> str | None:
    """Return what is not finite on any rank; None: everything is finite."""
    num_bad = int((~probabilities.isfinite().all(dim=1)).sum())
    loss_value = 0.0 if loss is None else float(loss)
    ranks = all_gather_objects((num_bad, len(probabilities), loss_value))
    bad, total = (sum(rank[place] for rank in ranks) for place in (0, 1))
    if bad:
        return f"the outputs of {bad} of {total} {split} photos are not finite"
    return next((f"{split}/loss is {rank[2]}" for rank in ranks if not math.isfinite(rank[2])), None)
