"""Work in threads that nobody has to wait for: a signal ends the process whatever the server, or its name's, does."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterable
from typing import TypeVar

from binventory.data.sources.watch import StoppedError

T = TypeVar("T")

LOOK_EVERY_S = 0.2
LEAVE_S = 1.5  # threads end at once when they are stopped, but for one that connects or looks up a name


def in_parallel(
    items: Iterable[T], work: Callable[[T], None], num_threads: int, stop: threading.Event, look: Callable[[], None]
) -> None:
    """Call `work` with each item, in threads that draw from one iterator; nothing is queued however many there are.

    The first exception, also one of `look` or a signal's handler, sets `stop`, which ends all, and is raised.

    Args:
        items: what there is to do.
        work: raises StoppedError when `stop` was set.
        num_threads: at most that many are worked on at once.
        stop: ends the threads; `work` has to heed it.
        look: called five times a second by the thread that waits, and at the end.
    """
    left, lock = iter(items), threading.Lock()
    failures: list[BaseException] = []

    def run() -> None:
        try:
            while not stop.is_set():
                with lock:
                    item = next(left, left)
                if item is left:
                    return
                work(item)  # type: ignore[arg-type]
        except StoppedError:
            return
        except BaseException as error:  # noqa: BLE001  raised again by the thread that waits
            failures.append(error)
            stop.set()

    threads = [threading.Thread(target=run, name=f"s3_{number}", daemon=True) for number in range(num_threads)]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            while thread.is_alive() and not failures:
                thread.join(LOOK_EVERY_S)
                look()
    except BaseException:
        stop.set()
        raise
    finally:
        latest = time.monotonic() + LEAVE_S
        for thread in threads:
            if thread.ident is not None:
                thread.join(max(0.0, latest - time.monotonic()))
    if failures:
        raise failures[0]


def aside(send: Callable[[], T], within_s: float = math.inf) -> T:
    """Return what `send` returns, called in another thread: in the main thread no handler of a signal would run while
    a name is looked up.

    Raises:
        TimeoutError: it took longer than `within_s` seconds; it may still be at it.
    """
    returned: list[T] = []
    failures: list[BaseException] = []

    def run() -> None:
        try:
            returned.append(send())
        except BaseException as error:  # noqa: BLE001  raised again by the thread that waits
            failures.append(error)

    thread = threading.Thread(target=run, name="s3_aside", daemon=True)
    thread.start()
    latest = time.monotonic() + within_s
    while thread.is_alive():
        thread.join(LOOK_EVERY_S)
        if thread.is_alive() and time.monotonic() > latest:
            raise TimeoutError(f"no answer in {within_s:g} s")
    if failures:
        raise failures[0]
    return returned[0]
