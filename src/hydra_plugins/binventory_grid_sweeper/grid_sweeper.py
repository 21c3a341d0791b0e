"""`hydra/sweeper=binventory_grid`, the default for `-m`: every combination, and one failed job is one failed row."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Dict, Optional

from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


@dataclass
class GridSweeperConf:
    """What `hydra.sweeper` may hold."""

    _target_: str = "hydra_plugins.binventory_grid_sweeper.grid_sweeper.GridSweeper"
    # jobs given at once to a launcher that blocks until all of them ended; null: all
    max_batch_size: Optional[int] = None
    # sweeps besides those of the command line, which win: key -> values, as in `optimizer.lr: 0.1,0.01`
    params: Dict[str, Any] = field(default_factory=dict)


class GridSweeper(Sweeper):
    """Runs every combination of the swept values."""

    def __init__(self, max_batch_size: int | None, params: dict[str, Any]) -> None:
        self.max_batch_size = max_batch_size
        self.params = params

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Take what Hydra gives to every sweeper."""
        self._given = (hydra_context, task_function, config)

    def sweep(self, arguments: list[str]) -> Sequence[Sequence[JobReturn]]:
        """Run every combination; exits with 1 if a job failed, 130 or 143 when stopped."""
        from hydra_plugins.binventory_grid_sweeper._core import run_grid

        return run_grid(self, *self._given, arguments)


ConfigStore.instance().store(
    group="hydra/sweeper", name="binventory_grid", node=GridSweeperConf, provider="binventory_grid_sweeper"
)
