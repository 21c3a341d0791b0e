"""Where in training a checkpoint lies, and the same as the counters of Lightning's loops.

Lightning tells where it was stopped from which of its counters have moved, and what it saves differs with the hook that
saves. Checkpoints of ours hold one form for each place, so that every way to stop is resumed alike.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import pytorch_lightning as pl


class Position(NamedTuple):
    """A place between two optimizer steps.

    Attributes:
        epoch: epochs that are complete, validation included.
        batches: batches done of the epoch under way; 0 between two epochs, `num_batches` before its validation.
        num_batches: batches of an epoch.
        step: optimizer steps done.
        stopped: training is over although epochs are left: it was stopped early.
    """

    epoch: int
    batches: int
    num_batches: int
    step: int
    stopped: bool = False


def fit_loop_state(trainer: pl.Trainer, position: Position) -> dict[str, Any]:
    """Return the state of Lightning's fit loop at a position.

    - Between epochs every counter is complete.
    - In the middle of an epoch the epoch is started and its batches are complete.
    - After the last batch the validation looks like one that broke off in its first batch: Lightning then goes on with
      validation instead of training.
    """
    epoch, batches, step = position.epoch, position.batches, position.step
    is_midway = batches > 0
    awaits_validation = batches == position.num_batches and trainer.enable_validation
    started = epoch + is_midway
    state = trainer.fit_loop.state_dict()
    state["epoch_progress"] = _both(ready=started, started=started, processed=epoch, completed=epoch)
    total_batches = epoch * position.num_batches + batches
    state["epoch_loop.batch_progress"] = {
        "total": _all(total_batches),
        "current": _all(batches),
        "is_last_batch": batches == position.num_batches,
    }
    state["epoch_loop.scheduler_progress"] = _both(ready=step, completed=step)
    state["epoch_loop.automatic_optimization.optim_progress"] = {
        "optimizer": {
            "step": _both(ready=step, completed=step),
            "zero_grad": _both(ready=step, started=step, completed=step),
        }
    }
    # Counts what loggers call the step; Lightning adds the last step of an epoch after its validation.
    state["epoch_loop.state_dict"] = {"_batches_that_stepped": step - awaits_validation}
    begun = {"ready": 1, "started": 1, "processed": 0, "completed": 0} if awaits_validation else _all(0)
    state["epoch_loop.val_loop.batch_progress"] = {"total": begun, "current": _all(0), "is_last_batch": False}
    state["state_dict"] = {}  # the loader's place: see Checkpoints.on_train_start
    return state


def _all(count: int) -> dict[str, int]:
    return {"ready": count, "started": count, "processed": count, "completed": count}


def _both(**counts: int) -> dict[str, dict[str, int]]:
    return {"total": dict(counts), "current": dict(counts)}
