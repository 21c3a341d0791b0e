"""Weights & Biases: online when a key is configured, else offline, never a prompt."""

from __future__ import annotations

import json
import os
import re
import secrets
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from lightning_fabric.loggers.logger import rank_zero_experiment
from pytorch_lightning.loggers import WandbLogger
from pytorch_lightning.utilities import rank_zero_only

from binventory.config.capture import one_line, redact_text
from binventory.data.preprocess import Preprocessing
from binventory.errors import ConfigError
from binventory.files import read_limited, write_json
from binventory.launch.runner import EXIT_PREEMPTED
from binventory.tracking.resume import task_name
from binventory.tracking.run_folder import RunFolder, State
from binventory.tracking.sweep_record import SWEEP_FILE
from binventory.tracking.wandb_media import test_media

RUN_FILE = "wandb.json"  # of the run folder: which W&B run it is
# Set by `wandb agent` and by whoever wants a certain id; the client takes them itself.
ID_VARIABLE, SWEEP_VARIABLE = "WANDB_RUN_ID", "WANDB_SWEEP_ID"
DATA_VARIABLE = "WANDB_DATA_DIR"
_REFUSED = re.compile(r"returned error 4\d\d")  # a wrong key, an unknown entity: all that the client says of it
CHOSEN = ("best.ckpt", "last.ckpt")  # the first that there is was tested
_RUN_ID = re.compile(r"[\w-]{1,128}")  # becomes part of a folder's name
HYDRA_SWEEP_FILE = "multirun.yaml"


