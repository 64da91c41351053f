import dataclasses
import json
import os
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

import lora_kit.data.encoding
from lora_kit.config import TrainingConfig
from lora_kit.data.encoding import EncodedPictures, EncodingCache, batch_sizes, encode
from lora_kit.data.images import CaptionedImages, TrainingPictures, collate, load_images
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


def write_folder(path, sizes):
    path.mkdir()
    rng = np.random.default_rng(0)
    with open(path / "metadata.jsonl", "w") as file:
        for index, (width, height) in enumerate(sizes):
            name = f"{index}.png"
            Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(path / name)
            file.write(json.dumps({"file_name": name, "text": f"a picture of {index % 5}"}) + "\n")


def config(folder, **settings):
    common = dict(train_data_dir=str(folder), learning_rate=1e-3, resolution=64, train_batch_size=3)
    return TrainingConfig(**common | settings)


def cache(made, seed=0, num_processes=1, dtype=torch.float32):
    return EncodingCache(made, seed, num_processes, dtype, torch.device("cpu"))


def encoded(made, models):
    images = load_images(made, 0)
    return encode(made, images, models, batch_sizes(made, len(images)))


@pytest.mark.parametrize("settings", [{}, {"random_flip": True}, {"random_flip": True, "match_diffusers": True}])
def test_a_batch_is_what_the_encoders_make_of_it(settings, folder, models):
    made = config(folder, **settings)
    plain = TrainingPictures.of(made, load_images(made), models.tokenizer, seed=3)
    kept = EncodedPictures.of(made, None, encoded(made, models), seed=3)
    assert len(kept) == len(plain) == 7
    flips = set()
    for epoch in range(4):
        for indices in ([4, 0, 6], [1, 5, 2], [3]):
            plain.set_epoch(epoch)
            kept.set_epoch(epoch)
            torch.manual_seed(epoch)
            wanted = collate([plain[index] for index in indices])
            torch.manual_seed(epoch)
            batch = kept.__getitems__(indices)
            with torch.no_grad():
                posterior = models.vae.encode(wanted["pixel_values"]).latent_dist
                hidden = models.text_encoder(wanted["input_ids"], return_dict=False)[0]
            torch.testing.assert_close(batch["posterior"][:, 0], posterior.mean, rtol=0, atol=1e-4)
            torch.testing.assert_close(batch["posterior"][:, 1], posterior.std, rtol=1e-4, atol=0)
            torch.testing.assert_close(batch["encoder_hidden_states"], hidden, rtol=0, atol=1e-5)
            flips.add(tuple(batch["posterior"].flatten()[:4].tolist()))
    assert len(flips) > 3 if made.random_flip else len(flips) == 3


def test_captions_are_kept_once_and_lists_drawn_from(models):
    image = Image.new("RGB", (64, 64))
    images = CaptionedImages([image] * 3, ["one", ["two", "one", "three"], "two"], ["a", "b", "c"])
    made = TrainingConfig(style="outlined", learning_rate=1e-3, resolution=64)
    found = encode(made, images, models, (2,))
    assert found.captions == [0, [1, 0, 2], 1]
    assert found.hidden.shape[0] == 3
    pictures = EncodedPictures.of(made, images, found, seed=0)
    drawn = set()
    for epoch in range(20):
        pictures.set_epoch(epoch)
        hidden = pictures.__getitems__([0, 1])["encoder_hidden_states"]
        assert torch.equal(hidden[0], found.hidden[0])
        drawn.add(next(place for place in range(3) if torch.equal(hidden[1], found.hidden[place])))
    assert drawn == {0, 1, 2}


def test_pictures_that_are_cropped_at_random_are_encoded_as_they_come(tmp_path, models, monkeypatch):
    monkeypatch.setenv("LORA_KIT_CACHE", str(tmp_path / "cache"))
    write_folder(tmp_path / "data", [(64, 64), (96, 64)])
    made = config(tmp_path / "data")
    found = encoded(made, models)
    assert found.posterior is None and found.hidden.shape[0] == 2
    assert cache(made).write(found).posterior is None
    batch = EncodedPictures.of(made, load_images(made), found, seed=0).__getitems__([1, 0])
    assert batch["pixel_values"].shape == (2, 3, 64, 64)
    centred = dataclasses.replace(made, center_crop=True)
    assert encoded(centred, models).posterior.shape == (1, 1, 2, 2, 4, 16, 16)


def test_written_is_read_back_without_a_copy_left(folder, models):
    made = config(folder, random_flip=True)
    store = cache(made)
    assert store.read() is None
    stored = encoded(made, models)
    for found in (store.write(stored), cache(made).read()):
        assert torch.equal(found.posterior, stored.posterior) and torch.equal(found.hidden, stored.hidden)
        assert found[2:] == stored[2:]
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
    assert (
        cache(dataclasses.replace(made, max_train_samples=3), seed=1).key
        != cache(dataclasses.replace(made, max_train_samples=3), seed=2).key
    )


def test_a_changed_picture_caption_or_model_is_noticed(folder, models, tmp_path):
    model = tmp_path / "model"
    shutil.copytree(EMBEDDED_MODEL, model)
    made = config(folder, pretrained_model_name_or_path=str(model))
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

    monkeypatch.setattr(lora_kit.encoding.os, "replace", full)
    with pytest.raises(ValueError, match="No space left"):
        store.write(stored)
    assert store.read() is not None and not list(store.path.parent.glob("*.part"))


def test_batches_are_encoded_as_the_script_has_them(folder):
    made = config(folder, match_diffusers=True, train_batch_size=3)
    assert [batch_sizes(made, count) for count in (7, 6, 2)] == [(3, 1), (3,), (2,)]
    assert batch_sizes(made, 7, 2) == (3,)
    assert batch_sizes(dataclasses.replace(made, match_diffusers=False, train_batch_size=32), 100) == (8,)
