"""What training jobs and their S3 prefixes are called: valid, unique, and traceable to the sweep's folder."""

from __future__ import annotations

import hashlib
import re

from binventory.data.sources.s3 import SCHEME, split_uri
from binventory.errors import ConfigError

MAX_JOB_NAME_CHARS = 63
MAX_URI_CHARS = 1024  # of an S3 URI in a request
MAX_SWEEP_CHARS = 40  # leaves 23 characters for the job's number and attempt
HASH_CHARS = 10

# Written as it is: words of lower-case letters and digits, with single hyphens or underscores between them. A hyphen
# stays one and an underscore becomes two, so that no two such names are written alike.
_PLAIN = re.compile(r"[a-z0-9]+(?:[-_][a-z0-9]+)*")
_LOOKS_CUT = re.compile(rf"(?:^|.*-)[0-9a-f]{{{HASH_CHARS}}}")


def job_name(sweep: str, number: int, attempt: int = 0) -> str:
    """Name a job for CreateTrainingJob: `<sweep>-<number>`, in a later attempt `<sweep>-<number>r<attempt>`.

    Args:
        sweep: name of the sweep's folder, any text. What a job name cannot hold is replaced, what is too long is cut,
            and a hash of the whole text is added then.
        number: the job's number in the sweep, from 0.
        attempt: how often the same job was submitted before; a job's name is used up for good.

    Returns:
        At most 63 letters, digits and hyphens; another name for every other sweep, number or attempt.
    """
    assert 0 <= number < 10**12, number
    assert 0 <= attempt < 10**8, attempt
    return f"{name_prefix(sweep)}{number}" + (f"r{attempt}" if attempt else "")


def name_prefix(sweep: str) -> str:
    """Return what the names of all of a sweep's jobs begin with."""
    return f"{_part(sweep)}-"


def sweep_uri(s3_uri: str, sweep: str) -> str:
    """Return the S3 prefix of a sweep, `<s3_uri>/<sweep>`, without a slash at the end.

    Args:
        s3_uri: `s3://bucket` or `s3://bucket/prefix`.
        sweep: name of the sweep's folder, any text; written as in its jobs' names.

    Raises:
        InputError: `s3_uri` names no bucket.
        ConfigError: `s3_uri` holds what an S3 prefix cannot, or is too long.
    """
    bucket, prefix = check_s3_uri(s3_uri)
    return SCHEME + "/".join(part for part in (bucket, prefix, _part(sweep)) if part)


def check_s3_uri(s3_uri: str) -> tuple[str, str]:
    """Return the bucket and the prefix of `s3_uri`, which our keys are added to. Raises as `sweep_uri`."""
    if not s3_uri.startswith(SCHEME):
        raise ConfigError(f"s3_uri={s3_uri[:200]}: is no S3 URI; write s3://BUCKET or s3://BUCKET/PREFIX")
    bucket, prefix = split_uri(s3_uri)
    key = prefix
    prefix = key.removesuffix("/")
    is_plain = not key or not {"", ".", ".."}.intersection(prefix.split("/"))
    if not is_plain or not prefix.isprintable() or "\\" in prefix:
        raise ConfigError(f"s3_uri={s3_uri[:200]!r}: the prefix must be names with single slashes between them")
    if len(s3_uri) > MAX_URI_CHARS - 200:
        raise ConfigError(f"s3_uri={s3_uri[:60]}…: {len(s3_uri)} characters; S3 takes {MAX_URI_CHARS} with our names")
    return bucket, prefix


def _part(sweep: str) -> str:
    """The sweep's part of a name: lower case, since some of the names that AWS makes of it know no other."""
    name = sweep.replace("_", "--")
    if _PLAIN.fullmatch(sweep) and len(name) <= MAX_SWEEP_CHARS and not _LOOKS_CUT.fullmatch(name):
        return name
    # names of files that are no UTF-8 come as half surrogate pairs
    digest = hashlib.sha256(sweep.encode("utf-8", "surrogatepass")).hexdigest()[:HASH_CHARS]
    kept = re.sub(r"[^a-z0-9]+", "-", sweep.lower())[: MAX_SWEEP_CHARS - HASH_CHARS - 1].strip("-")
    return f"{kept}-{digest}" if kept else digest
