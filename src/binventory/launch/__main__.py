"""`python -m binventory.launch job.json`: run one frozen job in this process."""

from __future__ import annotations

import sys
from pathlib import Path

from binventory.errors import UserError
from binventory.launch.runner import EXIT_USER_ERROR, execute, report_user_error
from binventory.launch.spec import JobSpec


def main() -> int:
    """Run the job spec named on the command line and return its exit code."""
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        print("usage: python -m binventory.launch job.json", file=sys.stderr)
        return EXIT_USER_ERROR
    try:
        spec = JobSpec.load(Path(sys.argv[1]))
    except UserError as error:
        report_user_error(error)
        return EXIT_USER_ERROR
    return execute(spec)[0]


if __name__ == "__main__":
    sys.exit(main())
