import dataclasses
import os
import shutil
import time

import pytest
import torch
from PIL import Image
from test_encoding import config, encoded, write_folder

from lora_kit.config import TrainingConfig
from lora_kit.data.cache import EncodingCache, evict
from lora_kit.data.identity import data_identity
from lora_kit.models import EMBEDDED_MODEL, load_models

# the defaults of diffusers' script are out of the ordinary
pytestmark = pytest.mark.filterwarnings("ignore::lora_kit.config.ConfigWarning")


@pytest.fixture(scope="module")
def models():
    return load_models(TrainingConfig(style="outlined", learning_rate=1e-3))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Seven pictures in five captions, and a cache of their own."""
    monkeypatch.setenv("LORA_KIT_CACHE", str(tmp_path / "cache"))
    write_folder(tmp_path / "data", [(64, 64)] * 7)
    return tmp_path / "data"


def cache(made, seed=0, num_processes=1, dtype=torch.float32):
    return EncodingCache(made, seed, num_processes, dtype, torch.device("cpu"), data_identity(made))


def test_captions_alone_are_kept_where_pictures_are_cropped_at_random(tmp_path, models, monkeypatch):
    monkeypatch.setenv("LORA_KIT_CACHE", str(tmp_path / "cache"))
    write_folder(tmp_path / "data", [(64, 64), (96, 64)])
    made = config(tmp_path / "data")
    stored = cache(made).write(encoded(made, models))
    assert stored.posterior is None and stored.hidden.shape[0] == 2


def test_written_is_read_back_without_a_copy_left(folder, models):
    made = config(folder, random_flip=True)
    store = cache(made)
    assert store.read() is None
    stored = encoded(made, models)
    for again in (store.write(stored), cache(made).read()):
        assert torch.equal(again.posterior, stored.posterior) and torch.equal(again.hidden, stored.hidden)
        assert again[2:] == stored[2:]
    assert [path.name for path in store.path.parent.glob("encoded-*")] == [store.path.name]


CHANGES = {
    "resolution": 32, "center_crop": True, "random_flip": True, "image_interpolation_mode": "bilinear",
    "max_train_samples": 5, "train_batch_size": 2, "match_diffusers": True,
}  # fmt: skip


@pytest.mark.parametrize("name", CHANGES)
def test_another_setting_is_another_key_and_both_are_kept(name, folder, models):
    made = config(folder)
    old = cache(made)
    old.write(encoded(made, models))
    changed = dataclasses.replace(made, **{name: CHANGES[name]})
    new = cache(changed)
    assert new.read() is None and new.path != old.path
    new.write(encoded(changed, models))
    assert new.read() is not None and old.read() is not None


def test_what_does_not_touch_the_encodings_keeps_the_key(folder):
    made = config(folder)
    for change in ({"learning_rate": 1.0}, {"rank": 16}, {"lr_scheduler": "cosine"}, {"output_dir": "x"}, {"seed": 4}):
        assert cache(dataclasses.replace(made, **change)).key == cache(made).key
    assert cache(made, dtype=torch.bfloat16).key != cache(made).key
    few = dataclasses.replace(made, max_train_samples=3)
    assert cache(few, seed=1).key != cache(few, seed=2).key


def test_processes_and_batches_change_the_key_only_where_they_change_the_encodings(folder):
    own, script = config(folder), config(folder, match_diffusers=True)
    assert len({cache(own, num_processes=number).key for number in (1, 2, 3)}) == 1
    keys = [cache(script, num_processes=number).key for number in (1, 2, 3)]
    assert keys[0] != keys[1] == keys[2]  # on several the last batch is filled up
    assert cache(own).key not in keys
    sizes = {size: dataclasses.replace(own, train_batch_size=size) for size in (2, 8, 9, 16)}
    keys = {size: cache(made).key for size, made in sizes.items()}
    assert keys[2] != keys[8] == keys[9] == keys[16]  # the kit encodes at most 8 together
    assert len({cache(dataclasses.replace(script, train_batch_size=size)).key for size in sizes}) == 4


def test_a_changed_picture_caption_or_model_is_noticed(folder, models, tmp_path):
    model = tmp_path / "model"
    shutil.copytree(EMBEDDED_MODEL, model)
    made = config(folder, pretrained_model_name_or_path=str(model))
    os.utime(folder / "metadata.jsonl", ns=(2, 2))  # so that what is written below has another time, however soon
    keys = [cache(made).key]
    Image.new("RGB", (64, 64), "red").save(folder / "3.png")
    keys.append(cache(made).key)
    text = (folder / "metadata.jsonl").read_text()
    (folder / "metadata.jsonl").write_text(text.replace("a picture of 1", "a picture of 9"))
    keys.append(cache(made).key)
    weights = model / "vae" / "diffusion_pytorch_model.safetensors"
    os.utime(weights, ns=(1, 1))
    keys.append(cache(made).key)
    assert len(set(keys)) == 4
    os.utime(model / "unet" / "diffusion_pytorch_model.safetensors", ns=(1, 1))  # it encodes nothing
    assert cache(made).key == keys[-1]


def test_a_style_s_key_is_the_style(folder):
    keys = {
        cache(TrainingConfig(style=style, learning_rate=1e-3, resolution=size)).key
        for style, size in (("outlined", 64), ("blueprint", 64), ("outlined", 32))
    }
    assert len(keys) == 3


def test_a_fingerprint_is_part_of_the_key(folder):
    made = config(folder)
    more = made, 0, 1, torch.float32, torch.device("cpu"), "the same"
    assert len({EncodingCache(*more, fingerprint).key for fingerprint in (None, "a", "b")}) == 3


def test_what_nobody_uses_goes_and_what_is_too_much_too(tmp_path, monkeypatch):
    now, day = time.time(), 86_400
    ages = {
        "new.safetensors": 0,
        "used.safetensors": 2,
        "older.safetensors": 3,
        "old.safetensors": 31,
        "1.part": 0.5,
        "2.part": 1.5,
    }
    for name, days in ages.items():
        path = tmp_path / f"encoded-{name}"
        path.write_bytes(bytes(1000))
        os.utime(path, (now - days * day, now - days * day))
    (tmp_path / "another-file").write_bytes(bytes(5000))

    def left():
        return {path.name.removeprefix("encoded-") for path in tmp_path.iterdir()} - {"another-file"}

    evict(tmp_path)
    assert left() == {"new.safetensors", "used.safetensors", "older.safetensors", "1.part"}
    monkeypatch.setenv("LORA_KIT_CACHE_GB", "3.5e-6")
    evict(tmp_path)
    assert left() == {"new.safetensors", "used.safetensors", "1.part"}
    monkeypatch.setenv("LORA_KIT_CACHE_GB", "0")
    evict(tmp_path, kept=tmp_path / "encoded-used.safetensors")
    assert left() == {"used.safetensors", "1.part"} and (tmp_path / "another-file").exists()


@pytest.mark.parametrize("value", ["many", "-1", "nan"])
def test_a_limit_that_is_none_is_refused_before_anything_is_encoded(value, folder, monkeypatch):
    monkeypatch.setenv("LORA_KIT_CACHE_GB", value)
    with pytest.raises(ValueError, match=f"^LORA_KIT_CACHE_GB '{value}' is not a number of at least 0, such as 50$"):
        cache(config(folder))


def test_reading_counts_as_use(folder, models):
    store = cache(config(folder))
    store.write(encoded(config(folder), models))
    os.utime(store.path, (1, 1))
    assert store.read() is not None and time.time() - store.path.stat().st_mtime < 86_400


def test_any_bit_of_the_header_counts(folder, models):
    """Either the file is made anew, or it says the very same."""
    store = cache(config(folder))
    stored = store.write(encoded(config(folder), models))
    wanted = (stored.posterior.clone(), stored.hidden.clone(), stored[2:])
    content = store.path.read_bytes()
    store.path.chmod(0o644)
    header = 8 + int.from_bytes(content[:8], "little")
    for place in range(header):
        damaged = bytearray(content)
        damaged[place] ^= 1 << place % 8
        store.path.write_bytes(damaged)
        again = store.read()
        assert again is None or (
            torch.equal(again.posterior, wanted[0]) and torch.equal(again.hidden, wanted[1]) and again[2:] == wanted[2]
        ), place


@pytest.mark.parametrize("damage", ["cut", "flip", "empty", "other"])
def test_a_damaged_file_is_made_anew(damage, folder, models):
    made = config(folder)
    store = cache(made)
    stored = store.write(encoded(made, models))
    wanted, content = stored.posterior.clone(), bytearray(store.path.read_bytes())
    if damage == "flip":
        content[-5] ^= 1
    store.path.chmod(0o644)
    store.path.write_bytes({"cut": content[:-100], "flip": content, "empty": b"", "other": b"x" * 1000}[damage])
    assert store.read() is None
    assert torch.equal(store.write(encoded(made, models)).posterior, wanted)


def test_a_disk_that_takes_nothing_is_a_clear_error(folder, models, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LORA_KIT_CACHE", str(tmp_path / "file" / "inside"))
    made = config(folder)
    with pytest.raises(
        ValueError, match="can't be written: .*Set LORA_KIT_CACHE to a folder with room, or use no_cache"
    ):
        cache(made).write(encoded(made, models))


def test_a_write_that_breaks_off_leaves_the_old_file(folder, models, monkeypatch):
    made = config(folder)
    store = cache(made)
    stored = encoded(made, models)
    store.write(stored)

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(ValueError, match="No space left"):
        store.write(stored)
    assert store.read() is not None and not list(store.path.parent.glob("*.part"))
