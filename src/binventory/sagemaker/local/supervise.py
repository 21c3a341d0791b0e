"""Stands in for one container: started as a file by the toolkit's Python, with the standard library only.

`supervise.py SETTINGS.json` mounts what the settings name (it then lies in a mount namespace of its own), starts the
command in a process group of its own and obeys lines on stdin: TERM signals the group; KILL, or the end of stdin (the
control plane is gone), ends everything. It leaves with the command's exit status once no process is left.
"""

import contextlib
import ctypes
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

PR_SET_CHILD_SUBREAPER = 36


def mount(*arguments: str) -> None:
    """Call mount(8)."""
    subprocess.run(["mount", *arguments], check=True)  # noqa: S603, S607 (ours; where mount lies differs)


def bind_folder(source: str, target: Path, staging: Path) -> None:
    """Show `source` at `target`; where that does not exist, its parent is rebuilt in memory, so the disk keeps nothing.

    `staging` is an empty folder; its parent mount must not be shared with other namespaces.
    """
    if not target.is_dir():
        mount("-t", "tmpfs", "tmpfs", str(staging))
        for entry in target.parent.iterdir():
            twin = staging / entry.name
            if entry.is_symlink():
                twin.symlink_to(entry.readlink())
                continue
            if entry.is_dir():
                twin.mkdir()
            else:
                twin.touch()
            mount("--rbind", str(entry), str(twin))
        (staging / target.name).mkdir()
        mount("--move", str(staging), str(target.parent))
    mount("--bind", source, str(target))


def descendants(pid: int) -> list[int]:
    """Processes below `pid`, of any process group."""
    found: list[int] = []
    for listing in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            children = [int(child) for child in listing.read_text().split()]
        except OSError:  # the thread has ended meanwhile
            continue
        for child in children:
            found += [child, *descendants(child)]
    return found


class Container:
    """The command and everything it starts."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self.process = subprocess.Popen(  # noqa: S603 (to run it is the purpose)
            settings["command"],
            env=settings["environment"],
            cwd=settings["cwd"],
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        self.is_asked_to_stop = False

    def obey(self) -> None:
        """Read orders until stdin ends, then end everything."""
        for line in sys.stdin:
            if line.strip() == "KILL":
                break
            self.is_asked_to_stop = True
            self.signal_group(signal.SIGTERM)
        while True:  # a process may be forked while the others are being killed
            self.kill_all()
            time.sleep(0.05)

    def signal_group(self, signum: int) -> None:
        """Signal the command's process group, if any of it is left."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signum)

    def kill_all(self) -> None:
        """Kill what is left, other process groups included."""
        self.signal_group(signal.SIGKILL)
        for pid in descendants(os.getpid()):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def wait(self) -> int:
        """Wait for all processes; return the command's exit status, 128 + signal for a killed one."""
        status = 0
        while True:
            try:
                pid, raw = os.wait()
            except ChildProcessError:
                return status
            if pid == self.process.pid:
                status = os.waitstatus_to_exitcode(raw)
                status = 128 - status if status < 0 else status
                # A container ends with its first process. That one dies of the SIGTERM that the others may still use.
                if not self.is_asked_to_stop:
                    self.kill_all()


def main() -> int:
    """Run the command of a settings file."""
    settings = json.loads(Path(sys.argv[1]).read_text())
    if settings["mounts"]:
        socket.sethostname(settings["hostname"])
        for source, target in settings["mounts"]:
            if Path(source).is_dir():
                bind_folder(source, Path(target), Path(settings["staging"]))
            else:
                mount("--bind", source, target)
    if sys.platform == "linux":  # orphans come to this process, so none is overlooked
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    if shutil.which(settings["command"][0]) is None:
        print(f"{settings['command'][0]}: not there", file=sys.stderr)
        return 127
    container = Container(settings)
    threading.Thread(target=container.obey, daemon=True).start()
    return container.wait()


if __name__ == "__main__":
    sys.stdout.flush()
    os._exit(main())  # the thread that reads stdin must not delay the end
