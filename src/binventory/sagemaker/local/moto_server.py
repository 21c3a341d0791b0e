"""S3, STS, IAM and logs: moto's server, a process that ends when its owner does."""

from __future__ import annotations

import importlib.util
import subprocess
import sys

from binventory.errors import ConfigError

# Ends when its stdin does, so also when its owner is killed
PROGRAM = """
import sys
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
server.start()
print(*server.get_host_and_port(), flush=True)
sys.stdin.read()
"""


class MotoServer:
    """A moto server on a free port of 127.0.0.1; `url` is its endpoint for every service."""

    def __init__(self) -> None:
        if importlib.util.find_spec("moto") is None:
            raise ConfigError("binventory sagemaker local: moto is not installed; pip install 'moto[s3,server]'")
        self._process = subprocess.Popen(  # noqa: S603 (our own program)
            [sys.executable, "-c", PROGRAM],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,  # Ctrl-C is for its owner, which still needs it to end the jobs
        )
        assert self._process.stdout is not None
        answer = self._process.stdout.readline().split()
        if len(answer) != 2:
            self.close()
            raise ConfigError("moto's server did not start; try: python -m moto.server")
        self.url = f"http://{answer[0]}:{answer[1]}"

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(timeout=20)
        self._process.stdout.close()
