"""What a process of the pool does: it runs one frozen job, or one of a task that is not ours."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from multiprocessing import parent_process
from pathlib import Path
from typing import TYPE_CHECKING, Any

from binventory.files import open_own
from binventory.launch.pool import GRACE_S, Share
from binventory.signals import STOP_SIGNALS
from binventory.streams import keep_streams_open

if TYPE_CHECKING:
    from hydra.core.utils import JobReturn

LOG = "output.log"


def run_frozen(share: Share, path: str, environment: Mapping[str, str], packed: bytes) -> None:
    """Run the job spec at `path`, its output in `output.log` beside it, and exit with the job's exit code.

    Args:
        share: what the job may use of this machine.
        path: job.json of a run folder.
        environment: all variables of the job; they hold the secrets that the file does not.
        packed: what `pack` made of the job, from the sweep's process: what Hydra does around it.
    """
    _settle(share, environment)
    _redirect(Path(path).with_name(LOG))
    from binventory.config.capture import redact_logs
    from binventory.errors import UserError
    from binventory.launch.frozen import redact_output_subdir
    from binventory.launch.ranks import run_spec
    from binventory.launch.runner import EXIT_INTERRUPTED, EXIT_PREEMPTED, EXIT_USER_ERROR, JobError, report_user_error
    from binventory.launch.spec import SECRETS_VARIABLE, JobSpec
    from binventory.tracking.run_folder import register_resolvers

    redact_logs()
    try:
        spec = JobSpec.load(Path(path))
    except UserError as error:
        report_user_error(error)
        sys.exit(EXIT_USER_ERROR)
    os.environ.pop(SECRETS_VARIABLE, None)  # not for the processes that the job starts
    _limit_threads(share)
    exit_code = 0

    def task(_config: Any) -> Any:
        nonlocal exit_code
        redact_output_subdir()
        exit_code, result = run_spec(spec)
        if exit_code in (EXIT_INTERRUPTED, EXIT_PREEMPTED):
            sys.exit(exit_code)  # no time for more
        if exit_code:
            raise JobError(f"{spec.run_dir}: ended with exit code {exit_code}")
        return result

    register_resolvers()
    run_as_hydra(packed, task)
    sys.exit(exit_code)


def run_foreign(share: Share, answer: str, packed: bytes, environment: Mapping[str, str]) -> None:
    """Run a task of another Hydra application as Hydra's own launchers do, and hand its JobReturn back.

    Args:
        share: what the job may use of this machine.
        answer: file that the pickled JobReturn goes to.
        packed: what `pack` made.
        environment: all variables of the job.
    """
    _settle(share, environment)
    # From the process that started this one, through a pipe: no file, nobody else's.
    exit_code, returned = run_packed(packed)
    Path(answer).write_bytes(returned)
    sys.exit(exit_code)


def run_packed(packed: bytes) -> tuple[int, bytes]:
    """Run what `pack` made, by a sender that may run anything here; return exit code and pickled JobReturn."""
    from hydra.core.utils import JobStatus

    returned = run_as_hydra(packed)
    return (0 if returned.status == JobStatus.COMPLETED else 1), _packed_return(returned)


def run_as_hydra(packed: bytes, own_task: Callable[[Any], Any] | None = None) -> JobReturn:
    """Run what `pack` made as Hydra's launchers do: its logging, environment and callbacks around the task.

    Args:
        packed: by a sender that may run anything here.
        own_task: what is run in place of the task that was packed.
    """
    import cloudpickle
    from hydra.core.singleton import Singleton
    from hydra.core.utils import run_job, setup_globals

    setup_globals()
    context, state, task, config = cloudpickle.loads(packed)
    Singleton.set_state(state)
    return run_job(
        hydra_context=context,
        task_function=own_task or (_imported(task) if isinstance(task, str) else task),
        config=config,
        job_dir_key="hydra.sweep.dir",
        job_subdir_key="hydra.sweep.subdir",
    )


def pack(context: Any, state: Any, task: Any, config: Any) -> bytes:
    """Pack what `run_foreign` needs: Hydra's context, its singletons, the task (or its name) and the job's config."""
    import cloudpickle

    packed: bytes = cloudpickle.dumps((context, state, task, config))
    return packed


def _packed_return(returned: JobReturn) -> bytes:
    import cloudpickle

    try:
        packed: bytes = cloudpickle.dumps(returned)
    except Exception as error:  # noqa: BLE001  whatever a task returns or raises may refuse to be pickled
        from hydra.core.utils import JobStatus

        returned.status = JobStatus.FAILED
        returned.return_value = RuntimeError(f"what the job returned cannot be pickled: {error}")
        packed = cloudpickle.dumps(returned)
    return packed


def _imported(task: str) -> Any:
    """Find `module:function`; a script that was run is imported again under this name by multiprocessing."""
    import importlib

    module, _, name = task.partition(":")
    return getattr(sys.modules["__mp_main__"] if module == "__main__" else importlib.import_module(module), name)


def _settle(share: Share, environment: Mapping[str, str]) -> None:
    # A group of its own: Ctrl-C on the terminal is for the sweep, which passes it on, once.
    os.setsid()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
    _end_with_parent()
    os.environ.clear()
    os.environ.update(environment)
    os.environ["OMP_NUM_THREADS"] = str(share.threads)
    if share.gpus:
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(share.gpus)


def _limit_threads(share: Share) -> None:
    # torch was imported by the server, so it does not look at OMP_NUM_THREADS any more.
    import torch

    torch.set_num_threads(share.threads)


def _end_with_parent() -> None:
    """End this process, as SIGTERM does, when the sweep's process ends, however that ends.

    Its parent in Linux's eyes is the server, which lives as long as its children do.
    """
    sweep = parent_process()
    assert sweep is not None

    def watch() -> None:
        sweep.join()
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(GRACE_S)
        os.killpg(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, name="end-with-parent", daemon=True).start()


def _redirect(path: Path) -> None:
    """Let everything that this process and its children print go to a file."""
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:  # closed when the sweep was started
            stream.flush()
    log = open_own(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)
    keep_streams_open()
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=True)  # type: ignore[union-attr]  # a killed job's last line counts
