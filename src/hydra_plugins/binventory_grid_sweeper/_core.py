"""The grid sweeper's work: combinations, and the sweep that runs them."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn
from hydra.types import HydraContext
from omegaconf import DictConfig

from binventory.config.capture import redact
from binventory.errors import ConfigError
from binventory.launch.sweep import Sweep, one_line_errors

if TYPE_CHECKING:
    from hydra_plugins.binventory_grid_sweeper.grid_sweeper import GridSweeper


def run_grid(
    asked: GridSweeper, context: HydraContext, task: Any, config: DictConfig, arguments: Sequence[str]
) -> list[list[JobReturn]]:
    """Run every combination that is not done yet, and exit with the sweep's code where that is not 0."""
    with one_line_errors():
        size = asked.max_batch_size
        if size is not None and size < 1:
            raise ConfigError(f"hydra.sweeper.max_batch_size={size}: must be at least 1, or null")
        grid = combinations(context, {str(key): value for key, value in asked.params.items()}, arguments)
        launcher = Plugins.instance().instantiate_launcher(hydra_context=context, task_function=task, config=config)
        if getattr(launcher, "dry_run", False):
            launcher.show_requests(grid)  # type: ignore[attr-defined]
            return []
        sweep = Sweep(launcher, task, config)
        grid = in_recorded_order(sweep, grid)
    with sweep.running():
        earlier = {job.number: job for job in sweep.jobs}
        for number, overrides in enumerate(grid):
            job = earlier.get(number)
            if job is None or not job.is_finished:
                sweep.submit(overrides, job=job)
            if not sweep.can_refill and size is not None and sweep.num_queued == size:
                sweep.wait()
        sweep.wait()
    code = sweep.finish()
    if code:
        sys.exit(code)
    return sweep.returns(size)


def combinations(context: HydraContext, params: dict[str, Any], arguments: Sequence[str]) -> list[list[str]]:
    """Return the overrides of each job, in the order of the command line; its last key varies fastest.

    Raises:
        ConfigError: a sweep without an end, such as an interval.
    """
    parser = OverridesParser.create(config_loader=context.config_loader)
    choices: dict[str, list[str]] = {}
    for override in parser.parse_overrides([*(f"{key}={value}" for key, value in params.items()), *arguments]):
        key = override.get_key_element()
        if key == "resume_sweep":
            continue
        if not override.is_sweep_override():
            value = override.get_value_element_as_str()
            choices[key] = [key if override.is_delete() and not value else f"{key}={value}"]
        elif override.is_discrete_sweep():
            choices[key] = [f"{key}={value}" for value in override.sweep_string_iterator()]
        else:
            raise ConfigError(
                f"{override.input_line}: a grid needs single values; write choices or a range, or take"
                " hydra/sweeper=binventory_optuna"
            )
    return [list(combination) for combination in itertools.product(*choices.values())]


def in_recorded_order(sweep: Sweep, grid: Sequence[Sequence[str]]) -> list[list[str]]:
    """Return a grid in which each job that a sweep has already keeps its number: shuffle() has another order each time.

    Raises:
        ConfigError: a job of the sweep is none of the grid's: presets may have changed since.
    """
    # Sorted: what is given again comes last on the command line. A key comes once.
    left = {number: sorted(redact(list(overrides))) for number, overrides in enumerate(grid)}
    ordered: dict[int, list[str]] = {}
    for job in sweep.jobs:
        own = sorted(redact(list(job.overrides)))
        # The same place first: two jobs may differ in nothing but a secret.
        same = (
            job.number if left.get(job.number) == own else next((n for n, found in left.items() if found == own), None)
        )
        if same is None:
            raise ConfigError(
                f"resume_sweep={sweep.folder}: job {job.number} was {' '.join(job.overrides)}, and is another one now;"
                " start a new sweep"
            )
        del left[same]
        ordered[job.number] = list(grid[same])
    free = (number for number in itertools.count() if number not in ordered)
    ordered |= {number: list(grid[place]) for number, place in zip(free, left, strict=False)}
    return [ordered[number] for number in sorted(ordered)]
