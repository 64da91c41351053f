"""A file is whole or not there, whatever fails; what stood under its name stays until the new one stands."""

import os
import shutil
import threading
import time
from pathlib import Path

import pytest
from running import full_disk

from lora_kit.system.files import (
    REMOVALS,
    STALE_PART_SECONDS,
    free_bytes,
    read_sealed,
    reason,
    same_disk,
    write_sealed,
    write_whole,
)


def test_a_file_and_its_folder(tmp_path):
    path = tmp_path / "a" / "b.txt"
    parts = []
    assert write_whole(path, lambda part: (parts.append(part), part.write_text("whole"))) == path
    assert path.read_text() == "whole" and list(path.parent.iterdir()) == [path]
    assert parts[0].parent == path.parent and parts[0].name.startswith("b.txt.") and parts[0].suffix == ".part"


def test_the_mode_of_a_file_that_is_exchanged(tmp_path):
    for text in ("one", "two"):
        write_whole(tmp_path / "a", lambda part, text=text: part.write_text(text), mode=0o444)
    assert (tmp_path / "a").read_text() == "two" and (tmp_path / "a").stat().st_mode & 0o777 == 0o444


def test_others_may_read_what_safetensors_writes(tmp_path):
    import numpy as np
    from safetensors.numpy import save_file

    (tmp_path / "usual").touch()
    write_whole(tmp_path / "a", lambda part: save_file({"a": np.zeros(1)}, part))
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "usual").stat().st_mode


@pytest.fixture
def old(tmp_path):
    """A file that is to be replaced; afterwards it is as it was, and alone."""
    path = tmp_path / "a.bin"
    path.write_text("old")
    yield path
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_a_full_disk(old):
    with full_disk(5_000), pytest.raises(ValueError) as error:
        write_whole(old, lambda part: part.write_bytes(bytes(10_000)), "make room")
    assert str(error.value) == f"{old} can't be written: OSError File too large; make room"


def test_a_library_s_error_is_told_by_what_caused_it(old):
    import numpy as np
    from safetensors.numpy import save_file

    def write(part):
        with open(part, "wb") as file:
            np.savez(file, a=np.zeros(10_000))

    with full_disk(5_000), pytest.raises(ValueError, match="can't be written: OSError File too large$"):
        write_whole(old, write)
    with full_disk(5_000), pytest.raises(ValueError, match="can't be written: .*File too large"):
        write_whole(old, lambda part: save_file({"a": np.zeros(10_000)}, part))
    with pytest.raises(ValueError, match="can't be written: OSError No space left on device"):
        write_whole(old, lambda part: Path("/dev/full").write_text("a"))


def test_an_interrupted_write(old):
    def write(part):
        part.write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_whole(old, write)


@pytest.mark.parametrize("written_first", [False, True])
@pytest.mark.parametrize("removals", [1, REMOVALS - 1, REMOVALS])
def test_a_folder_that_another_process_removes_meanwhile(removals, written_first, tmp_path):
    folder, parts = tmp_path / "cache" / "encoded", []

    def write(part):
        parts.append(part)
        if written_first:
            part.write_text("whole")
        if len(parts) <= removals:
            shutil.rmtree(folder.parent)
        if not written_first:
            part.write_text("whole")

    if removals < REMOVALS:
        assert write_whole(folder / "plan.json", write).read_text() == "whole"
        assert len(parts) == removals + 1 and list(folder.iterdir()) == [folder / "plan.json"]
    else:
        with pytest.raises(ValueError, match="plan.json can't be written: FileNotFoundError No such file"):
            write_whole(folder / "plan.json", write)
        assert len(parts) == REMOVALS


def test_a_source_that_is_missing_is_asked_for_once(old, tmp_path):
    asked = []

    def write(part):
        asked.append(part)
        shutil.copy(tmp_path.parent / "missing", part)

    with pytest.raises(ValueError, match="can't be written: FileNotFoundError"):
        write_whole(old, write)
    assert len(asked) == 1


def test_a_writer_that_writes_nothing(old):
    with pytest.raises(ValueError, match="can't be written: FileNotFoundError"):
        write_whole(old, lambda part: None)


def test_places_that_can_t_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    for path, said in (
        (tmp_path / "file" / "a", "NotADirectoryError Not a directory"),
        (tmp_path / "folder", "IsADirectoryError Is a directory"),
        (tmp_path / ("long" * 99), "OSError File name too long"),
    ):
        with pytest.raises(ValueError) as error:
            write_whole(path, lambda part: part.write_text("a"))
        assert str(error.value).startswith(f"{path} can't be written: ") and str(error.value).endswith(said)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


def test_an_error_that_is_being_handled_is_not_the_reason():
    try:
        raise RuntimeError("an older one")
    except RuntimeError as older:
        with pytest.raises(ValueError, match="NotADirectoryError Not a directory$"):
            write_whole("/dev/null/a", lambda part: None)
        try:
            raise KeyError("another")
        except KeyError as error:
            assert reason(error, older) == "KeyError 'another'" and reason(error) == "RuntimeError an older one"


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"value": 1}', '{"value": 1, "seal": "x"}', "[" * 100_000], ids=range(6)
)
def test_what_is_not_as_it_was_sealed_is_nothing(text, tmp_path):
    write_sealed(tmp_path / "a", [1, None])
    assert read_sealed(tmp_path / "a") == [1, None]
    (tmp_path / "a").write_text(text)
    assert read_sealed(tmp_path / "a") is None


def test_writers_at_once_end_with_one_of_their_files(tmp_path):
    path, texts, meet = tmp_path / "a", [str(number) * 100_000 for number in range(4)], threading.Barrier(4)

    def write(part, text):
        with open(part, "w") as file:
            file.write(text[:50_000])
            meet.wait()
            file.write(text[50_000:])

    threads = [
        threading.Thread(target=write_whole, args=(path, lambda part, text=text: write(part, text))) for text in texts
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert path.read_text() in texts and list(tmp_path.iterdir()) == [path]


def test_what_a_killed_process_left_goes_after_a_day(tmp_path):
    path = tmp_path / "a[1].txt"
    stale, young, other = (tmp_path / name for name in ("a[1].txt.12ab.part", "a[1].txt.34cd.part", "b.txt.12ab.part"))
    for left in (stale, young, other):
        left.write_text("half")
    day_ago = time.time() - STALE_PART_SECONDS - 60
    os.utime(stale, (day_ago, day_ago))
    os.utime(other, (day_ago, day_ago))
    write_whole(path, lambda part: part.write_text("whole"))
    assert sorted(tmp_path.iterdir()) == sorted([path, young, other])


def test_the_room_of_a_disk_is_that_of_the_place_where_a_file_would_be_made(tmp_path):
    assert abs(free_bytes(tmp_path / "a" / "b") - shutil.disk_usage(tmp_path).free) < 1e9  # others write meanwhile


def test_whether_two_places_are_on_one_disk(tmp_path):
    assert same_disk(tmp_path / "a" / "b", tmp_path / "c") and not same_disk("/proc/a", tmp_path)
