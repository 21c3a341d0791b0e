"""Parts of one's own, as a user would write them, that handle secrets and fail."""

from __future__ import annotations

import logging
import os
from typing import Any

from pytorch_lightning.loggers import CSVLogger

from binventory.objectives.classification import Classification

log = logging.getLogger(__name__)


class KeyedLogger(CSVLogger):
    """A logger of a service that wants a key."""

    def __init__(self, save_dir: str, url: str, api_key: str, pin: dict[str, Any], more: dict[str, Any]) -> None:
        super().__init__(save_dir, name="", version="keyed")
        assert "redacted" not in f"{url}{api_key}{pin}{more}", "the run itself has the real values"
        assert pin["c"] == 8375520946
        log.warning("logging to %s with api_key=%s and %s for %s", url, api_key, pin, more["note"])
        try:
            raise ConnectionError(f"no answer from {url}")
        except ConnectionError:
            log.exception("trying again")


class FailingObjective(Classification):
    """Fails as libraries do: with the request and the environment in the message."""

    def __init__(self, counts: Any, upload_url: str) -> None:
        super().__init__(counts)
        self.upload_url = upload_url

    def loss(self, outputs: Any, target: Any) -> Any:
        secrets = {name: value for name, value in os.environ.items() if name.startswith(("AWS_", "WANDB_"))}
        header = f"Authorization: Bearer {os.environ['AWS_SESSION_TOKEN']}"
        try:
            raise ConnectionError(f"PUT {self.upload_url} failed: 403; {header}")
        except ConnectionError as error:
            raise RuntimeError(f"cannot upload to {self.upload_url} with environment {secrets!r}") from error
