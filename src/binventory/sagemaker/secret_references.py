"""Secrets by reference: a request names where a secret lies, the container reads it there with the job's role."""

from __future__ import annotations

import json
import os
import re
from typing import Any

from binventory.config.capture import one_line
from binventory.errors import InputError

REFERENCES_VARIABLE = "BINVENTORY_SECRETS"  # JSON: variable -> reference
REFERENCE = re.compile(r"(secretsmanager|ssm):([\w/+=.@:-]{1,2048})")


def set_secrets() -> None:
    """Set the variables that the environment holds references for.

    Raises:
        InputError: a reference is none, or what it names cannot be read; names the variable and the reference.
    """
    for name, reference in json.loads(os.environ.pop(REFERENCES_VARIABLE, "{}")).items():
        match = REFERENCE.fullmatch(reference)
        if match is None:
            raise InputError(f"secrets.{name} holds no reference; write secretsmanager:NAME or ssm:NAME")
        os.environ[name] = _read(name, *match.groups())


def _read(variable: str, service: str, name: str) -> str:
    import boto3
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        client: Any = boto3.client(service)  # type: ignore[call-overload]
        if service == "ssm":
            return str(client.get_parameter(Name=name, WithDecryption=True)["Parameter"]["Value"])
        return str(client.get_secret_value(SecretId=name)["SecretString"])
    except (BotoCoreError, ClientError, KeyError) as error:
        raise InputError(
            f"secrets.{variable} cannot be read at {service}:{name} ({one_line(str(error))});"
            " is the name right, and may the job's role read it?"
        ) from error
