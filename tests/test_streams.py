"""Output that nobody reads costs no run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.running import ROOT

# Prints before and at its end, on both streams, and lets a child print; the file that it opens must not become a stream.
PROGRAM = """
import os, sys
from binventory.streams import keep_streams_open
keep_streams_open()
with open(sys.argv[1], "w") as file:
    for _ in range(3):
        print("é…" * 3000, flush=True)
        print("to stderr", file=sys.stderr)
    os.system("echo a child")
    print(sys.stdin.read(), end="")
    file.write("done")
sys.stdout.write("the last line, flushed by nobody")
sys.exit(5)
"""


@pytest.mark.parametrize(
    "streams",
    [">&-", "2>&-", "<&- >&- 2>&-", ">/dev/full 2>/dev/full", "| true", "2>&1 | head -c 1", ">&- <&- | true"],
)
def test_printing_never_fails(streams: str, tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    script = f'set -o pipefail; "{sys.executable}" program.py file {streams}'
    environment = {"PYTHONPATH": str(ROOT / "src"), "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(
        ["/bin/bash", "-c", script], cwd=tmp_path, env=environment, stdin=subprocess.DEVNULL, capture_output=True, check=False
    )  # fmt: skip
    assert done.returncode == 5, done.stderr
    assert b"Exception ignored" not in done.stderr
    assert b"Traceback" not in done.stderr
    assert (tmp_path / "file").read_text() == "done", "and nothing that was printed"


def test_what_can_be_written_is_written(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    environment = {"PYTHONPATH": str(ROOT / "src"), "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(
        [sys.executable, "program.py", "file"], cwd=tmp_path, env=environment, input=b"typed", capture_output=True, check=False
    )  # fmt: skip
    line = b"\\xe9\\u2026" * 3000 + b"\n"
    assert done.stdout == 3 * line + b"a child\ntypedthe last line, flushed by nobody"
    assert done.stderr.count(b"to stderr") == 3
