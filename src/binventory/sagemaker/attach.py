"""`binventory sagemaker attach SWEEP`: collect the training jobs that a sweep left to themselves."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from binventory.config.quoting import pasteable
from binventory.errors import InputError
from binventory.files import is_below
from binventory.launch.endings import judge
from binventory.launch.handle import JobHandle
from binventory.launch.runner import EXIT_FAILED
from binventory.reports.sweep_table import SweepDisplay
from binventory.sagemaker.aws import Aws
from binventory.sagemaker.jobs import TrainingJob, TrainingJobs
from binventory.sagemaker.names import name_prefix
from binventory.sagemaker.record import read_record, sweep_name
from binventory.tracking.run_folder import RunFolder
from binventory.tracking.sweep_record import SweepJob, SweepRecord, now, read_sweep


@dataclass
class _Open:
    job: SweepJob
    training_job: TrainingJob


def attach(sweep: Path, poll_s: float) -> int:
    """Wait for a sweep's training jobs and bring their run folders back.

    Args:
        sweep: the sweep's folder.
        poll_s: seconds between two looks.

    Returns:
        0 when all jobs of the sweep are done; 1 when one failed, or was never sent.

    Raises:
        InputError: no sweep, none on SageMaker, or another process has it.
    """
    sweep = sweep.absolute()
    saved = read_sweep(sweep)
    lock = RunFolder(sweep).open()
    try:
        record = SweepRecord(sweep, saved["task"], saved["overrides"], saved.get("objective_metric"))
        record.read_jobs()
        display = SweepDisplay(record)
        with display:
            _collect(record, display, poll_s)
        code = 0 if all(job.is_finished for job in record.jobs) else EXIT_FAILED
        record.write("failed" if code else "done", code)
        display.print_table()
        unsent = [job for job in record.jobs if job.state == "queued"]
        if unsent:
            print(f"{len(unsent)} jobs were never sent", flush=True)
        if code:
            print(f"{pasteable('resume_sweep', sweep)} runs what is not done", flush=True)
        return code
    finally:
        lock.close()


def _collect(record: SweepRecord, display: SweepDisplay, poll_s: float) -> None:
    inside = {job: job.run_dir for job in record.jobs if job.run_dir and is_below(job.run_dir, record.folder)}
    found = {job: read_record(run_dir) for job, run_dir in inside.items()}
    of_sagemaker = {job: its for job, its in found.items() if its is not None}
    if not of_sagemaker:
        raise InputError(f"{record.folder}: no job of this sweep was on SageMaker; there is nothing to collect")
    first = next(iter(of_sagemaker.values()))
    aws = Aws(first.region)
    if first.account != aws.account:
        raise InputError(f"{record.folder}: its jobs are of account {first.account}, not {aws.account}; log in there")
    jobs = TrainingJobs(aws, name_prefix(sweep_name(record.folder)))
    waited = []
    for job, its in of_sagemaker.items():
        if its.is_collected or jobs.state_of(its.name) is None:
            continue
        assert job.run_dir is not None
        job.handle = JobHandle(job.number, job.overrides, job.run_dir, is_started=True)
        job.state = "running"
        waited.append(_Open(job, jobs.watch(its, RunFolder(job.run_dir).open())))
    try:
        while waited:
            jobs.look([each.training_job for each in waited])
            for each in list(waited):
                each.job.handle.note = each.training_job.note
                if each.training_job.is_over and jobs.end(each.training_job):
                    waited.remove(each)
                    _end(each, jobs, record, display)
            display.refresh()
            if waited:
                time.sleep(poll_s)
    finally:
        for each in waited:
            assert each.training_job.folder is not None
            each.training_job.folder.close()


def _end(each: _Open, jobs: TrainingJobs, record: SweepRecord, display: SweepDisplay) -> None:
    job, training_job = each.job, each.training_job
    assert training_job.folder is not None
    job.exit_code, job.handle = jobs.exit_code(training_job), None
    training_job.folder.close()
    judge(job, training_job.failure, record.objective, is_stopping=False)
    job.ended = now()
    record.write("running")
    display.job_ended(job)
