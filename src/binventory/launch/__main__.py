"""`python -m binventory.launch job.json`: run one frozen job in this process."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from binventory.config.capture import redact_logs
from binventory.errors import InputError, UserError
from binventory.launch.ranks import end_with_parent, take_over_logging
from binventory.launch.runner import EXIT_USER_ERROR, execute, forget_foreign_ranks, report_user_error
from binventory.launch.spec import SECRETS_VARIABLE, JobSpec
from binventory.streams import keep_streams_open


def main() -> int:
    """Run the job spec named on the command line and return its exit code."""
    keep_streams_open()
    if not end_with_parent():
        forget_foreign_ranks()
    redact_logs()
    take_over_logging()
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        print("usage: python -m binventory.launch job.json", file=sys.stderr)
        return EXIT_USER_ERROR
    try:
        spec = _load(Path(sys.argv[1]))
    except UserError as error:
        report_user_error(error)
        return EXIT_USER_ERROR
    os.environ.pop(SECRETS_VARIABLE, None)  # not for the processes that the job starts
    return execute(spec)[0]


def _load(path: Path) -> JobSpec:
    """Read a spec; a file that came from elsewhere may name no other run's folder."""
    spec = JobSpec.load(path)
    if Path(spec.run_dir).resolve() != path.resolve().parent:
        raise InputError(f"{path}: run_dir={spec.run_dir}: a job spec lies in its run folder; submit the job again")
    return spec


if __name__ == "__main__":
    sys.exit(main())
