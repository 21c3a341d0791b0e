"""S3, STS, IAM and logs: moto's server, a process that ends when its owner does, and lets in who has the keys."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import threading

from binventory.errors import ConfigError
from binventory.sagemaker.local.guard import MAX_OBJECT_BYTES, GuardedHandler, Keys


class MotoServer:
    """A moto server on a free port of 127.0.0.1; `url` is its endpoint for every service, `keys` open it."""

    def __init__(self, keys: Keys) -> None:
        if importlib.util.find_spec("moto") is None:
            raise ConfigError("binventory sagemaker local: moto is not installed; pip install 'moto[s3,server]'")
        self._process = subprocess.Popen(  # noqa: S603 (our own program)
            [sys.executable, "-m", __name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,  # Ctrl-C is for its owner, which still needs it to end the jobs
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(keys) + "\n")  # no argument or variable, which others may see
        self._process.stdin.flush()
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


def main() -> None:
    """Serve until stdin ends, so also when the owner is killed. The first line of stdin is the keys."""
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
    from werkzeug.serving import make_server

    class Handler(GuardedHandler, MotoRequestHandler):
        keys = Keys(*json.loads(sys.stdin.readline()))
        max_object_bytes = MAX_OBJECT_BYTES

    app = DomainDispatcherApplication(create_backend_app)
    server = make_server("127.0.0.1", 0, app, threaded=True, request_handler=Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(*server.server_address[:2], flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