class BinWandbLogger(WandbLogger):
    """The one owner of the W&B run of a run folder: starts it, logs to it, ends it with what came of the job.

    Rows have the x axes `epoch` and `step` of metrics.csv, those of single steps the latter alone. W&B's own step only
    counts rows, so that a run that goes on from an earlier step than it had logged loses none.

    Attributes:
        is_new: whether no attempt before this one was logged to W&B.

    Args:
        run_dir: the run folder.
        log_model: upload best.ckpt, or last.ckpt where no metric chooses one, and the bundle as an artifact when the
            run is done.
        num_photos: photos in each half of the table of errors: the most wrong ones, and the least certain ones.
        options: of `wandb.init`.
    """

    def __init__(self, run_dir: Path, *, log_model: bool, num_photos: int, **options: Any) -> None:
        super().__init__(log_model=False, **options)  # Lightning's own uploads go by its ModelCheckpoint
        del self._wandb_init["anonymous"]  # the client warns of it, and of a project in a sweep of its own
        if "project" not in options:
            del self._wandb_init["project"]
        self.run_dir = run_dir
        self.uploads_model = log_model
        self.num_photos = num_photos
        self._is_lost = False
        self._warned: set[str] = set()
        self.is_new = not (run_dir / RUN_FILE).exists()

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The W&B run, started the first time it is asked for."""
        if self._experiment is None:
            self._experiment = run = _start(self._wandb_init)
            run.define_metric("epoch")
            run.define_metric("step")
            for name in ("train/loss_step", "lr_step"):
                run.define_metric(name, step_metric="step")
            run.define_metric("*", step_metric="epoch")
            _remember(self.run_dir, run)
        return self._experiment

    @rank_zero_only
    def log_hyperparams(self, params: Any) -> None:
        """Log what the run is."""
        self._tell("the config", lambda _: super(BinWandbLogger, self).log_hyperparams(params))

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log one row."""
        # Lightning counts steps from 0.
        row = {**metrics} if step is None else {"step": step + 1, **metrics}
        self._tell("a row of figures", lambda run: run.log(row))

    @rank_zero_only
    def log_best(self, row: Mapping[str, Any]) -> None:
        """Let the summary say what the best epoch so far came to.

        Args:
            row: of metrics.csv.
        """
        figures = {name: value for name, value in row.items() if "/" in name}
        self._tell("the best epoch", lambda run: run.summary.update({**figures, "best_epoch": row["epoch"]}))

    @rank_zero_only
    def log_results(
        self,
        figures: Mapping[str, Any],
        rows: Sequence[Mapping[str, Any]],
        photos: Sequence[str],
        preprocessing: Preprocessing,
    ) -> None:
        """Log what came of the test, and the model where that is asked for; see `loggers.log_results`."""
        flat = flat_figures(figures)
        self._tell("the figures of the test", lambda run: run.summary.update(flat))

        def show(run: Any) -> None:
            media = test_media(rows, photos, figures["test"]["per_count"], self.num_photos, preprocessing)
            run.log({**media, "epoch": figures["best_epoch"]})

        self._tell("the pictures of the test", show)
        if self.uploads_model:
            self._tell("the model", lambda run: self._upload_model(run, flat))

    def _upload_model(self, run: Any, metadata: dict[str, float]) -> None:
        import wandb

        artifact = wandb.Artifact(f"model-{run.id}", type="model", metadata=metadata)
        checkpoints = [self.run_dir / "checkpoints" / name for name in CHOSEN]
        # Without a metric to choose by there is no best one: the last is what was tested.
        artifact.add_file(str(next((path for path in checkpoints if path.exists()), checkpoints[0])))
        artifact.add_dir(str(self.run_dir / "bundle"), name="bundle")
        run.log_artifact(artifact)

    @rank_zero_only
    def finish(self, state: State, exit_code: int, error: str | None) -> None:
        """End the run as the job ended. Waits, not for ever, until what is online has been sent.

        Args:
            state: of status.json.
            exit_code: of the job.
            error: why it failed.
        """

        def tell(run: Any) -> None:
            is_offline = run.offline
            run.summary.update({"state": state} if error is None else {"state": state, "error": one_line(error)})
            # Not under W&B's own sweeps: they would start a run again that their early termination had stopped.
            if exit_code == EXIT_PREEMPTED and SWEEP_VARIABLE not in os.environ:
                run.mark_preempting()
            try:
                run.finish(exit_code=exit_code)
            finally:
                _end_session(self.run_dir)
            if is_offline:
                command = f"binventory wandb sync {shlex.quote(str(self.run_dir))}"
                print(f"W&B was offline: `{command}` sends the run", flush=True)

        self._tell("the end of the run", tell)

    def _tell(self, what: str, say: Callable[[Any], object]) -> None:
        """Call with the W&B run, unless its client has broken down: a training outlives its dashboard.

        Args:
            what: is logged; one that fails is warned of once, and costs nothing else.
            say: called with the run.
        """
        import wandb

        if self._is_lost:
            return
        try:
            say(self.experiment)
        except Exception as error:  # noqa: BLE001  whatever it is: a file that is gone, a full disk, a picture
            if isinstance(error, (ConnectionError, wandb.errors.Error)):
                self._lose(error)
            elif what not in self._warned:
                self._warned.add(what)
                said = f"{type(error).__name__}: {one_line(str(error))}"
                print(f"warning: logger=wandb: {what} could not be logged: {said}", file=sys.stderr, flush=True)

    def _lose(self, error: Exception) -> None:
        self._is_lost = True
        with suppress(Exception):  # it is ended, or so broken that it cannot be
            _end_session(self.run_dir)
        print(
            f"warning: the W&B client has broken down, nothing more is logged there: {one_line(str(error))};"
            f" what it had is in {self.run_dir / 'wandb'}, metrics.csv has everything",
            file=sys.stderr,
            flush=True,
        )


def flat_figures(figures: Mapping[str, Any]) -> dict[str, float]:
    """Return the numbers of metrics.json by their logged names; those per count are left out."""
    flat = {name: value for name, value in figures.items() if not isinstance(value, Mapping)}
    for split in ("val", "test"):
        flat.update({f"{split}/{name}": value for name, value in (figures.get(split) or {}).items()})
    return {name: value for name, value in flat.items() if isinstance(value, int | float)}


