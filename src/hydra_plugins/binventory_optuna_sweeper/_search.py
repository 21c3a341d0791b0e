"""The search: it asks Optuna for trials, runs them as jobs of a sweep, and tells how they ended."""

from __future__ import annotations

import logging
import math
import time
from collections import deque
from collections.abc import Sequence

import optuna
from hydra.core.utils import JobReturn
from optuna.trial import Trial, TrialState

from binventory.launch.sweep import Sweep
from binventory.tracking.sweep_record import SweepJob
from hydra_plugins.binventory_optuna_sweeper._results import ERROR, RUN_DIR, write_results
from hydra_plugins.binventory_optuna_sweeper._space import Space
from hydra_plugins.binventory_optuna_sweeper._study import NUM_TRIALS, make_sampler
from hydra_plugins.binventory_optuna_sweeper.optuna_sweeper import OptunaSweeperConf

log = logging.getLogger(__name__)

POLL_S = 1.0
JOB = "job"  # user attribute of a trial: the number of its job


class Search:
    """The trials of one sweep.

    Only this process talks to the storage. A trial holds the number of its job before the job starts, so whenever this
    process is killed, each trial that it left either has a job, which goes on or has ended, or gets its first one.

    Args:
        settings: of the sweeper.
        space: what trials draw from.
        study: new, or of an earlier process of this sweep.
        sweep: runs the jobs.
        metric: what the jobs' values are.
    """

    def __init__(
        self, settings: OptunaSweeperConf, space: Space, study: optuna.Study, sweep: Sweep, metric: str
    ) -> None:
        self._settings = settings
        self._space = space
        self._study = study
        self._sweep = sweep
        self._metric = metric
        self._num_trials = settings.n_trials or (None if settings.sampler == "grid" else NUM_TRIALS)
        self._refills = sweep.can_refill
        self._n_jobs = settings.n_jobs or sweep.n_jobs or (None if sweep.can_refill else 1)
        self._grid = space.grid() if settings.sampler == "grid" else None
        self._left: deque[tuple[SweepJob | None, Trial]] = deque()  # by an earlier process
        self._running: dict[int, Trial] = {}  # by job number
        self._asked_to_stop: set[int] = set()
        self._last_poll = time.monotonic()

    def run(self) -> list[Sequence[JobReturn]]:
        """Run what is missing; return what the jobs returned: in one batch where the launcher refills."""
        if not self._refills:
            log.info(f"this launcher blocks: trials run in batches of {self._n_jobs}, and none is stopped early")
        self._take_up()
        batches: list[list[SweepJob]] = [[]]
        self._fill()
        while self._running and not self._is_stopped():
            for job in self._sweep.as_completed(POLL_S):
                batches[-1].append(job)
                self._tell(job, self._running.pop(job.number))
                if self._refills:
                    break
            if not self._refills:
                batches.append([])
            self._prune()
            self._fill()
        ended = [sorted(batch, key=lambda job: job.number) for batch in batches if batch]
        return [[job.job_return for job in batch if job.job_return is not None] for batch in ended]

    def _is_stopped(self) -> bool:
        """Whether no job is left that could end: those that only waited were dropped, and stay running in the study."""
        return self._sweep.is_stopping and all(job.handle is None for job in self._sweep.jobs)

    def _take_up(self) -> None:
        """Find what became of the trials that an earlier process left running."""
        jobs = {job.number: job for job in self._sweep.jobs}
        for frozen in self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            trial = Trial(self._study, frozen._trial_id)
            job = jobs.get(trial.user_attrs.get(JOB, -1))
            if job is not None and job.state in ("done", "failed", "pruned"):
                self._tell(job, trial)
            else:
                self._left.append((job, trial))
        if self._grid is not None:
            trials = self._study.get_trials(deepcopy=False)
            taken = [trial.system_attrs.get("fixed_params") for trial in trials]  # what was enqueued, drawn or not
            self._grid = (point for point in self._space.grid() if point not in taken)

    def _fill(self) -> None:
        """Start trials until as many run as may."""
        while self._has_room() and not self._sweep.is_stopping:
            job, trial = self._left.popleft() if self._left else (None, self._ask())
            if trial is None:
                return
            if job is not None:
                # Not those of the record, which hides secrets.
                self._sweep.submit(self._space.overrides(trial.params), job=job)
                self._running[job.number] = trial
            else:
                self._start(trial)

    def _has_room(self) -> bool:
        if self._n_jobs is not None:
            return len(self._running) < self._n_jobs
        # The launcher goes by the GPUs that are free: one trial that waits is enough, a later one would know more.
        return all(job.handle is None or job.handle.is_started for job in self._sweep.jobs)

    def _ask(self) -> Trial | None:
        """Return the next trial; None when there are as many as asked for, or the grid is used up."""
        trials = self._study.get_trials(deepcopy=False)
        is_queued = any(trial.state == TrialState.WAITING for trial in trials)
        num_started = sum(trial.state != TrialState.WAITING for trial in trials)
        if self._num_trials is not None and num_started >= self._num_trials:
            return None
        if self._grid is not None and not is_queued:
            point = next(self._grid, None)
            if point is None:
                return None
            self._study.enqueue_trial(point)
        self._study.sampler = make_sampler(self._settings, len(trials))
        return self._study.ask(self._space.distributions)

    def _start(self, trial: Trial) -> None:
        # Killed while it drew, the earlier process may have left a trial with some of its values only.
        self._study.sampler = make_sampler(self._settings, trial.number)
        values = {name: trial._suggest(name, values) for name, values in self._space.distributions.items()}
        number = max((job.number for job in self._sweep.jobs), default=-1) + 1
        trial.set_user_attr(JOB, number)
        job = self._sweep.submit(self._space.overrides(values))
        assert job.number == number, "another's job: the trial would be told its result"
        self._running[number] = trial

    def _prune(self) -> None:
        """Hand new values to the pruner, and ask the jobs that it gives up to stop."""
        if not self._refills or time.monotonic() < self._last_poll + POLL_S:
            return
        self._last_poll = time.monotonic()
        for job in list(self._sweep.jobs):
            trial = self._running.get(job.number)
            if trial is not None and job.number not in self._asked_to_stop and self._is_hopeless(job, trial):
                log.info(f"trial {trial.number} is stopped early (hydra.sweeper.pruner={self._settings.pruner})")
                self._asked_to_stop.add(job.number)
                self._sweep.prune(job)

    def _is_hopeless(self, job: SweepJob, trial: Trial) -> bool:
        for epoch, value in self._new_values(job, trial):
            trial.report(value, step=epoch)
            if trial.should_prune():
                return True
        return False

    def _new_values(self, job: SweepJob, trial: Trial) -> list[tuple[int, float]]:
        known = self._study.trials[trial.number].intermediate_values
        values = self._sweep.values(job)
        return [(epoch, value) for epoch, value in values if epoch not in known and math.isfinite(value)]

    def _tell(self, job: SweepJob, trial: Trial) -> None:
        """Tell the study how a job ended; a preempted one stays running there, for the next process."""
        for epoch, reached in self._new_values(job, trial):
            trial.report(reached, step=epoch)
        trial.set_user_attr(RUN_DIR, self._sweep.record.place(job) or "unknown")
        # A job that ended after its sweep was killed has its figures only.
        value = job.value if job.value is not None else job.metrics.get(self._metric)
        if job.state == "done" and value is not None and math.isfinite(value):
            self._study.tell(trial, value)
        elif job.state == "pruned":
            self._study.tell(trial, state=TrialState.PRUNED)
        elif job.state in ("done", "failed"):
            reason = job.error or f"returned {value}: no objective value"
            trial.set_user_attr(ERROR, reason)
            self._study.tell(trial, state=TrialState.FAIL)
            log.warning(f"trial {trial.number} (job {job.number}) failed: {reason}")
        write_results(self._study, self._sweep.folder, self._metric)
