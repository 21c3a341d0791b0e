"""The photo cache: decoded once, whole or made again, whatever happens while it is built."""

from __future__ import annotations

import ctypes
import json
import os
import random
import shutil
import signal
import subprocess
import threading
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import PIL
import pytest
import torch
from filelock import FileLock
from PIL import Image
from torch import Tensor
from typer.testing import CliRunner

from binventory.cli import app
from binventory.data.cache.build import PhotoFile, build
from binventory.data.cache.pack import JOURNAL, LOCK, MAX_BLOCK_ROWS, META, Pack
from binventory.data.preprocess import Preprocessing
from binventory.data.reading import stamp_of
from binventory.errors import ConfigError

NUM_PHOTOS = 6 * MAX_BLOCK_ROWS + 5  # more blocks than are looked at when nothing was touched
SIDE = 8


class Counting(Preprocessing):
    """Counts what is decoded, and may do something at one of the photos."""

    num_decoded = 0
    at = (-1, lambda: None)
    guard = threading.Lock()

    def pixels(self, photo: bytes, name: str) -> Tensor:
        with Counting.guard:
            Counting.num_decoded += 1
            if Counting.num_decoded == Counting.at[0]:
                Counting.at[1]()
        return super().pixels(photo, name)


@pytest.fixture(autouse=True)
def _count_from_zero() -> None:
    Counting.num_decoded, Counting.at = 0, (-1, lambda: None)


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[PhotoFile]:
    """Small photos, each of its own colour."""
    folder = tmp_path_factory.mktemp("photos")
    files = []
    for number in range(NUM_PHOTOS):
        buffer = BytesIO()
        Image.new("RGB", (12, 10), (number % 256, number // 256, 90)).save(buffer, "JPEG")
        path = folder / f"{number:04d}.jpg"
        path.write_bytes(buffer.getvalue())
        files.append(PhotoFile(str(path), stamp_of(path.stat())))
    return files


def pack_in(folder: Path, preprocessing: Preprocessing | None = None, hashes: list[str] | None = None) -> Pack:
    facts = (preprocessing or Counting(SIDE)).pixel_facts()
    return Pack.of(folder, facts, hashes or [str(number) for number in range(NUM_PHOTOS)], NUM_PHOTOS)


def expected(photos: list[PhotoFile]) -> np.ndarray:
    plain = Preprocessing(SIDE)
    return np.stack([plain.pixels(Path(photo.path).read_bytes(), "a.jpg").permute(1, 2, 0).numpy() for photo in photos])


def content(pack: Pack) -> np.ndarray:
    return np.fromfile(pack.path, np.uint8).reshape(-1, SIDE, SIDE, 3)


def test_a_pack_holds_what_predicting_sees_and_is_decoded_once(photos: list[PhotoFile], tmp_path: Path) -> None:
    pack = pack_in(tmp_path)
    assert not pack.is_finished()
    assert build(pack, photos, Counting(SIDE), 2).bad == {}
    assert pack.is_finished()
    assert pack.find_damage() is None
    np.testing.assert_array_equal(content(pack), expected(photos))
    written = (pack.folder / META).stat().st_ino
    assert build(pack, photos, Counting(SIDE), 2).bad == {}
    assert Counting.num_decoded == NUM_PHOTOS
    assert (pack.folder / META).stat().st_ino == written
    assert {path.name for path in pack.folder.iterdir()} == {"photos.u8", META, LOCK}


def test_the_key_is_what_the_pixels_depend_on(tmp_path: Path) -> None:
    base = pack_in(tmp_path).folder
    assert pack_in(tmp_path, Preprocessing(SIDE, mean=(0.1, 0.2, 0.3), std=(0.5, 0.5, 0.5))).folder == base
    assert PIL.__version__ in str(pack_in(tmp_path).facts), "another decoder may give other pixels"
    assert torch.__version__.split("+")[0] in str(pack_in(tmp_path).facts), "another resize too"
    others = [
        pack_in(tmp_path, Preprocessing(SIDE + 1)),
        pack_in(tmp_path, Preprocessing(SIDE, resize="crop")),
        pack_in(tmp_path, Preprocessing(SIDE, interpolation="bicubic")),
        pack_in(tmp_path, Preprocessing(SIDE, resize="letterbox")),
        pack_in(tmp_path, Preprocessing(SIDE, resize="letterbox", mean=(0.1, 0.2, 0.3))),
        pack_in(tmp_path, hashes=[str(number) for number in reversed(range(NUM_PHOTOS))]),
    ]
    assert len({base, *(other.folder for other in others)}) == 7


def in_child(work: Callable[[], object]) -> tuple[int, int]:
    """Start work in a forked process; return its pid and a pipe with what it returned, as text."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.write(write, str(work()).encode())
        finally:
            os._exit(0)
    os.close(write)
    return pid, read


def end_of(child: tuple[int, int]) -> tuple[int, str]:
    """Return how a child ended and what it said."""
    with os.fdopen(child[1]) as pipe:
        said = pipe.read()
    return os.waitstatus_to_exitcode(os.waitpid(child[0], 0)[1]), said


def test_what_was_built_before_a_kill_is_not_built_again(photos: list[PhotoFile], tmp_path: Path) -> None:
    pack = pack_in(tmp_path)

    def killed() -> None:
        Counting.at = (200, lambda: os.kill(os.getpid(), signal.SIGKILL))
        build(pack, photos, Counting(SIDE), 1)

    assert end_of(in_child(killed))[0] == -signal.SIGKILL
    assert not pack.is_finished()
    num_blocks = len((pack.folder / JOURNAL).read_text().splitlines())
    assert num_blocks == 199 // MAX_BLOCK_ROWS

    def killed_again() -> None:
        Counting.at = (1, lambda: os.kill(os.getpid(), signal.SIGKILL))
        build(pack, photos, Counting(SIDE), 1)

    assert end_of(in_child(killed_again))[0] == -signal.SIGKILL
    with pack.path.open("rb+") as file:  # a block that the journal knows, but that never reached the disk
        file.write(bytes(100))
    assert build(pack, photos, Counting(SIDE), 1).bad == {}
    assert Counting.num_decoded == NUM_PHOTOS - (num_blocks - 1) * MAX_BLOCK_ROWS
    np.testing.assert_array_equal(content(pack), expected(photos))


def test_two_builders_do_the_work_once(photos: list[PhotoFile], tmp_path: Path) -> None:
    pack = pack_in(tmp_path)

    def count() -> int:
        build(pack, photos, Counting(SIDE), 1)
        return Counting.num_decoded

    ends = [end_of(child) for child in [in_child(count), in_child(count)]]
    assert sorted(ends) == [(0, "0"), (0, str(NUM_PHOTOS))]
    np.testing.assert_array_equal(content(pack), expected(photos))


def flip_byte(pack: Pack, position: int, *, keep_time: bool = False) -> None:
    status = pack.path.stat()
    with pack.path.open("rb+") as file:
        file.seek(position)
        byte = file.read(1)[0]
        file.seek(position)
        file.write(bytes([byte ^ 64]))
    if keep_time:
        os.utime(pack.path, ns=(status.st_atime_ns, status.st_mtime_ns))


def built(pack: Pack) -> Pack:
    """Make a pack of black photos."""
    pack.folder.mkdir(parents=True)
    pack.path.write_bytes(bytes(pack.size_bytes))
    pack.write_meta([pack.checksum(number) for number in range(len(pack.blocks))])
    return pack


def without_blocks(meta: Path) -> None:
    content = json.loads(meta.read_text())
    del content["blocks"]
    meta.write_text(json.dumps(content))


DAMAGE: dict[str, tuple[Callable[[Pack], object], str, int]] = {
    "cut": (lambda pack: os.truncate(pack.path, pack.size_bytes - 1), "bytes instead of", NUM_PHOTOS % MAX_BLOCK_ROWS),
    "longer": (lambda pack: os.truncate(pack.path, pack.size_bytes + 9), "bytes instead of", 0),
    "one bit": (lambda pack: flip_byte(pack, pack.size_bytes // 2), "another checksum", MAX_BLOCK_ROWS),
    "of other photos": (
        lambda pack: shutil.copy(built(pack_in(pack.folder / "x", hashes=["y"])).folder / META, pack.folder),
        META,
        NUM_PHOTOS,
    ),
    "gone": (lambda pack: pack.path.unlink(), "No such file", NUM_PHOTOS),
    "no JSON": (lambda pack: (pack.folder / META).write_text("{"), META, NUM_PHOTOS),
    "edited": (lambda pack: without_blocks(pack.folder / META), META, NUM_PHOTOS),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_noticed_and_mended(
    name: str, photos: list[PhotoFile], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damage, reason, num_decoded = DAMAGE[name]
    pack = pack_in(tmp_path)
    build(pack, photos, Counting(SIDE), 1)
    Counting.num_decoded = 0
    damage(pack)
    assert all(reason in str(pack.find_damage()) for _ in range(20)), "it does not depend on which blocks are drawn"
    assert build(pack, photos, Counting(SIDE), 1).bad == {}
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith(f"photo cache {pack.folder}: ")
    assert reason in line
    assert pack.find_damage() is None
    assert Counting.num_decoded == num_decoded, "only what is damaged is decoded again"
    np.testing.assert_array_equal(content(pack), expected(photos))


def test_a_block_that_went_bad_by_itself_is_found_sooner_or_later(photos: list[PhotoFile], tmp_path: Path) -> None:
    pack = pack_in(tmp_path)
    build(pack, photos, Counting(SIDE), 1)
    flip_byte(pack, pack.size_bytes - 1, keep_time=True)
    state = random.getstate()
    assert any(pack.find_damage() for _ in range(60)), "some blocks are looked at, others the next time"
    assert random.getstate() == state, "the run's own draws are as they were"
    for _ in range(8):
        assert "block 7 of 7" in str(pack.find_damage(every_block=True))
        assert build(pack, photos, Counting(SIDE), 1).bad == {}
        assert pack.find_damage(every_block=True) is None, "whatever was drawn by the build"
        flip_byte(pack, pack.size_bytes - 1, keep_time=True)


def test_a_copy_is_as_good(photos: list[PhotoFile], tmp_path: Path) -> None:
    pack, copy = pack_in(tmp_path / "a"), pack_in(tmp_path / "b")
    build(pack, photos, Counting(SIDE), 1)
    shutil.copytree(pack.folder, copy.folder, copy_function=shutil.copyfile)
    assert copy.path.stat().st_mtime_ns != pack.path.stat().st_mtime_ns
    assert copy.find_damage() is None
    assert build(copy, photos, Counting(SIDE), 1).bad == {}
    assert Counting.num_decoded == NUM_PHOTOS


def test_a_photo_that_changed_since_it_was_indexed_is_said_and_tried_again(
    photos: list[PhotoFile], tmp_path: Path
) -> None:
    pack = pack_in(tmp_path)
    missing = [*photos[:3], PhotoFile(str(tmp_path / "gone.jpg"), (1, 2)), *photos[4:]]
    bad = build(pack, missing, Counting(SIDE), 1).bad
    assert list(bad) == [3]
    assert "gone.jpg" in bad[3]
    assert not pack.is_finished()
    np.testing.assert_array_equal(content(pack)[:3], expected(photos[:3]))
    assert not content(pack)[3].any()
    Counting.num_decoded = 0
    assert build(pack, photos, Counting(SIDE), 1).bad == {}
    assert Counting.num_decoded == MAX_BLOCK_ROWS


def test_a_full_disk_is_one_error_and_leaves_nothing(photos: list[PhotoFile], tmp_path: Path) -> None:
    """On a real file system of 64 KiB, mounted where only the child sees it."""
    pack = pack_in(tmp_path)

    def on_small_disk() -> str:
        new_mounts = 0x00020000
        if ctypes.CDLL(None, use_errno=True).unshare(new_mounts) != 0:
            return "no root"
        subprocess.run(["mount", "--make-rprivate", "/"], check=True)
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(tmp_path)], check=True)
        with pytest.raises(ConfigError) as raised:
            build(pack, photos, Counting(SIDE), 1)
        left = sorted(path.name for path in pack.folder.iterdir())
        return f"{raised.value} {left} {Counting.num_decoded}"

    _, said = end_of(in_child(on_small_disk))
    if said == "no root":
        pytest.skip("mounting needs root")
    assert said.startswith(f"paths.cache_dir: {pack.folder} has no room for 0.1 MB of decoded photos (No space left")
    assert "data.cache=false" in said
    assert said.endswith("['lock'] 0")


def test_a_folder_that_cannot_be_made_is_one_error(photos: list[PhotoFile], tmp_path: Path) -> None:
    (tmp_path / "photos").write_text("a file")
    with pytest.raises(ConfigError, match=r"paths\.cache_dir: .*cannot be written to"):
        build(pack_in(tmp_path), photos, Counting(SIDE), 1)


def test_an_interrupt_leaves_after_the_blocks_under_way(photos: list[PhotoFile], tmp_path: Path) -> None:
    pack = pack_in(tmp_path)
    Counting.at = (100, lambda: signal.raise_signal(signal.SIGINT))
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a job that was stopped ignores it from then on
    try:
        with pytest.raises(KeyboardInterrupt):
            build(pack, photos, Counting(SIDE), 1)
    finally:
        signal.signal(signal.SIGINT, before)
    assert Counting.num_decoded <= 3 * MAX_BLOCK_ROWS
    assert not pack.is_finished()


def test_list_and_prune(photos: list[PhotoFile], tmp_path: Path) -> None:
    def command(*arguments: str) -> str:
        done = CliRunner().invoke(app, ["cache", *arguments, "--cache-dir", str(tmp_path)])
        assert done.exit_code == 0, done.output
        return done.output

    old, new, half = pack_in(tmp_path), pack_in(tmp_path, Preprocessing(SIDE + 8)), pack_in(tmp_path, hashes=["x"])
    build(old, photos, Counting(SIDE), 1)
    build(new, photos, Preprocessing(SIDE + 8), 1)
    build(half, [PhotoFile("gone.jpg", (1, 2)), *photos[1:]], Preprocessing(SIDE), 1)
    first, second, third = sorted(command("list").splitlines(), key=lambda line: line.count("8 squash"))
    assert f"{half.folder}: unfinished, 0." in first
    assert {second.split()[1], third.split()[1]} == {"8", "16"}
    assert f"{NUM_PHOTOS} photos" in second
    assert command("prune") == ""
    for pack in (old, half):
        for path in pack.folder.iterdir():
            os.utime(path, (1, 1))
    with FileLock(half.folder / LOCK):
        os.utime(half.folder / LOCK, (1, 1))
        said = command("prune")
    assert f"removed {old.folder}" in said
    assert f"kept {half.folder}: it is being built" in said
    assert not old.folder.exists()
    assert new.find_damage() is None
    command("prune", "--unused-days", "0")
    assert not list((tmp_path / "photos").iterdir())
    assert command("list") == ""