def make_wandb_logger(
    save_dir: str,
    project: str,
    entity: str | None = None,
    group: str | None = None,
    tags: list[str] | None = None,
    log_model: bool = False,
    num_photos: int = 32,
    finish_timeout_s: float = 60.0,
) -> BinWandbLogger:
    """Start the W&B run of a run folder, or go on with it.

    Args:
        save_dir: the run folder.
        project: W&B project.
        entity: W&B team or user; None: the default one of the account.
        group: None: the sweep that the run is a job of.
        tags: of the run.
        log_model: see `BinWandbLogger`.
        num_photos: see `BinWandbLogger`.
        finish_timeout_s: how long the end of the job waits for the network; 0: for ever.

    Raises:
        ConfigError: W&B does not take the key, the project or another value.
    """
    import wandb

    from binventory.tracking.wandb_key import has_key

    run_dir = Path(save_dir)
    # Pictures wait there until they are sent: not in the user's home, but where the run's other files are.
    os.environ.setdefault(DATA_VARIABLE, _data_dir(run_dir))
    mode = os.environ.get("WANDB_MODE") or ("online" if has_key() else "offline")
    known = _remembered(run_dir)
    options = {
        "name": run_dir.name if (sweep := _sweep_of(run_dir)) is None else f"{sweep}/{run_dir.name}",
        "group": group or sweep,
        "job_type": _task_of(run_dir),
        "tags": list(tags or []),
        "mode": mode,
        # In a SageMaker container the client would take the training job's name for the id and the group.
        "settings": wandb.Settings(sagemaker_disable=True, finish_timeout=finish_timeout_s, quiet=True),
        "resume": "allow",
    }
    if not os.environ.get(SWEEP_VARIABLE):  # its agent says where the run belongs
        options |= {"project": known.get("project", project), "entity": known.get("entity", entity)}
        if sweep is not None or not os.environ.get(ID_VARIABLE):  # jobs of a sweep cannot share one
            options["id"] = known.get("id") or secrets.token_hex(4)
    logger = BinWandbLogger(run_dir, log_model=log_model, num_photos=num_photos, save_dir=save_dir, **options)
    try:
        _ = logger.experiment
    except Exception:
        with suppress(Exception):  # what is left open would take in the next run of this process
            _end_session(run_dir)
        raise
    return logger


def _data_dir(run_dir: Path) -> str:
    return str((run_dir / "wandb").absolute())


def _end_session(run_dir: Path) -> None:
    """End the client's own process too: a later run of this process reads its settings anew."""
    import wandb

    wandb.teardown()
    if os.environ.get(DATA_VARIABLE) == _data_dir(run_dir):
        del os.environ[DATA_VARIABLE]


def _start(options: Mapping[str, Any]) -> Any:
    """Start the run; where the server does not answer, offline under the same id: the training is worth more."""
    import wandb

    with _redacted_command_line():
        try:
            return wandb.init(**options)
        except (wandb.errors.Error, ValueError) as error:
            is_unreachable = isinstance(error, wandb.errors.CommError) and not _REFUSED.search(str(error))
            # A run of W&B's own sweep has to arrive where its agent waits for it.
            if not is_unreachable or SWEEP_VARIABLE in os.environ:
                is_online = options["mode"] == "online"
                later = ", or set WANDB_MODE=offline and send the run later: `binventory wandb sync RUN`" * is_online
                raise ConfigError(f"logger=wandb: {one_line(str(error))}; mend that{later}") from error
            print(f"warning: W&B does not answer, the run is logged offline: {one_line(str(error))}", file=sys.stderr)
            wandb.teardown()
            return wandb.init(**{**options, "mode": "offline"})


def _remember(run_dir: Path, run: Any) -> None:
    """Write down which W&B run this is: the next attempt goes on with it, and `binventory wandb sync` sends it."""
    facts = {
        "id": run.id,
        "project": run.project,
        "entity": run.entity or None,
        "url": None if run.offline else run.url,
    }
    write_json(run_dir / RUN_FILE, facts)


def _remembered(run_dir: Path) -> dict[str, Any]:
    try:
        read = json.loads(read_limited(run_dir / RUN_FILE))
    except (OSError, ValueError):  # the first attempt, or damaged: the attempts are two runs then
        return {}
    facts = {key: value for key, value in read.items() if isinstance(value, str)} if isinstance(read, dict) else {}
    return facts if _RUN_ID.fullmatch(facts.get("id", "")) else {}


def _sweep_of(run_dir: Path) -> str | None:
    """Return the name of the sweep that a run folder lies in, ours or one of Hydra's own."""
    parent = run_dir.parent
    return parent.name if any((parent / name).exists() for name in (SWEEP_FILE, HYDRA_SWEEP_FILE)) else None


def _task_of(run_dir: Path) -> str | None:
    task = RunFolder(run_dir).read_status().get("task")
    return None if task is None else task_name(str(task))


@contextmanager
def _redacted_command_line() -> Iterator[None]:
    """Hide secrets of the command line, which W&B stores and has no setting for."""
    before = sys.argv
    sys.argv = [redact_text(argument) for argument in before]
    try:
        yield
    finally:
        sys.argv = before
