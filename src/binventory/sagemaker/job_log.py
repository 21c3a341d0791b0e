"""A training job's log in CloudWatch, followed into output.log of its run folder."""

from __future__ import annotations

import os
from collections import deque
from pathlib import Path
from typing import IO, Any

from binventory.config.capture import redact_text
from binventory.files import open_own
from binventory.sagemaker.aws import Aws, CallError

GROUP = "/aws/sagemaker/TrainingJobs"
TAIL_LINES = 40


class JobLog:
    """Reads on from where it was.

    Args:
        aws: where the log is.
        name: of the training job.
        path: file that lines are added to; None: none.

    Attributes:
        tail: the last lines.
    """

    def __init__(self, aws: Aws, name: str, path: Path | None) -> None:
        self._aws, self._name, self._path = aws, name, path
        self._positions: dict[str, Any] = {}
        self.tail: deque[str] = deque(maxlen=TAIL_LINES)
        if path is not None and path.exists():  # another process read it before: all of it is read again
            path.unlink()

    def read(self) -> None:
        """Take over what is new. Raises CallError."""
        try:
            streams = self._aws.call("DescribeLogStreams", self._streams)
            if streams:
                self._aws.call("GetLogEvents", lambda: self._follow(streams))
        except CallError as error:
            if error.code != "ResourceNotFoundException":  # no job of this account has logged anything yet
                raise

    def _streams(self) -> list[str]:
        found = self._aws.logs.describe_log_streams(logGroupName=GROUP, logStreamNamePrefix=f"{self._name}/")
        return sorted(stream["logStreamName"] for stream in found["logStreams"])

    def _follow(self, streams: list[str]) -> None:
        from sagemaker.core.logs import Position, multi_stream_iter

        for stream in streams:
            self._positions.setdefault(stream, Position(timestamp=0, skip=0))
        file: IO[str] | None = None
        try:
            for number, event in multi_stream_iter(self._aws.logs, GROUP, streams, dict(self._positions)):
                before, skip = self._positions[streams[number]]
                moment = event["timestamp"]
                self._positions[streams[number]] = Position(moment, skip + 1 if moment == before else 1)
                line = redact_text(event["message"].rstrip("\n"))
                if len({_host(stream) for stream in streams}) > 1:
                    line = f"[{_host(streams[number])}] {line}"
                self.tail.append(line)
                if self._path is not None:
                    file = file or _appending(self._path)
                    file.write(line + "\n")
        finally:
            if file is not None:
                file.close()


def _appending(path: Path) -> IO[str]:
    return os.fdopen(open_own(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), "a", encoding="utf-8")


def _host(stream: str) -> str:
    """Of a stream's name, `JOB/algo-1-1700000000`: a restarted job has further streams of the same host."""
    return stream.partition("/")[2].rpartition("-")[0]
