"""A job on several machines: here each is a call of `run_ranks` in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from binventory.config.capture import to_plain
from binventory.config.compose import compose_checked
from binventory.launch.ranks import _free_port
from binventory.launch.spec import JobSpec
from tests.launch.test_runner import start, status, write_spec
from tests.running import TINY

PORT = 29_517  # nobody listens: these jobs only say where they are


def node(rank: int, num_processes: int, port: int = PORT) -> tuple[str, ...]:
    """The program of one machine of two."""
    return (
        "-c", "import sys; from pathlib import Path; from binventory.launch.ranks import Node, run_ranks;"
        "from binventory.launch.spec import JobSpec;"
        f"sys.exit(run_ranks(JobSpec.load(Path(sys.argv[1])), {num_processes}, Node({rank}, 2, '127.0.0.1', {port})))",
    )  # fmt: skip


def specs(tmp_path: Path, task: str) -> list[Path]:
    """A run folder on each machine."""
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
    return [write_spec(tmp_path / name, task) for name in ("first", "second")]


def test_ranks_are_numbered_over_all_machines_and_the_first_one_writes(tmp_path: Path) -> None:
    first, second = specs(tmp_path, "tell_place")
    for rank, spec in enumerate((first, second)):
        process = start(spec, *node(rank, 2))
        _, stderr = process.communicate(timeout=60)
        assert process.returncode == 0, stderr
    told = [json.loads((first.parent.parent.parent / name / "run" / f"place{rank}.json").read_text())
            for rank, name in enumerate(["first", "first", "second", "second"])]  # fmt: skip
    assert [(each["RANK"], each["LOCAL_RANK"], each["NODE_RANK"]) for each in told] == [
        ("0", "0", "0"), ("1", "1", "0"), ("2", "0", "1"), ("3", "1", "1")
    ]  # fmt: skip
    assert {(each["WORLD_SIZE"], each["LOCAL_WORLD_SIZE"], each["MASTER_PORT"]) for each in told} == {
        ("4", "2", str(PORT))
    }
    assert status(first)["state"] == "done"
    assert not (second.parent / "status.json").exists()
    assert not (second.parent / "config.yaml").exists()


def test_a_rank_that_is_killed_on_another_machine_is_named_there(tmp_path: Path) -> None:
    _, second = specs(tmp_path, "killed_on_rank_2")
    process = start(second, *node(1, 2))
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "rank 2 was killed by SIGKILL; the other ranks of this machine were stopped" in stderr
    assert not (second.parent / "status.json").exists(), "the job's folder is elsewhere"


@pytest.mark.long
def test_a_training_on_two_machines(workplace: Path, trained: Path) -> None:
    """One process on each: the same figures as two processes on one machine."""
    port, folders = _free_port(), [workplace / "two-machines" / name for name in ("first", "second")]
    config = to_plain(compose_checked("train", [*TINY, "trainer=ddp_cpu", "trainer.devices=2", "seed=5"])[0])
    config["trainer"] |= {"devices": 1, "num_nodes": 2}
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}  # the number of threads shows in the last bits
    processes = []
    for rank, folder in enumerate(folders):
        folder.mkdir(parents=True)
        JobSpec("binventory.tasks.train:run", config, str(folder), []).save(folder / "job.json")
        command = [sys.executable, *node(rank, 1, port), str(folder / "job.json")]
        processes.append(subprocess.Popen(command, cwd=workplace, env=environment, stderr=subprocess.PIPE, text=True))
    for process in processes:
        _, stderr = process.communicate(timeout=240)
        assert process.returncode == 0, stderr
    alone = workplace / "one-machine"
    alone.mkdir()
    config["trainer"] |= {"devices": 2, "num_nodes": 1}
    JobSpec("binventory.tasks.train:run", config, str(alone), []).save(alone / "job.json")
    program = (
        "import sys; from pathlib import Path; from binventory.launch.ranks import run_ranks;"
        "from binventory.launch.spec import JobSpec; sys.exit(run_ranks(JobSpec.load(Path(sys.argv[1])), 2))"
    )
    command = [sys.executable, "-c", program, str(alone / "job.json")]
    subprocess.run(command, cwd=workplace, env=environment, check=True, timeout=240)
    figures = [json.loads((folder / "metrics.json").read_text()) for folder in (folders[0], alone)]
    assert figures[0]["test"] == figures[1]["test"]
    assert figures[0]["val"] == figures[1]["val"]
    assert not (folders[1] / "metrics.json").exists()
