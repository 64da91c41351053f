"""Records are whole or not there, whoever wrote them and wherever that broke off."""

import multiprocessing
import os
import pickle
import resource
import shutil
from pathlib import Path

import pytest
import torch

from lora_kit.data.records import SEAL, SealedRecords

COUNT, SHAPE = 5, (2, 3)
SIZE = 4 * 2 * 3


def records(path, key="key", count=COUNT, dtype=torch.float32):
    return SealedRecords(path / "records", key, count, SHAPE, dtype)


def number(place, dtype=torch.float32):
    return torch.full(SHAPE, float(place + 1)).to(dtype)


@pytest.fixture
def full(tmp_path):
    made = records(tmp_path)
    for place in range(COUNT):
        made.write(place, number(place))
    return made


def values(made):
    """{place: value} of the records that are there."""
    gathered, missing = made.gather(range(COUNT))
    return {place: gathered[place][0, 0].item() for place in range(COUNT) if place not in missing}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_what_was_written_is_read_in_any_order_and_the_rest_is_missing(dtype, tmp_path):
    made = records(tmp_path, dtype=dtype)
    assert made.gather([4, 0])[1] == [0, 1] and made.missing() == COUNT
    made.write(3, number(3, dtype))
    made.write(1, number(1, dtype))
    gathered, missing = made.gather([1, 2, 3, 1])
    assert missing == [1] and gathered.dtype == dtype
    assert torch.equal(gathered[[0, 2, 3]], torch.stack([number(1, dtype), number(3, dtype), number(1, dtype)]))
    assert torch.equal(records(tmp_path, dtype=dtype).gather([3])[0][0], number(3, dtype))
    assert made.missing() == 3 and made.room() == 3 * (SEAL + SIZE * dtype.itemsize // 4)


def test_only_what_was_written_takes_up_room(tmp_path):
    made = records(tmp_path, count=1_000_000)
    made.write(999_999, number(0))
    stat = made.path.stat()
    assert stat.st_size == 1_000_000 * (SEAL + SIZE) and 512 * stat.st_blocks < 100_000
    assert made.missing() == 999_999


def test_no_bit_of_the_file_can_change_what_is_read(full, tmp_path):
    content = full.path.read_bytes()
    assert len(content) == COUNT * (SEAL + SIZE)
    wanted = values(full)
    for place in range(len(content)):
        damaged = bytearray(content)
        damaged[place] ^= 1 << place % 8
        full.path.write_bytes(damaged)
        left = values(records(tmp_path))
        assert len(left) == COUNT - 1 and left.items() <= wanted.items(), place


def test_a_file_that_is_cut_or_too_long_is_made_anew(full, tmp_path):
    content = full.path.read_bytes()
    for length in (*range(0, len(content), 3), len(content) + 1):
        full.path.write_bytes((content + b"x")[:length])
        made = records(tmp_path)
        assert values(made) == {} and made.path.stat().st_size == len(content)


@pytest.mark.parametrize("change", ["key", "place", "count"])
def test_what_was_written_for_something_else_is_not_there(change, full, tmp_path):
    if change == "key":
        assert values(records(tmp_path, "another")) == {}
    elif change == "count":
        assert records(tmp_path, count=COUNT + 1).gather([0, 1])[1] == [0, 1]
    else:
        content = bytearray(full.path.read_bytes())
        start = COUNT * SEAL
        content[:SEAL], content[start : start + SIZE] = (
            content[SEAL : 2 * SEAL],
            content[start + SIZE : start + 2 * SIZE],
        )
        full.path.write_bytes(content)
        assert sorted(values(full)) == [1, 2, 3, 4]


def test_a_finished_file_is_read_only_and_is_mended_all_the_same(full, tmp_path):
    part = records(tmp_path, count=COUNT)
    part.finish()
    assert full.path.stat().st_mode & 0o777 == 0o444
    full.path.chmod(0o644)
    content = bytearray(full.path.read_bytes())
    content[-1] ^= 1
    full.path.write_bytes(content)
    full.path.chmod(0o444)
    made = records(tmp_path)
    os.close(made.number)
    made.number = os.open(made.path, os.O_RDONLY)  # as for a user who isn't root
    assert sorted(values(made)) == [0, 1, 2, 3]
    made.write(4, number(4))
    assert len(values(made)) == COUNT
    half = SealedRecords(tmp_path / "half", "key", COUNT, SHAPE, torch.float32)
    half.finish()
    assert half.path.stat().st_mode & 0o200


def test_finishing_a_file_that_is_gone_harms_nothing(full):
    full.path.unlink()
    full.finish()
    assert len(values(full)) == COUNT


def test_a_folder_that_another_process_removes_meanwhile(monkeypatch, tmp_path):
    removed, open_ = [], os.open

    def removing(path, *arguments, **options):
        if not removed:
            removed.append(path)
            shutil.rmtree(Path(path).parent)
        return open_(path, *arguments, **options)

    monkeypatch.setattr("lora_kit.data.records.os.open", removing)
    made = records(tmp_path / "encoded")
    made.write(2, number(2))
    assert removed == [made.path] and values(records(tmp_path / "encoded")) == {2: 3.0}


def test_a_finished_file_that_is_damaged_and_then_gone_is_made_anew(full, tmp_path):
    full.finish()
    again = records(tmp_path)
    os.close(again.number)
    again.number = os.open(full.path, os.O_RDONLY)  # as it is opened by anybody but root
    full.path.unlink()
    again.write(1, number(1))
    assert values(again) == values(records(tmp_path)) == {1: 2.0}


def test_another_process_gets_the_same(full):
    again = pickle.loads(pickle.dumps(full))
    assert values(again) == values(full) and again.number != full.number


def test_a_disk_that_takes_no_more_says_so_and_harms_nothing(tmp_path):
    made = records(tmp_path)
    made.write(0, number(0))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (COUNT * SEAL + 2 * SIZE, before[1]))
    try:
        made.write(1, number(1))
        with pytest.raises(OSError):
            made.write(2, number(2))
        with pytest.raises(OSError):
            records(tmp_path / "new")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert values(made) == {0: 1.0, 1: 2.0}


def write_again_and_again(folder, seed, rounds):
    """Write all, in an order of its own, and look at what is there: 0 where it was always right."""
    made, order = records(folder), torch.Generator().manual_seed(seed)
    for _ in range(rounds):
        for place in torch.randperm(COUNT, generator=order).tolist():
            made.write(place, number(place))
            if any(value != place + 1 for place, value in values(made).items()):
                os._exit(1)
    os._exit(0 if len(values(made)) == COUNT else 1)


def test_two_writers_write_the_same(tmp_path):
    fork = multiprocessing.get_context("fork")
    writers = [fork.Process(target=write_again_and_again, args=(tmp_path, seed, 300)) for seed in (1, 2)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
