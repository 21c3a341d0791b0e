"""How the control plane refuses a call: AWS's error codes, answered as AWS's JSON protocol does."""

from __future__ import annotations


class ServiceError(Exception):
    """A call is refused.

    Attributes:
        code: AWS's name of the error, e.g. "ValidationException"; what `ClientError.response["Error"]["Code"]` becomes.
        message: what the client shows.
        status: HTTP status.
    """

    def __init__(self, code: str, message: str, status: int = 400) -> None:
        super().__init__(f"{code}: {message}")
        self.code, self.message, self.status = code, message, status


def invalid(message: str) -> ServiceError:
    """A ValidationException: the request itself is at fault."""
    return ServiceError("ValidationException", message)
