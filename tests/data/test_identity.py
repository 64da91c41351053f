"""Data are known by what they hold: not by their folder's name, and not by a file's time."""

import os
import shutil

import pytest
from PIL import Image
from test_encoding import config, write_folder

from lora_kit.config import TrainingConfig
from lora_kit.data import identity
from lora_kit.data.identity import data_identity


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
    digest = identity.file_digest
    monkeypatch.setattr(identity, "file_digest", lambda path: read.append(path.name) or digest(path))
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


def test_a_style_is_the_packages_that_draw_it():
    keys = {data_identity(TrainingConfig(style=style, learning_rate=1e-3)) for style in ("outlined", "blueprint")}
    assert len(keys) == 2
