"""Caches that are built, read and removed at once: what a run has mapped never changes."""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from filelock import FileLock
from typer.testing import CliRunner

from binventory.cli import app
from binventory.data.cache import build as building
from binventory.data.cache import manage
from binventory.data.cache.build import build_rows
from binventory.data.cache.manage import list_caches, prune_caches
from binventory.data.cache.pack import FEATURES, JOURNAL, LOCK, META, PHOTOS, Kind, Pack
from binventory.errors import InputError
from binventory.files import locked

SHAPES = {PHOTOS: (40, 64, 64, 3), FEATURES: (40, 2, 64)}
KINDS = pytest.mark.parametrize("kind", [PHOTOS, FEATURES], ids=lambda kind: kind.folder)


def pack_in(cache_dir: Path, kind: Kind = PHOTOS, name: str = "a") -> Pack:
    facts = {"model": name, "precision": "32", "image_size": 64, "resize": name, "interpolation": "bilinear"}
    return Pack.at(cache_dir, kind, facts, SHAPES[kind])


def rows_of(pack: Pack, rows: range) -> tuple[Any, dict[int, str]]:
    numbers = np.arange(1 + rows.start, 1 + rows.stop).reshape(-1, *[1] * (len(pack.shape) - 1))
    return np.broadcast_to(numbers, (len(rows), *pack.shape[1:])).astype(pack.kind.dtype), {}


def wanted(pack: Pack) -> Any:
    return rows_of(pack, range(pack.num_photos))[0]


def build(pack: Pack, bad: dict[int, str] | None = None) -> Any:
    """Build a pack; the rows of `bad` are zeros."""

    def make(rows: range) -> tuple[Any, dict[int, str]]:
        made = np.ascontiguousarray(rows_of(pack, rows)[0])
        found = {row: reason for row, reason in (bad or {}).items() if row in rows}
        made[[row - rows.start for row in found]] = 0
        return made, found

    return build_rows(pack, make, 1, "rows").rows


def prune(cache_dir: Path, days: object = 0) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["cache", "prune", "--cache-dir", str(cache_dir), "--unused-days", str(days)])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, done.output


def opened(pack: Pack) -> Any:
    rows = pack.open()
    return build(pack) if rows is None else rows


@pytest.mark.parametrize("days", ["1000000", "1e300", "inf"])
def test_no_number_of_days_is_too_many(days: str, tmp_path: Path) -> None:
    pack = pack_in(tmp_path)
    build(pack)
    assert prune(tmp_path, days) == (0, "")
    assert pack.open() is not None


@KINDS
def test_what_a_run_reads_is_kept_and_removed_afterwards(kind: Kind, tmp_path: Path) -> None:
    pack = pack_in(tmp_path, kind)
    rows = build(pack)
    assert prune(tmp_path) == (0, f"kept {pack.folder}: a run reads it\n")
    np.testing.assert_array_equal(pack.open(), wanted(pack))
    del rows
    code, said = prune(tmp_path)
    assert (code, said.startswith(f"removed {pack.folder}")) == (0, True)
    assert list(pack.folder.parent.iterdir()) == []
    np.testing.assert_array_equal(opened(pack), wanted(pack))


@KINDS
def test_mending_leaves_what_is_mapped_as_it_is(kind: Kind, tmp_path: Path) -> None:
    """One run found a row bad; the next finds it good and another one bad: the first still has its own."""
    pack = pack_in(tmp_path, kind)
    first = build(pack, {3: "gone"})
    before = np.array(first)
    second = build(pack, {5: "gone"})
    np.testing.assert_array_equal(first, before)
    assert not second[5].any()
    assert second[3].any()
    third = build(pack)
    np.testing.assert_array_equal(third, wanted(pack))
    assert not second[5].any()
    with pack.path.open("rb+") as file:  # damage in the file that is mapped, and its mending
        file.write(bytes(pack.row_bytes))
    assert not third[0].any()
    assert pack.open() is None
    np.testing.assert_array_equal(opened(pack), wanted(pack))
    assert not third[0].any(), "another file"


def test_a_killed_build_goes_on_in_its_file(tmp_path: Path) -> None:
    """Nobody maps it, so its blocks are not copied."""
    pack = pack_in(tmp_path)
    build(pack, {3: "gone"})
    inode = pack.path.stat().st_ino
    build(pack)
    assert pack.path.stat().st_ino == inode


