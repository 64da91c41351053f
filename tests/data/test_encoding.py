import dataclasses
import json

import numpy as np
import pytest
import torch
from PIL import Image

from lora_kit.config import TrainingConfig
from lora_kit.data.batches import TrainingPictures, collate
from lora_kit.data.encoding import EncodedPictures, batch_sizes, encode
from lora_kit.data.images import CaptionedImages, load_images
from lora_kit.models import load_models

# the defaults of diffusers' script are out of the ordinary
pytestmark = pytest.mark.filterwarnings("ignore::lora_kit.config.ConfigWarning")


@pytest.fixture(scope="module")
def models():
    return load_models(TrainingConfig(style="outlined", learning_rate=1e-3))


@pytest.fixture
def folder(tmp_path):
    """Seven pictures in five captions."""
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


def encoded(made, models):
    images = load_images(made, 0)
    return encode(made, images, models, batch_sizes(made, len(images)))


@pytest.mark.parametrize("settings", [{}, {"random_flip": True}, {"random_flip": True, "match_diffusers": True}])
def test_a_batch_is_what_the_encoders_make_of_it(settings, folder, models):
    made = config(folder, **settings)
    plain = TrainingPictures.of(made, load_images(made), models.tokenizer, seed=3)
    pictures = EncodedPictures.of(made, None, encoded(made, models), seed=3)
    assert len(pictures) == len(plain) == 7
    posteriors = set()
    for epoch in range(4):
        for indices in ([4, 0, 6], [1, 5, 2], [3]):
            plain.set_epoch(epoch)
            pictures.set_epoch(epoch)
            torch.manual_seed(epoch)
            wanted = collate([plain[index] for index in indices])
            torch.manual_seed(epoch)
            batch = pictures.__getitems__(indices)
            with torch.no_grad():
                posterior = models.vae.encode(wanted["pixel_values"]).latent_dist
                hidden = models.text_encoder(wanted["input_ids"], return_dict=False)[0]
            torch.testing.assert_close(batch["posterior"][:, 0], posterior.mean, rtol=0, atol=1e-4)
            torch.testing.assert_close(batch["posterior"][:, 1], posterior.std, rtol=1e-4, atol=0)
            torch.testing.assert_close(batch["encoder_hidden_states"], hidden, rtol=0, atol=1e-5)
            posteriors.add(tuple(batch["posterior"].flatten()[:4].tolist()))
    assert len(posteriors) > 3 if made.random_flip else len(posteriors) == 3  # of three batches


def test_captions_are_kept_once_and_lists_drawn_from(models):
    image = Image.new("RGB", (64, 64))
    images = CaptionedImages([image] * 3, ["one", ["two", "one", "three"], "two"], ["a", "b", "c"])
    made = TrainingConfig(style="outlined", learning_rate=1e-3, resolution=64)
    encodings = encode(made, images, models, (2,))
    assert encodings.captions == [0, [1, 0, 2], 1]
    assert encodings.hidden.shape[0] == 3
    for place, text in enumerate(("one", "two", "three")):
        ids = models.tokenizer(text, padding="max_length", return_tensors="pt").input_ids
        with torch.no_grad():
            torch.testing.assert_close(encodings.hidden[place], models.text_encoder(ids)[0][0], rtol=0, atol=1e-5)
    pictures = EncodedPictures.of(made, images, encodings, seed=0)
    drawn = set()
    for epoch in range(20):
        pictures.set_epoch(epoch)
        hidden = pictures.__getitems__([0, 1])["encoder_hidden_states"]
        assert torch.equal(hidden[0], encodings.hidden[0])
        drawn.add(next(place for place in range(3) if torch.equal(hidden[1], encodings.hidden[place])))
    assert drawn == {0, 1, 2}


def test_pictures_that_are_cropped_at_random_are_encoded_as_they_come(tmp_path, models):
    write_folder(tmp_path / "data", [(64, 64), (96, 64)])
    made = config(tmp_path / "data")
    encodings = encoded(made, models)
    assert encodings.posterior is None and encodings.hidden.shape[0] == 2
    batch = EncodedPictures.of(made, load_images(made), encodings, seed=0).__getitems__([1, 0])
    plain = TrainingPictures.of(made, load_images(made), models.tokenizer, seed=0)
    assert torch.equal(batch["pixel_values"], torch.stack([plain[1]["pixel_values"], plain[0]["pixel_values"]]))
    centred = dataclasses.replace(made, center_crop=True)
    assert encoded(centred, models).posterior.shape == (1, 1, 2, 2, 4, 16, 16)


def test_batches_are_encoded_as_the_script_has_them(folder):
    made = config(folder, match_diffusers=True, train_batch_size=3)
    assert [batch_sizes(made, count) for count in (7, 6, 2)] == [(3, 1), (3,), (2,)]
    assert batch_sizes(made, 7, 2) == (3,) and batch_sizes(made, 2, 2) == (3,)
    assert batch_sizes(dataclasses.replace(made, train_batch_size=32), 100) == (32, 4)
    own = dataclasses.replace(made, match_diffusers=False, train_batch_size=32)
    assert [batch_sizes(own, 100, processes) for processes in (1, 2)] == [(8,), (8,)]
    assert batch_sizes(dataclasses.replace(own, train_batch_size=3), 100) == (3,)


def test_the_last_batch_of_the_script_has_encodings_of_its_own(folder, models):
    """To the bit what the VAE makes of so many pictures together: 3, 3 and 1 of seven."""
    made = config(folder, match_diffusers=True)
    encodings = encoded(made, models)
    assert encodings.batch_sizes == (3, 1) and encodings.posterior.shape[:3] == (2, 1, 7)
    plain = TrainingPictures.of(made, load_images(made), models.tokenizer)
    pictures = EncodedPictures.of(made, None, encodings)
    for indices in ([0, 1, 2], [6]):
        with torch.no_grad():
            posterior = models.vae.encode(torch.stack([plain.pixels(index) for index in indices])).latent_dist
        assert torch.equal(pictures.__getitems__(indices)["posterior"][:, 0], posterior.mean)
