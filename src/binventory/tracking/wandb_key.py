"""Whether there is a key for the W&B server, found out without the client asking for one."""

from __future__ import annotations

import wandb
from wandb.sdk.lib.wbauth import read_netrc_auth

from binventory.config.capture import one_line
from binventory.errors import ConfigError


def has_key() -> bool:
    """Say whether the client would find a key: WANDB_API_KEY, an identity token, or what `wandb login` wrote.

    Raises:
        ConfigError: what `wandb login` wrote cannot be a key.
    """
    settings = wandb.setup().settings
    if settings.api_key or settings.identity_token_file:
        return True
    try:
        return read_netrc_auth(host=settings.base_url) is not None
    except wandb.errors.AuthenticationError as error:
        raise ConfigError(f"W&B: {one_line(str(error))}; run `wandb login`") from error
