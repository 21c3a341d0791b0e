"""What a job prints goes to CloudWatch logs while it runs."""

from __future__ import annotations

import threading
import time
from typing import IO, Any

GROUP = "/aws/sagemaker/TrainingJobs"
FLUSH_S = 0.5
MAX_EVENTS = 500  # a call; AWS takes 10,000 and 1 MB
MAX_LINE = 16_000  # characters of an event; AWS takes 256 KB


class LogStream(threading.Thread):
    """Copies lines from a container's output to a stream of GROUP until the output ends.

    Attributes:
        lines: the last ones, for messages.
    """

    def __init__(self, logs: Any, name: str, output: IO[bytes]) -> None:
        super().__init__(name=f"logs of {name}", daemon=True)
        self._logs, self._stream, self._output = logs, name, output
        self._waiting: list[dict[str, Any]] = []
        self._lock = threading.Lock()
        self._ended = threading.Event()
        logs.create_log_stream(logGroupName=GROUP, logStreamName=name)
        self.start()

    def run(self) -> None:
        """Read until the end; a second thread sends, so a slow server does not hold up the job's output."""
        sender = threading.Thread(target=self._send_until_ended, name=f"{self.name} (sending)", daemon=True)
        sender.start()
        for line in self._output:
            text = line.decode("utf-8", "replace").rstrip("\r\n")[:MAX_LINE]
            with self._lock:
                # CloudWatch takes no empty message
                self._waiting.append({"timestamp": time.time_ns() // 1_000_000, "message": text or " "})
        self._ended.set()
        sender.join()
        self._output.close()

    def _send_until_ended(self) -> None:
        is_last = False
        while not is_last:
            is_last = self._ended.wait(FLUSH_S)
            with self._lock:
                events, self._waiting = self._waiting, []
            for first in range(0, len(events), MAX_EVENTS):
                part = events[first : first + MAX_EVENTS]
                self._logs.put_log_events(logGroupName=GROUP, logStreamName=self._stream, logEvents=part)
