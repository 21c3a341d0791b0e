"""An optimizer and its learning-rate schedule: completed for a run, and tried on a few numbers before there is one."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from hydra.utils import instantiate
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from binventory.config.capture import one_line
from binventory.errors import ConfigError
from binventory.metrics.direction import direction

TRIAL_STEPS_PER_EPOCH, TRIAL_STEPS = 100, 3


def make_optimizer(
    make: Callable[..., Optimizer], parameters: Sequence[nn.Parameter], *, may_fuse: bool = True
) -> Optimizer:
    """Complete an optimizer with the trained parameters.

    Args:
        make: the partial of the config.
        parameters: that are trained.
        may_fuse: whether it may be the fused form, where it has one and the config says nothing of the form.

    Raises:
        ConfigError: it does not take its values.
    """
    said = _said(make)
    has_form = "fused" in said or said.get("foreach") or said.get("differentiable")
    fused = {"fused": True} if may_fuse and not has_form and "fused" in inspect.signature(make).parameters else {}
    with _explained("optimizer", make):
        return make(parameters, **fused)


def make_schedule(
    make: Callable[..., LRScheduler], optimizer: Optimizer, steps_per_epoch: int, max_epochs: int, metric: str | None
) -> dict[str, Any]:
    """Complete a schedule with the length of the run; return it as Lightning takes it.

    What takes the length moves every step: ours, and torch's OneCycleLR. Others of torch's count epochs.

    Args:
        make: the partial of the config.
        optimizer: whose learning rate it moves.
        steps_per_epoch: optimizer steps.
        max_epochs: of the run.
        metric: `objective_metric`, which ReduceLROnPlateau goes by.

    Raises:
        ConfigError: it does not take its values, is no schedule, is shorter than the run, or has nothing to go by.
    """
    wanted, said = inspect.signature(make).parameters, _said(make)
    given: dict[str, Any] = {"steps_per_epoch": steps_per_epoch, "max_epochs": max_epochs}
    if said.get("total_steps") is None and said.get("epochs") is None:
        given["total_steps"] = steps_per_epoch * max_epochs
    given = {name: value for name, value in given.items() if name in wanted}
    by_metric = _is_plateau(make)
    if by_metric:
        given |= _plateau_mode(said, metric)
    with _explained("scheduler", make):
        scheduler = make(optimizer, **given)
    if not isinstance(scheduler, LRScheduler):
        raise ConfigError(f"scheduler: {type(scheduler).__name__} is no torch learning-rate scheduler; name one")
    require_length(scheduler, steps_per_epoch * max_epochs)
    is_stepwise = bool({"steps_per_epoch", "total_steps"} & wanted.keys())
    schedule: dict[str, Any] = {"scheduler": scheduler, "interval": "step" if is_stepwise else "epoch"}
    return {**schedule, "monitor": metric} if by_metric else schedule


def require_length(scheduler: Any, num_steps: int) -> None:
    """Refuse a schedule that would break off before the run ends.

    Raises:
        ConfigError: it is of fewer steps: by the config, or as the run was resumed from.
    """
    length = getattr(scheduler, "total_steps", None)
    if isinstance(length, int) and length < num_steps:
        raise ConfigError(
            f"scheduler: its {length} steps are fewer than the {num_steps} of the run; leave out scheduler.total_steps"
            " and scheduler.epochs, and resume with the trainer.max_epochs that the run began with"
        )


def try_optimization(config: Any) -> None:
    """Make the optimizer and the schedule of a config, and take a few steps with them.

    Raises:
        ConfigError: they cannot start; names the group and what torch says.
    """
    weights = [nn.Parameter(torch.ones(2, 3, 1, 1)), nn.Parameter(torch.ones(2))]
    make, make_scheduler = (_partial(group, config[group]) for group in ("optimizer", "scheduler"))
    optimizer = make_optimizer(make, weights)
    # Its own number of steps can only be held against the run's epochs: how many steps these have is not known yet.
    steps_per_epoch = TRIAL_STEPS_PER_EPOCH if _said(make_scheduler).get("total_steps") is None else 1
    max_epochs = config.trainer.max_epochs
    scheduler = make_schedule(make_scheduler, optimizer, steps_per_epoch, max_epochs, config.objective_metric)
    with _explained("optimizer", make):
        if not isinstance(optimizer, Optimizer):
            raise TypeError(f"{type(optimizer).__name__} is no torch optimizer")
        if inspect.signature(optimizer.step).parameters["closure"].default is inspect.Parameter.empty:
            raise TypeError(f"{type(optimizer).__name__} computes the loss several times a step, training does it once")
        torch.stack([(weight**2).sum() for weight in weights]).sum().backward()  # type: ignore[no-untyped-call]
        # For torch's graphs on a GPU alone.
        if config.trainer.accelerator == "cpu" or not _said(make).get("capturable"):
            optimizer.step()
    with _explained("scheduler", make_scheduler):
        for _ in range(min(TRIAL_STEPS, max_epochs)):
            scheduler["scheduler"].step(*([1.0] if "monitor" in scheduler else []))


def _partial(group: str, node: Any) -> Callable[..., Any]:
    with _explained(group, node["_target_"]):
        made: Callable[..., Any] = instantiate(node, _partial_=True, _convert_="all")
        return made


def _said(make: Callable[..., Any]) -> Mapping[str, Any]:
    """Return what the config says of a partial's values."""
    return getattr(make, "keywords", {})


def _is_plateau(make: Callable[..., Any]) -> bool:
    made = getattr(make, "func", make)
    return inspect.isclass(made) and issubclass(made, ReduceLROnPlateau)


def _plateau_mode(said: Mapping[str, Any], metric: str | None) -> dict[str, str]:
    if metric is None:
        raise ConfigError(
            "scheduler: ReduceLROnPlateau goes by objective_metric, which is null; name a metric or another scheduler"
        )
    better = direction(metric)
    if said.get("mode", better) != better:
        raise ConfigError(
            f"scheduler.mode={said['mode']}: {metric} is best at its {better}imum; leave scheduler.mode out, or"
            f" set it to {better}"
        )
    return {"mode": better}


@contextmanager
def _explained(group: str, make: Callable[..., Any] | str) -> Iterator[None]:
    """Say of which group a value is that torch, or whoever's the class is, does not take."""
    try:
        yield
    except Exception as error:  # whatever a class raises at values that it does not take
        name = getattr(getattr(make, "func", make), "__name__", make)
        said = f"{type(error).__name__}: {one_line(str(error)).rstrip('.')}"
        raise ConfigError(f"{group}: {name} cannot start ({said}); change what is under {group}") from error
