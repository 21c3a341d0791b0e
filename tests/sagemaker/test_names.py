"""Names of jobs and prefixes: whatever a sweep is called, AWS takes the name and no two jobs share one."""

from __future__ import annotations

import re

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from binventory.errors import UserError
from binventory.sagemaker.names import job_name, sweep_uri

# As botocore's model of CreateTrainingJob has it.
TRAINING_JOB_NAME = re.compile(r"[a-zA-Z0-9](-*[a-zA-Z0-9]){0,62}")
S3_URI = re.compile(r"(https|s3)://([^/]+)/?(.*)")

# Any text, also what file names that are no UTF-8 look like.
SWEEPS = st.one_of(
    st.text(st.characters(), max_size=400),
    st.text("ab-_/ AB0é", max_size=8),  # few characters: near misses
    st.from_regex(r"[a-z0-9]{1,8}([-_][a-z0-9]{1,8}){0,8}", fullmatch=True),
)
JOBS = st.tuples(SWEEPS, st.integers(0, 10**6), st.integers(0, 30))


@settings(deadline=None)  # other processes may have the cores
@given(JOBS)
@example(("x" * 300, 0, 0))
@example(("", 0, 0))
@example((" /..//é\n", 10**12 - 1, 10**8 - 1))
@example(("_" * 40, 1, 0))
def test_every_name_is_valid(job: tuple[str, int, int]) -> None:
    name = job_name(*job)
    assert len(name) <= 63
    assert TRAINING_JOB_NAME.fullmatch(name)
    uri = sweep_uri("s3://bucket/some/prefix", job[0])
    assert len(uri) <= 1024
    assert re.fullmatch(r"s3://bucket/some/prefix/[a-z0-9-]+", uri)


@settings(deadline=None)  # other processes may have the cores
@given(JOBS, JOBS)
@example(("a-b", 1, 0), ("a_b", 1, 0))
@example(("a--b", 1, 0), ("a_b", 1, 0))
@example(("Sweep", 1, 0), ("sweep", 1, 0))
@example(("a", 11, 0), ("a-1", 1, 0))
@example(("x" * 300, 1, 0), ("x" * 301, 1, 0))
@example(("a", 1, 1), ("a", 1, 0))
@example(("é", 1, 0), ("è", 1, 0))
def test_distinct_jobs_have_distinct_names(one: tuple[str, int, int], other: tuple[str, int, int]) -> None:
    assert (job_name(*one) == job_name(*other)) == (one == other)
    assert (sweep_uri("s3://b", one[0]) == sweep_uri("s3://b", other[0])) == (one[0] == other[0])


@settings(deadline=None)  # other processes may have the cores
@given(SWEEPS)
@example("a b")
def test_a_cut_name_is_not_the_name_of_a_sweep_that_is_called_so(sweep: str) -> None:
    made = job_name(sweep, 0).removesuffix("-0")
    assert made == sweep.replace("_", "--") or job_name(made, 0) != job_name(sweep, 0)


def test_names_tell_the_sweep_and_the_job() -> None:
    assert job_name("2026-11-22_10-20-30-ab12", 3) == "2026-11-22--10-20-30-ab12-3"
    assert job_name("2026-11-22_10-20-30-ab12", 3, attempt=2) == "2026-11-22--10-20-30-ab12-3r2"
    assert re.fullmatch(
        r"learning-rate-sweep-for-the-n-[0-9a-f]{10}-12", job_name("Learning rate sweep for the night shift", 12)
    )
    assert sweep_uri("s3://bucket/", "night") == "s3://bucket/night"


@pytest.mark.parametrize(
    ("s3_uri", "said"),
    [
        ("bucket/prefix", "s3_uri=bucket/prefix: is no S3 URI; write s3://BUCKET"),
        ("s3://", "names no bucket"),
        ("s3:///prefix", "names no bucket"),
        ("s3://two words/x", "names no bucket"),
        ("s3://bucket/a//b", "single slashes"),
        ("s3://bucket/../b", "single slashes"),
        ("s3://bucket/a\nb", "single slashes"),
        ("s3://bucket/" + "a" * 1000, "1012 characters"),
    ],
)
def test_malformed_s3_uri(s3_uri: str, said: str) -> None:
    with pytest.raises(UserError, match=re.escape(said)) as caught:
        sweep_uri(s3_uri, "sweep")
    assert "\n" not in str(caught.value)
