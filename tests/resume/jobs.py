"""Real processes that are started in a fraction of a second: forked from a server that has the whole stack imported.

`python -m tests.resume.jobs` is the server. It obeys JSON lines on stdin, one answer a line, until stdin ends. A job is
what `python train.py …` is but for the imports: a process (and process group) of its own, with its own signals, exit
code and working directory. The ranks of a job are forked too where the product starts `python -m binventory.launch`.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from tests.running import ROOT

PRELOADED = (
    "binventory.launch.entry",
    "binventory.launch.ranks",
    "binventory.tasks.predict",
    "binventory.tasks.prepare",
    "binventory.tasks.train",
    "boto3",
    "sklearn.model_selection",
    "timm",
)
LAUNCH = [sys.executable, "-m", "binventory.launch"]


class Jobs:
    """The server, and how tests talk to it.

    Args:
        private_mounts: start it in a mount namespace of its own (needs root), so that `mount` can be used.
    """

    def __init__(self, *, private_mounts: bool) -> None:
        self.private_mounts = private_mounts
        self._num_started = 0
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}"}
        command = [sys.executable, "-m", "tests.resume.jobs"]
        if private_mounts:
            command = ["unshare", "--mount", "--propagation", "private", *command]
        self._server = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def ask(self, **request: Any) -> Any:
        """Send a request and return the answer."""
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.write(json.dumps(request) + "\n")
        self._server.stdin.flush()
        answer = self._server.stdout.readline()
        assert answer, "the job server died"
        return json.loads(answer)

    def start(self, folder: Path, task: str, overrides: Sequence[str], *, num_ranks: int = 1, **env: str) -> Job:
        """Start a task in `folder` as its command line would.

        Args:
            num_ranks: so many ranks are forked; any further ones are started as the product does, in seconds.
            env: environment variables of the job.
        """
        self._num_started += 1
        output = folder / f"job{self._num_started}.out", folder / f"job{self._num_started}.err"
        for path in output:
            path.touch()
        request = {"task": task, "argv": list(overrides), "cwd": str(folder), "env": env, "num_ranks": num_ranks}
        return Job(self, self.ask(**request, output=[str(path) for path in output]), output)

    def mount(self, *arguments: str) -> None:
        """Run mount(8) or umount(8) in the server's namespace."""
        subprocess.run(["nsenter", "--mount", f"--target={self._server.pid}", *arguments], check=True)

    def seen(self, path: Path) -> Path:
        """Return where this process finds what jobs find at the absolute `path`."""
        return Path(f"/proc/{self._server.pid}/root") / path.relative_to("/")

    def close(self) -> None:
        """End the server and every job that is left."""
        assert self._server.stdin is not None
        self._server.stdin.close()
        self._server.wait(timeout=60)


class Job:
    """One started process.

    Args:
        jobs: the server.
        pid: of the process, and of its group.
        output: files that hold its stdout and stderr.
    """

    def __init__(self, jobs: Jobs, pid: int, output: tuple[Path, Path]) -> None:
        self._jobs = jobs
        self.pid = pid
        self._output = output
        self.exit_code: int | None = None

    def wait(self, timeout_s: float = 120) -> int:
        """Return the exit code; negative: the signal that killed it."""
        code = self.poll(timeout_s)
        assert code is not None, f"still running after {timeout_s} s:\n{self.stdout}\n{self.stderr}"
        return code

    def poll(self, timeout_s: float = 0) -> int | None:
        """Wait so long; return the exit code or None while it runs."""
        if self.exit_code is None:
            self.exit_code = self._jobs.ask(wait=self.pid, timeout_s=timeout_s)
        return self.exit_code

    def signal(self, signum: int, *, group: bool = False) -> None:
        """Send a signal; until `wait` or `poll` saw its end the process id is this job's, dead or alive."""
        if self.exit_code is None:
            (os.killpg if group else os.kill)(self.pid, signum)

    @property
    def stdout(self) -> str:
        return self._output[0].read_text(errors="replace")

    @property
    def stderr(self) -> str:
        return self._output[1].read_text(errors="replace")


