"""`binventory sagemaker local`: the control plane until Ctrl-C."""

from __future__ import annotations

import shlex
import signal
import threading
from collections.abc import Sequence

from binventory.sagemaker.local.server import LocalSageMaker
from binventory.sagemaker.local.toolkit import toolkit_python


def serve(local: LocalSageMaker, faults: Sequence[str]) -> None:
    """Start everything, print the lines that lead a shell's AWS clients here, run until SIGINT or SIGTERM.

    Jobs are then stopped without grace. A second signal changes nothing: what was begun is cleared away.

    Args:
        local: not yet entered.
        faults: see Faults.add_text.

    Raises:
        ConfigError: a fault cannot be read, or the port cannot be used.
        InputError: the training toolkit could not be installed.
    """
    for text in faults:
        local.faults.add_text(text)
    toolkit_python(local.cache)  # else the first job would wait for it
    is_over = threading.Event()
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, lambda *_: is_over.set())
    with local:
        for name, value in local.environment.items():
            print(f"export {name}={shlex.quote(value)}")
        print("unset AWS_PROFILE AWS_SESSION_TOKEN")
        print(f"# role: {local.role_arn}; stop with Ctrl-C", flush=True)
        is_over.wait()
    refused = sorted(set(local.unknown))
    if refused:
        print(f"# called, but not there: {', '.join(refused)}")
