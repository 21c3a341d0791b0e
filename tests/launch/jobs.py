"""Tasks that a job spec can name, for the tests of the runner."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

from binventory.errors import InputError


def succeed(config: Any, run_dir: Path) -> float:
    (run_dir / f"rank{os.environ.get('RANK', '0')}.txt").write_text(str(config.value))
    return float(config.value)


def fail(config: Any, run_dir: Path) -> None:
    raise RuntimeError("something broke at https://user:hidden@example.org/")


def refuse(config: Any, run_dir: Path) -> None:
    raise InputError("data.source=x:\nno such folder")


def leave(config: Any, run_dir: Path) -> None:
    raise SystemExit(0)


def wait(config: Any, run_dir: Path) -> None:
    (run_dir / f"ready{os.environ.get('RANK', '0')}").touch()
    time.sleep(60)


def fail_on_rank_1(config: Any, run_dir: Path) -> None:
    if os.environ["RANK"] == "1":
        raise RuntimeError("rank 1 broke")
    wait(config, run_dir)


def killed_on_rank_1(config: Any, run_dir: Path) -> None:
    if os.environ["RANK"] == "1":
        os.kill(os.getpid(), signal.SIGKILL)
    wait(config, run_dir)


def wait_with_pid(config: Any, run_dir: Path) -> None:
    path = run_dir / f"pid{os.environ['RANK']}"
    path.with_suffix(".new").write_text(str(os.getpid()))
    path.with_suffix(".new").rename(path)
    time.sleep(60)


def tell(config: Any, run_dir: Path) -> None:
    told = {"token": config.token, "variables": sorted(os.environ)}
    (run_dir / f"told{os.environ['RANK']}.json").write_text(json.dumps(told))


def tell_place(config: Any, run_dir: Path) -> None:
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT")
    path = run_dir / f"place{os.environ['RANK']}.json"
    path.write_text(json.dumps({name: os.environ[name] for name in names}))


def killed_on_rank_2(config: Any, run_dir: Path) -> None:
    if os.environ["RANK"] == "2":
        os.kill(os.getpid(), signal.SIGKILL)
    if os.environ["RANK"] == "3":
        wait(config, run_dir)