def test_pruned_while_it_is_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the look at meta.json, before the file of the rows is opened; and after that."""
    pack = pack_in(tmp_path)
    build(pack)
    looked = Pack.is_finished

    def then_pruned(self: Pack) -> bool:
        found = looked(self)
        prune_caches(tmp_path, 0)
        return found

    monkeypatch.setattr(Pack, "is_finished", then_pruned)
    assert pack.open() is None
    monkeypatch.setattr(Pack, "is_finished", looked)
    np.testing.assert_array_equal(opened(pack), wanted(pack))

    kept = []
    leased = Pack._damage_of

    def pruned_now(self: Pack, *args: Any, **options: Any) -> str | None:
        kept.extend(prune_caches(tmp_path, 0).kept)
        return leased(self, *args, **options)

    monkeypatch.setattr(Pack, "_damage_of", pruned_now)
    rows = pack.open()
    assert [reason for _, reason in kept] == ["a run reads it"]
    np.testing.assert_array_equal(rows, wanted(pack))


def test_who_waits_for_a_folder_that_is_removed_gets_the_next_one(tmp_path: Path) -> None:
    """Three processes: one removes the folder while two wait for its lock. They do not build at the same time."""
    pack = pack_in(tmp_path)
    pack.folder.mkdir(parents=True)
    read, write = os.pipe()

    def build_and_tell() -> None:
        def make(rows: range) -> tuple[Any, dict[int, str]]:
            os.write(write, b"<")
            time.sleep(0.1)
            os.write(write, b">")
            return rows_of(pack, rows)

        build_rows(pack, make, 1, "rows")

    with locked(pack.folder / LOCK):
        children = [forked(build_and_tell) for _ in range(2)]
        time.sleep(0.3)
        shutil.rmtree(pack.folder)
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0]
    os.close(write)
    with os.fdopen(read) as pipe:
        assert pipe.read() == "<>", "built once"
    np.testing.assert_array_equal(pack.open(), wanted(pack))


def forked(work: Callable[[], object]) -> int:
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            work()
            code = 0
        except BaseException as error:  # noqa: BLE001  nothing of a child reaches pytest
            print(repr(error), flush=True)
        finally:
            os._exit(code)
    return pid


def test_a_folder_that_goes_before_its_lock_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pack = pack_in(tmp_path)
    acquire, times = FileLock.acquire, []

    def removed_first(self: FileLock, *args: Any, **options: Any) -> Any:
        times.append(self)
        if len(times) == 1:
            shutil.rmtree(pack.folder)
        return acquire(self, *args, **options)

    monkeypatch.setattr(FileLock, "acquire", removed_first)
    np.testing.assert_array_equal(build(pack), wanted(pack))
    assert len(times) >= 2


def test_leftovers_of_prunes_are_removed_and_others_files_are_not(tmp_path: Path) -> None:
    packs = {name: pack_in(tmp_path, name=name) for name in ("left", "foreign", "link", "stump", "tmp")}
    for pack in packs.values():
        build(pack)
    root = tmp_path / "photos"
    leftover = packs["left"].folder.rename(root / f".{packs['left'].folder.name}.0123abcd.pruned")
    (leftover / LOCK).unlink()
    (packs["foreign"].folder / "notes.txt").write_text("mine")
    elsewhere = packs["link"].folder.rename(tmp_path / "elsewhere")
    packs["link"].folder.symlink_to(elsewhere)
    for name in (PHOTOS.file, META):  # of a prune of an earlier version that was killed
        (packs["stump"].folder / name).unlink()
    (packs["tmp"].folder / ".meta.json.77.0123abcd.tmp").write_text("half")
    (root / "mine").mkdir()
    (root / "mine" / PHOTOS.file).write_text("mine")
    (root / "notes.txt").write_text("mine")
    (root / ".0123456789abcdef.0123abcd.pruned").symlink_to(tmp_path)

    code, said = prune(tmp_path)
    assert code == 2
    assert f"kept {packs['foreign'].folder}: it holds notes.txt, which is not the cache's" in said
    assert f"kept {packs['link'].folder}: it is a link" in said
    assert "/.0123456789abcdef.0123abcd.pruned cannot be removed" in said
    assert {path.name for path in root.iterdir()} == {
        *(packs[name].folder.name for name in ("foreign", "link")),
        *("mine", "notes.txt", ".0123456789abcdef.0123abcd.pruned"),
    }
    assert {path.name for path in elsewhere.iterdir()} == {PHOTOS.file, META, LOCK}
    np.testing.assert_array_equal(packs["link"].open(), wanted(packs["link"]))
    np.testing.assert_array_equal(packs["foreign"].open(), wanted(packs["foreign"]))


def test_no_link_is_written_through(tmp_path: Path) -> None:
    target = tmp_path / "mine"
    for name in (PHOTOS.file, JOURNAL, LOCK):
        target.write_text("mine")
        pack = pack_in(tmp_path / name)
        pack.folder.mkdir(parents=True)
        (pack.folder / name).symlink_to(target)
        with pytest.raises(InputError, match="is a symbolic link"):
            build(pack)
        assert target.read_text() == "mine"


def test_a_folder_that_vanishes_while_it_is_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packs = [pack_in(tmp_path, name=name) for name in "ab"]
    for pack in packs:
        build(pack)
    found = manage._folders

    def then_gone(root: Path, names: Any) -> list[Path]:
        folders = found(root, names)
        shutil.rmtree(packs[0].folder, ignore_errors=True)
        return folders

    monkeypatch.setattr(manage, "_folders", then_gone)
    assert [cached.folder for cached in list_caches(tmp_path)] == [packs[1].folder]
    look_at = manage._look_at
    monkeypatch.setattr(manage, "_folders", found)

    def then_all_gone(folder: Path, kind: Kind) -> Any:
        cached = look_at(folder, kind)
        shutil.rmtree(folder, ignore_errors=True)
        return cached

    monkeypatch.setattr(manage, "_look_at", then_all_gone)
    assert prune(tmp_path) == (0, "")


@pytest.mark.long
@pytest.mark.timeout(120)
def test_builders_readers_and_pruners_at_once(tmp_path: Path) -> None:
    """Two processes that open or build, two that prune, for 25 seconds. Nothing fails, every row is right."""
    packs = [pack_in(tmp_path, kind, name) for kind in SHAPES for name in "ab"]
    right = {pack.folder: wanted(pack) for pack in packs}
    opens = tmp_path / "opens"

    def read() -> None:
        number = 0
        while True:
            pack = packs[number % len(packs)]
            rows = opened(pack)
            for _ in range(3):
                np.testing.assert_array_equal(rows, right[pack.folder])
            del rows
            number += 1
            opens.with_suffix(f".{os.getpid()}").write_text(str(number))

    def remove() -> None:
        while True:
            assert not prune_caches(tmp_path, 0).failed
            list_caches(tmp_path)

    children = [forked(work) for work in (read, read, remove, remove)]
    deadline = time.monotonic() + 25
    ended = []
    while time.monotonic() < deadline and not ended:
        time.sleep(0.2)
        ended = [child for child in children if os.waitpid(child, os.WNOHANG)[0]]
    for child in set(children) - set(ended):
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert not ended, "one of them failed; see above"
    assert all(int(path.read_text()) > 50 for path in tmp_path.glob("opens.*"))


def test_a_cache_on_a_read_only_disk_is_read_and_not_pruned(tmp_path: Path) -> None:
    """A mount that only the child sees."""
    pack = pack_in(tmp_path)
    build(pack)
    answer = tmp_path.parent / f"{tmp_path.name}.txt"

    def on_read_only_disk() -> None:
        new_mounts = 0x00020000
        if ctypes.CDLL(None, use_errno=True).unshare(new_mounts) != 0:
            return
        subprocess.run(["mount", "--make-rprivate", "/"], check=True)
        subprocess.run(["mount", "--bind", str(tmp_path), str(tmp_path)], check=True)
        subprocess.run(["mount", "-o", "remount,bind,ro", str(tmp_path)], check=True)
        rows = pack.open()
        assert rows is not None
        np.testing.assert_array_equal(rows, wanted(pack))
        del rows
        with pytest.raises(building.ConfigError, match="cannot be written to"):
            build(pack_in(tmp_path, name="other"))
        answer.write_text(str(prune(tmp_path)))

    assert os.waitpid(forked(on_read_only_disk), 0)[1] == 0
    if not answer.exists():
        pytest.skip("mounting needs root")
    line = f"error: --cache-dir: {pack.folder} cannot be removed (Read-only file system); remove it by hand\\n"
    assert answer.read_text() == f"(2, '{line}')"
    assert pack.open() is not None
