"""When a run saves, when it stops, and where it goes on."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Checkpoint

from binventory.callbacks.checkpoint_file import (
    BEST,
    LAST,
    PREVIOUS,
    VerifiedCheckpointIO,
    copy_checkpoint,
    find_useless,
    read_checkpoint,
    weights_in,
)
from binventory.callbacks.loop_position import Position, fit_loop_state
from binventory.callbacks.stopping import StopRequest
from binventory.config.schema import CheckpointConfig
from binventory.distributed import all_gather_objects
from binventory.launch.runner import Interrupted, Pruned, ignore_signals
from binventory.models.finite import ADVICE, DivergedError, find_not_finite
from binventory.models.module import CHECKPOINT_KEY
from binventory.tracking.run_folder import PRUNE_REQUEST

log = logging.getLogger(__name__)

LOOK_S = 0.1  # between two looks for a file that asks for pruning


class Best(NamedTuple):
    """The best epoch so far, counted from 1, and what it reached."""

    value: float
    epoch: int


class Checkpoints(Checkpoint):
    """Writes last.ckpt and best.ckpt between optimizer steps, and leaves between steps when a signal came.

    There are three points where a run may save: after an optimizer step (never inside an accumulation window), after
    the last step of an epoch before its validation (only when the run stops there), and at the end of an epoch. All
    ranks decide there together.

    Args:
        folder: `checkpoints` of the run folder.
        every: when to save besides the end of training and a stop.
        monitor: the metric that best.ckpt goes by; None: no best.ckpt.
        mode: max or min: which way the metric is better.
        facts: plain values that travel in every checkpoint under `binventory`.
        restart_epoch: go on from the start of the epoch that a checkpoint lies in.
    """

    def __init__(
        self,
        folder: Path,
        every: CheckpointConfig,
        monitor: str | None,
        mode: str,
        facts: dict[str, Any],
        *,
        restart_epoch: bool = False,
    ) -> None:
        self.folder = folder
        self.every = every
        self.monitor = monitor
        self.mode = mode
        self.facts = facts
        self.restart_epoch = restart_epoch
        self.io = VerifiedCheckpointIO()
        self.best: Best | None = None
        self._stop = StopRequest()
        self._position: Position | None = None  # what the next save stands for
        self._resumed: Position | None = None
        self._saved_at = 0.0
        self._saved_step = 0
        self._is_due = False
        self._prune_asked = False
        self._looked_at = 0.0

    # When

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take the signals, and go on in the middle of an epoch where the checkpoint lies there."""
        self._stop.listen()
        self._saved_at, self._saved_step = time.monotonic(), trainer.global_step
        if self._resumed is None:
            return
        if self._resumed.batches == 0:
            # Between two epochs Lightning's loops need not know that they were restarted.
            trainer.fit_loop.restarting = False
            trainer.fit_loop.epoch_loop.reset_restart_stage()
        elif self._resumed.batches < self._resumed.num_batches or not trainer.enable_validation:
            # Lightning itself forgets this where the schedule asked for the length of an epoch before.
            loader: Any = trainer.train_dataloader
            loader.load_state_dict({"batches": self._resumed.batches})

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save and leave where that is asked for, if no accumulation window is open."""
        is_last = trainer.is_last_batch
        if not is_last and (batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        now = time.monotonic()
        # Validation, which comes after the last batch, is no time to wait.
        ask = self._stop.agree if is_last else self._stop.poll
        is_late, signum, is_pruned = ask(self._is_time_due(now), self._stop.signum, self._is_prune_asked(trainer, now))
        is_due = bool(is_late) or self._is_step_due(trainer)
        if is_last and not signum:
            self._is_due = is_due  # the end of the epoch is a few moments away
        elif is_due or signum:
            num_batches = int(trainer.num_training_batches)
            self._save(trainer, Position(trainer.current_epoch, batch_idx + 1, num_batches, trainer.global_step))
        if signum:
            self._leave(signum)
        if is_pruned:
            _require_finite(trainer, pl_module.state_dict())
            raise Pruned

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save what is due, keep the best, and leave if a signal came."""
        epoch = trainer.current_epoch + 1
        is_end = trainer.should_stop or epoch == trainer.max_epochs
        is_best = self._is_best(trainer)
        every = self.every.every_n_epochs
        is_due = self._is_due or is_end or is_best or (every is not None and epoch % every == 0)
        (signum,) = self._stop.agree(self._stop.signum)
        if is_due or signum:
            num_batches = int(trainer.num_training_batches)
            self._save(trainer, Position(epoch, 0, num_batches, trainer.global_step, trainer.should_stop))
        if is_best and trainer.is_global_zero:
            copy_checkpoint(self.folder / LAST, self.folder / BEST)
        if signum:
            self._leave(signum)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Give the signals back; one that came after the last look still counts."""
        (signum,) = self._stop.agree(self._stop.signum)
        self._stop.restore()
        if signum:
            self._leave(signum)

    def _leave(self, signum: int) -> NoReturn:
        ignore_signals()
        raise Interrupted(signum)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Give the signals back."""
        self._stop.restore()

    def _is_step_due(self, trainer: pl.Trainer) -> bool:
        """The same on all ranks."""
        steps = self.every.every_n_steps
        return steps is not None and trainer.global_step - self._saved_step >= steps

    def _is_time_due(self, now: float) -> int:
        """Clocks differ between ranks; the largest of their answers counts."""
        minutes = self.every.every_n_minutes
        return int(minutes is not None and now - self._saved_at >= 60 * minutes)

    def _is_prune_asked(self, trainer: pl.Trainer, now: float) -> int:
        """Looked up ten times a second and once an epoch: on a network file system that is no small thing."""
        is_time = trainer.is_last_batch or now - self._looked_at >= LOOK_S
        if trainer.is_global_zero and not self._prune_asked and is_time:
            self._looked_at = now
            self._prune_asked = (self.folder.parent / PRUNE_REQUEST).exists()
        return int(self._prune_asked)

    def _is_best(self, trainer: pl.Trainer) -> bool:
        if self.monitor is None:
            return False
        value = float(trainer.callback_metrics[self.monitor])
        best = self.best
        is_better = best is None or (value > best.value if self.mode == "max" else value < best.value)
        is_better = is_better and math.isfinite(value)
        if is_better:
            self.best = Best(value, trainer.current_epoch + 1)
        return is_better

    # What

    def _save(self, trainer: pl.Trainer, position: Position) -> None:
        self._position = position
        trainer.save_checkpoint(self.folder / LAST, weights_only=False)
        self._saved_at, self._saved_step, self._is_due = time.monotonic(), trainer.global_step, False
        (failed,) = self._stop.agree(int(self.io.error is not None))
        if failed:
            raise self.io.error or OSError("rank 0 could not write a checkpoint")

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Put in where the run is and what it needs to go on.

        Raises:
            DivergedError: on all ranks, where weights of one are not finite; the checkpoints there are stay.
        """
        assert self._position is not None
        _require_finite(trainer, weights_in(checkpoint))
        checkpoint["loops"]["fit_loop"] = fit_loop_state(trainer, self._position)
        own = checkpoint.setdefault(CHECKPOINT_KEY, {})
        best = None if self.best is None else self.best._asdict()
        own.update(self.facts, position=self._position._asdict(), best=best)

    # Going on

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Take up the position of a checkpoint."""
        own = checkpoint[CHECKPOINT_KEY]
        position = Position(**own["position"])
        if self.restart_epoch:
            position = position._replace(batches=0)
            checkpoint["loops"]["fit_loop"] = fit_loop_state(trainer, position)
        self._resumed = position
        # Lightning clears this flag when fit begins, which was before.
        trainer.should_stop = position.stopped
        if trainer.is_global_zero and Path(str(trainer.ckpt_path)).name == PREVIOUS:
            # The next save keeps what is last.ckpt now as previous.ckpt: that must not be the damaged one.
            copy_checkpoint(self.folder / PREVIOUS, self.folder / LAST)
        if self.monitor is not None and (best := _best_in(checkpoint)) is not None:
            self.best = best
            self._match_best(trainer, position)

    def _match_best(self, trainer: pl.Trainer, position: Position) -> None:
        """Bring best.ckpt and the resumed checkpoint together: a kill or damage may have come between the two files."""
        assert self.best is not None
        path = self.folder / BEST
        if path.exists() and find_useless(path) is None:
            there = _best_in(read_checkpoint(path))
            if there is not None and there.epoch >= self.best.epoch:
                self.best = there  # later where the newest checkpoint was damaged: its epoch is about to be done again
                return
        if position.epoch == self.best.epoch and position.batches == 0:
            if trainer.is_global_zero:
                copy_checkpoint(Path(str(trainer.ckpt_path)), path)
        else:
            said = "%s of epoch %d is missing or damaged: the best of the epochs to come is taken"
            log.warning(said, path, self.best.epoch)
            self.best = None


def _best_in(checkpoint: Mapping[str, Any]) -> Best | None:
    """Return the best epoch that a checkpoint knows; one that is no finite number is none."""
    best = checkpoint[CHECKPOINT_KEY]["best"]
    return None if best is None or not math.isfinite(best["value"]) else Best(**best)


def _require_finite(trainer: pl.Trainer, weights: Mapping[str, Any]) -> None:
    """Called by all ranks together: averages of layers that each rank keeps for itself may differ."""
    found = [name for name in all_gather_objects(find_not_finite(weights) or "") if name]
    if found:
        epoch = trainer.current_epoch + 1
        raise DivergedError(
            f"{found[0]} holds NaN or infinity after step {trainer.global_step}, in epoch {epoch}: {ADVICE}"
        )