# The server's side


def serve() -> None:
    """Obey requests until stdin ends, then kill what is left."""
    for name in PRELOADED:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()  # halves what a job costs: its collections, and its end, pass over all that was imported
    running: set[int] = set()
    try:
        for line in sys.stdin:
            request = json.loads(line)
            if "wait" in request:
                answer = _wait(request["wait"], request["timeout_s"])
                if answer is not None:
                    running.discard(request["wait"])
            else:
                answer = os.fork()
                if answer == 0:
                    running.clear()
                    _run_task(request)
                with suppress(PermissionError, ProcessLookupError):  # the job does it too: whoever is first
                    os.setpgid(answer, answer)
                running.add(answer)
            print(json.dumps(answer), flush=True)
    finally:
        for pid in running:
            os.killpg(pid, signal.SIGKILL)


def _wait(pid: int, timeout_s: float) -> int | None:
    descriptor = os.pidfd_open(pid)
    try:
        if not select.select([descriptor], [], [], timeout_s)[0]:
            return None
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    finally:
        os.close(descriptor)


def _run_task(request: dict[str, Any]) -> NoReturn:
    os.setpgid(0, 0)
    os.chdir(request["cwd"])
    _redirect(*request["output"])
    os.environ.update(request["env"])
    if request["num_ranks"] > 1:
        _fork_ranks(request["num_ranks"])
    from binventory.launch.entry import main

    sys.argv = ["train.py"]
    main(request["task"], request["argv"])
    sys.exit(0)


def _redirect(stdout: str, stderr: str) -> None:
    for name, descriptor, flags in (
        (os.devnull, 0, os.O_RDONLY),
        (stdout, 1, os.O_WRONLY | os.O_CREAT),
        (stderr, 2, os.O_WRONLY | os.O_CREAT),
    ):
        file = os.open(name, flags, 0o644)
        os.dup2(file, descriptor)
        os.close(file)
    sys.stdin = Path(os.devnull).open()  # noqa: SIM115  for the life of the process


class Zygote:
    """A forked process with nothing but the imports done that becomes a rank when told to; a Popen to its parent."""

    def __init__(self, earlier: Sequence[Zygote]) -> None:
        read, self._write = os.pipe()
        self.returncode: int | None = None
        self.pid = os.fork()
        if self.pid == 0:
            for zygote in (*earlier, self):  # else the end of their pipes would never come
                os.close(zygote._write)
            with os.fdopen(read) as orders:
                line = orders.read()
            if not line:
                os._exit(0)
            argv, environment = json.loads(line)
            os.environ.clear()
            os.environ.update(environment)
            sys.argv = argv
            from binventory.launch.__main__ import main

            sys.exit(main())
        os.close(read)

    def become(self, command: Sequence[str], env: dict[str, str]) -> None:
        os.write(self._write, json.dumps([command[2:], env]).encode())
        os.close(self._write)

    def poll(self) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def send_signal(self, signum: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, signum)


def _fork_ranks(num_ranks: int) -> None:
    """Let `python -m binventory.launch SPEC` be a fork of what is imported already."""
    zygotes: list[Zygote] = []
    for _ in range(num_ranks):
        zygotes.append(Zygote(zygotes))
    start_program = subprocess.Popen

    def start(command: Any, *args: Any, **kwargs: Any) -> Any:
        if list(command[: len(LAUNCH)]) != LAUNCH:
            return start_program(command, *args, **kwargs)
        zygote = zygotes.pop(0)
        zygote.become(command, kwargs.pop("env"))
        assert not args
        assert not kwargs, f"ranks are started with {kwargs}, which a fork does not obey"
        return zygote

    subprocess.Popen = start  # type: ignore[assignment,misc]


if __name__ == "__main__":
    serve()
