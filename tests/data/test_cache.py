import dataclasses
import os
import shutil

import pytest
import torch
from PIL import Image
from test_encoding import config, encoded, write_folder

from lora_kit.config import TrainingConfig
from lora_kit.data.cache import EncodingCache
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
    return EncodingCache(made, seed, num_processes, dtype, torch.device("cpu"))


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
def test_another_setting_is_another_key_and_takes_the_old_one_away(name, folder, models):
    made = config(folder)
    old = cache(made)
    old.write(encoded(made, models))
    changed = dataclasses.replace(made, **{name: CHANGES[name]})
    new = cache(changed)
    assert new.read() is None and new.path != old.path
    new.write(encoded(changed, models))
    assert new.read() is not None and not old.path.exists()


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


def test_a_fingerprint_stands_for_the_files(folder):
    made = config(folder)
    more = made, 0, 1, torch.float32, torch.device("cpu")
    assert len({EncodingCache(*more, fingerprint).key for fingerprint in (None, "a", "b")}) == 3


def test_what_was_left_half_written_long_ago_goes(folder, models):
    made = config(folder)
    store = cache(made)
    store.path.parent.mkdir(parents=True)
    old, new = (store.path.with_suffix(f".{number}.part") for number in (1, 2))
    other = store.path.parent / "encoded-0123456789ab-0.1.part"  # of other data
    for path in (old, new, other):
        path.write_bytes(b"half")
    for path in (old, other):
        os.utime(path, ns=(1, 1))
    store.write(encoded(made, models))
    assert not old.exists() and new.exists() and other.exists()


@pytest.mark.parametrize("damage", ["cut", "flip", "empty", "other"])
def test_a_damaged_file_is_made_anew(damage, folder, models):
    made = config(folder)
    store = cache(made)
    stored = store.write(encoded(made, models))
    wanted, content = stored.posterior.clone(), bytearray(store.path.read_bytes())
    if damage == "flip":
        content[-5] ^= 1
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
