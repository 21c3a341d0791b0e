"""Which signals ask a process to save and leave."""

from __future__ import annotations

import signal

# Besides Ctrl-C and SIGTERM what a terminal that closes and batch systems (Slurm, LSF, Grid Engine) warn a job with.
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU)


def stop_signals() -> list[signal.Signals]:
    """Return the signals that a job saves and leaves on.

    SIGHUP and its like stay ignored where whoever started the process ignores them, as nohup does.
    """
    always = (signal.SIGINT, signal.SIGTERM)
    return [signum for signum in STOP_SIGNALS if signum in always or signal.getsignal(signum) is not signal.SIG_IGN]


def passed_on(signum: int) -> signal.Signals:
    """Return what the other processes of a job get for a signal that this one got: Ctrl-C, or SIGTERM."""
    return signal.SIGINT if signum == signal.SIGINT else signal.SIGTERM
