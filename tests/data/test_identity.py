"""Data are known by what they hold: not by their folder's name, and not by a file's time."""

import os
import shutil

import datasets
import pytest
from PIL import Image
from test_encoding import config, write_folder

from lora_kit.config import TrainingConfig
from lora_kit.data import file_index
from lora_kit.data.identity import data_identity
from lora_kit.data.images import CaptionedImages, downloads_of, load_images


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("LORA_KIT_CACHE", str(tmp_path / "cache"))
    write_folder(tmp_path / "data", [(64, 64)] * 3)
    return tmp_path / "data"


def test_a_moved_and_a_touched_folder_is_the_same(folder, tmp_path):
    before = data_identity(config(folder))
    os.utime(folder / "1.png", (1, 1))
    assert data_identity(config(folder)) == before
    shutil.copytree(folder, tmp_path / "moved")
    assert data_identity(config(tmp_path / "moved")) == before


def test_an_exchanged_picture_is_seen_whatever_its_size_and_time(folder, tmp_path):
    before, one = data_identity(config(folder)), (folder / "1.png").stat()
    content = bytearray((folder / "1.png").read_bytes())
    content[-20] ^= 1
    (tmp_path / "other.png").write_bytes(content)
    os.utime(tmp_path / "other.png", ns=(one.st_atime_ns, one.st_mtime_ns))
    os.replace(tmp_path / "other.png", folder / "1.png")
    after = (folder / "1.png").stat()
    assert (after.st_size, after.st_mtime_ns) == (one.st_size, one.st_mtime_ns)
    assert data_identity(config(folder)) != before


@pytest.mark.parametrize("change", ["caption", "name", "more", "fewer"])
def test_other_data_are_others(change, folder):
    before = data_identity(config(folder))
    text = (folder / "metadata.jsonl").read_text()
    if change == "caption":
        (folder / "metadata.jsonl").write_text(text.replace("a picture of", "a drawing of"))
    elif change == "name":
        (folder / "1.png").rename(folder / "one.png")
    elif change == "more":
        Image.new("RGB", (8, 8)).save(folder / "9.png")
    else:
        (folder / "1.png").unlink()
    assert data_identity(config(folder)) != before


def test_what_is_no_data_is_left_out(folder):
    before = data_identity(config(folder))
    (folder / ".hidden.png").write_bytes(b"x")
    (folder / "notes.txt").write_text("x")
    (folder / "run").mkdir()
    (folder / "run" / "metrics.jsonl").write_text("{}")
    assert data_identity(config(folder)) == before


@pytest.mark.parametrize("kept", ["whole", "damaged", "a digit", "of another kind", "nowhere"])
def test_files_are_read_once(kept, folder, monkeypatch, tmp_path):
    before, read = data_identity(config(folder)), []
    digest = file_index.file_digest
    monkeypatch.setattr(file_index, "file_digest", lambda path: read.append(path.name) or digest(path))
    (index,) = (tmp_path / "cache").glob("files-*.json")
    if kept == "damaged":
        index.write_bytes(index.read_bytes()[:-30])
    elif kept == "a digit":
        index.write_text(index.read_text().translate(str.maketrans("1", "3")))
    elif kept == "of another kind":
        index.write_text("[1]")
    elif kept == "nowhere":
        (tmp_path / "a file").touch()
        monkeypatch.setenv("LORA_KIT_CACHE", str(tmp_path / "a file" / "inside"))
    assert data_identity(config(folder)) == before
    assert read == ([] if kept == "whole" else ["0.png", "1.png", "2.png", "metadata.jsonl"])


def test_what_a_run_that_is_ended_has_read_is_known_to_the_next(folder, monkeypatch):
    """Pictures that were decoded and digested before it ended aren't again; one that was exchanged is."""
    seen, check, digest = [], file_index.check_picture, file_index.file_digest

    def stop_at_2(read):
        def stopping(path, *more):
            if path.name == "2.png" and ending:
                raise KeyboardInterrupt
            seen.append(path.name)
            return read(path, *more)

        return stopping

    monkeypatch.setattr(file_index, "check_picture", stop_at_2(check))
    monkeypatch.setattr(file_index, "file_digest", stop_at_2(digest))
    monkeypatch.setattr(file_index, "KEPT_EVERY", 0)
    for call in (load_images, data_identity):
        ending = True
        with pytest.raises(KeyboardInterrupt):
            call(config(folder))
        assert seen == ["0.png", "1.png"]
        seen.clear()
        ending = False
        call(config(folder))
        assert seen == (["2.png"] if call is load_images else ["2.png", "metadata.jsonl"])
        seen.clear()
    os.utime(folder / "1.png")
    load_images(config(folder))
    assert seen == ["1.png"]


def test_what_was_only_looked_at_for_the_script_is_looked_at_again(folder):
    Image.new("CMYK", (64, 64)).save(folder / "1.png", "JPEG")
    load_images(config(folder, match_diffusers=True, lr_warmup_steps=0))
    for _ in range(2):
        with pytest.raises(ValueError, match="1.png is in CMYK"):
            load_images(config(folder))


def test_what_is_known_of_folders_that_nobody_uses_goes(folder, tmp_path):
    data_identity(config(folder))
    (index,) = (tmp_path / "cache").glob("files-*.json")
    old = index.with_name("files-0123.json")
    old.touch()
    for path in (index, old):
        os.utime(path, (1, 1))
    data_identity(config(folder))
    assert index.stat().st_mtime > 1 and old.exists()  # reading is use, and nothing was written
    shutil.copytree(folder, tmp_path / "moved")
    data_identity(config(tmp_path / "moved"))
    assert index.exists() and not old.exists()


def test_data_of_the_hub_are_their_captions_and_how_much_was_downloaded(tmp_path):
    made = TrainingConfig(dataset_name="someone/some", learning_rate=1e-3)

    def identity(captions=("one", "two"), pixel=b"0"):
        file = tmp_path / "train.parquet"
        datasets.Dataset.from_dict({"image": [pixel * 1000, b"1"]}).to_parquet(file)
        rows = datasets.load_dataset("parquet", data_files={"train": str(file)}, cache_dir=str(tmp_path / "cache"))[
            "train"
        ]
        return data_identity(made, CaptionedImages(rows, list(captions), ["0", "1"], downloads=downloads_of(rows.info)))

    first = identity()
    assert identity() == first  # read from the cache this time
    assert len({first, identity(["one", "three"]), identity(pixel=b"01")}) == 3


def test_a_style_is_the_packages_that_draw_it():
    keys = {data_identity(TrainingConfig(style=style, learning_rate=1e-3)) for style in ("outlined", "blueprint")}
    assert len(keys) == 2
