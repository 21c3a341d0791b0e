"""A damaged last.ckpt is noticed, and the one before is used; wrong weights are never loaded."""

from __future__ import annotations

import os
import random
import shutil
import zipfile
from collections import Counter
from pathlib import Path

import pytest

from binventory.callbacks.checkpoint_file import find_checkpoint, find_damage, read_checkpoint
from binventory.errors import InputError
from tests.resume.compare import flat
from tests.resume.runs import Lab

NUM_FLIPS = int(os.environ.get("TEST_DAMAGE_FLIPS", "200"))
NUM_CUTS = int(os.environ.get("TEST_DAMAGE_CUTS", "100"))
# Averaged weights, raw ones and an optimizer: everything that a checkpoint can hold.
OVERRIDES = ("callbacks.ema.decay=0.8",)


@pytest.fixture(scope="module")
def checkpoint(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of a real last.ckpt."""
    path = tmp_path_factory.mktemp("damage") / "last.ckpt"
    shutil.copyfile(lab.undisturbed(*OVERRIDES) / "checkpoints" / "last.ckpt", path)
    return path


def regions(path: Path) -> dict[str, list[range]]:
    """Return the byte ranges of the archive by what they hold; together they are the whole file."""
    with zipfile.ZipFile(path) as archive:
        entries = sorted(archive.infolist(), key=lambda entry: entry.header_offset)
        directory = archive.start_dir
    starts = [entry.header_offset for entry in entries] + [directory]
    found: dict[str, list[range]] = {"headers": [], "data": [], "descriptors": []}
    content = path.read_bytes()
    for entry, following in zip(entries, starts[1:], strict=True):
        names = content[entry.header_offset + 26 : entry.header_offset + 30]
        begin = entry.header_offset + 30 + int.from_bytes(names[:2], "little") + int.from_bytes(names[2:], "little")
        end = begin + entry.compress_size
        found["headers"].append(range(entry.header_offset, begin))
        found["data"].append(range(begin, end))
        found["descriptors"].append(range(end, following))
    directory_end = content.rindex(b"PK\x06\x06") if b"PK\x06\x06" in content else content.rindex(b"PK\x05\x06")
    found["directory"] = [range(directory, directory_end)]
    found["end"] = [range(directory_end, len(content))]
    assert sum(len(part) for parts in found.values() for part in parts) == len(content)
    return found


def test_every_flipped_bit_is_noticed_or_harmless(checkpoint: Path) -> None:
    """TEST_DAMAGE_FLIPS bits, a fifth of them in each kind of place."""
    whole = dict(flat("", read_checkpoint(checkpoint)))
    draw = random.Random(0)
    noticed: Counter[str] = Counter()
    for kind, parts in regions(checkpoint).items():
        places = [place for part in parts for place in (part if len(part) < 4096 else draw.sample(part, 64))]
        for place in (draw.choice(places) for _ in range(NUM_FLIPS // 5)):
            bit = 1 << draw.randrange(8)
            flip(checkpoint, place, bit)
            try:
                found = find_checkpoint(checkpoint.parent)
            except InputError:
                noticed[kind] += 1
            else:  # then it must be read, and to the last bit
                assert found == checkpoint
                assert dict(flat("", read_checkpoint(found))) == whole, (kind, place, bit)
            flip(checkpoint, place, bit)
    assert noticed["data"] == NUM_FLIPS // 5, "every bit of a tensor counts"
    assert noticed["directory"] > NUM_FLIPS // 10


def flip(path: Path, place: int, bit: int) -> None:
    with path.open("r+b") as file:
        file.seek(place)
        (byte,) = file.read(1)
        file.seek(place)
        file.write(bytes([byte ^ bit]))


def test_every_cut_is_noticed(checkpoint: Path, tmp_path: Path) -> None:
    """TEST_DAMAGE_CUTS lengths, among them nothing, one byte less, and the ends of all kinds of parts."""
    content = checkpoint.read_bytes()
    ends = [part.stop for parts in regions(checkpoint).values() for part in parts]
    draw = random.Random(1)
    lengths = {0, 1, 4, len(content) - 1, len(content) - 22, *draw.sample(ends, min(len(ends), NUM_CUTS // 2))}
    lengths |= {draw.randrange(len(content)) for _ in range(NUM_CUTS // 2)}
    path = tmp_path / "last.ckpt"
    for length in sorted(lengths - {len(content)}):
        path.write_bytes(content[:length])
        assert find_damage(path) is not None, length


def test_blocks_of_zeros_and_of_another_file_are_noticed(checkpoint: Path, tmp_path: Path) -> None:
    """What a power cut or a bad disk leaves: whole 4-KiB blocks that hold something else."""
    content = checkpoint.read_bytes()
    draw = random.Random(2)
    path = tmp_path / "last.ckpt"
    blocks = range(0, len(content), 4096)
    for start in draw.sample(blocks, min(len(blocks), 40)):
        for other in (bytes(4096), draw.randbytes(4096)):
            damaged = (content[:start] + other + content[start + 4096 :])[: len(content)]
            if damaged != content:
                path.write_bytes(damaged)
                assert find_damage(path) is not None, start


def test_the_newest_whole_one_is_found(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    last, previous = tmp_path / "last.ckpt", tmp_path / "previous.ckpt"
    assert find_checkpoint(tmp_path) is None
    shutil.copyfile(checkpoint, previous)
    assert find_checkpoint(tmp_path) == previous, "a kill can come between the two renames"
    shutil.copyfile(checkpoint, last)
    assert find_checkpoint(tmp_path) == last
    assert capsys.readouterr().err == ""
    flip(last, last.stat().st_size // 2, 1)
    assert find_checkpoint(tmp_path) == previous
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert f"{last} is damaged" in said
    assert f"going on from the one before, {previous}" in said
    previous.write_bytes(b"")
    with pytest.raises(InputError) as error:
        find_checkpoint(tmp_path)
    assert str(last) in str(error.value)
    assert str(previous) in str(error.value)


@pytest.mark.parametrize(
    ("phase", "call"), [("train", 13), ("eval", 2)], ids=["middle of an epoch", "the best epoch, which shares the file"]
)
def test_resume_from_the_one_before_equals_trained_through(lab: Lab, phase: str, call: int) -> None:
    """In the second case best.ckpt may be the same file on disk, so that one bad block damages both."""
    undisturbed = lab.undisturbed()
    series = lab.series("callbacks.checkpoint.every_n_steps=2")
    job = series.start(plan={"phase": phase, "call": call, "do": "SIGTERM"})
    assert job.wait() == 143, job.stderr
    folder = series.run / "checkpoints"
    flip(folder / "last.ckpt", (folder / "last.ckpt").stat().st_size // 2, 1)
    job = series.start("resume=auto")
    assert job.wait() == 0, job.stderr
    assert "last.ckpt is damaged (the checksum of " in job.stderr
    assert "going on from the one before" in job.stderr
    series.check_equals(undisturbed)


def test_a_damaged_one_never_takes_the_place_of_the_one_before(lab: Lab) -> None:
    """Else a kill in the first save after the damage could find none that is whole."""
    series = lab.series("callbacks.checkpoint.every_n_steps=2")
    series.start(plan={"phase": "train", "call": 7, "do": "SIGKILL"}).wait()
    last = series.run / "checkpoints" / "last.ckpt"
    flip(last, last.stat().st_size // 2, 1)
    series.start("resume=auto", plan={"phase": "train", "call": 1, "do": "SIGKILL"}).wait()
    assert series.position()["batches"] == 4, "that of the one before"
    assert find_damage(last) is None
    assert find_damage(last.with_name("previous.ckpt")) is None


def test_both_damaged_is_one_line(lab: Lab) -> None:
    series = lab.series("callbacks.checkpoint.every_n_steps=2")
    series.start(plan={"phase": "train", "call": 7, "do": "SIGKILL"}).wait()
    for name in ("last.ckpt", "previous.ckpt"):
        path = series.run / "checkpoints" / name
        path.write_bytes(path.read_bytes()[:-100])
    job = series.resume_by_folder()
    assert job.wait() == 2, job.stderr
    assert job.stderr.count("\n") == 1, job.stderr
    assert job.stderr.startswith("error: ")
    for said in ("last.ckpt is damaged", "previous.ckpt is damaged", "start this run over"):
        assert said in job.stderr
