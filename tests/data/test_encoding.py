import dataclasses
import io
import json
import random
import re
import resource
import shutil

import datasets
import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image

from lora_kit.config import TrainingConfig
from lora_kit.data.batches import TrainingPictures, collate
from lora_kit.data.emoji import cache_dir
from lora_kit.data.encoding import EncodedPictures, Plan, batch_sizes, distinct_captions, encode_captions
from lora_kit.data.images import CaptionedImages, load_images
from lora_kit.data.prepared import Pictures
from lora_kit.data.records import SealedRecords
from lora_kit.models import load_models
from lora_kit.system.state import own_accelerate_state

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


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LORA_KIT_CACHE", str(tmp_path / "cache"))


def prepared(made, seed=3):
    """The data of a run in one process, as `train` prepares them."""
    with own_accelerate_state():
        return Pictures(made, Accelerator(cpu=True), seed, torch.float32).prepare()


def batch_of(data, indices):
    """(a batch in which nothing is left to encode, what was new in it)."""
    batch = data.dataset.__getitems__(indices)
    new = {name: [index for _, *_, index in batch.get(name, [])] for name in ("new_pictures", "new_captions")}
    data.encode_new_captions(batch)
    data.encode_new_pictures(batch)
    return batch, new


@pytest.mark.parametrize("settings", [{}, {"random_flip": True}, {"random_flip": True, "match_diffusers": True}])
def test_a_batch_is_what_the_encoders_make_of_it(settings, folder, models):
    made = config(folder, **settings)
    plain = TrainingPictures.of(made, load_images(made), models.tokenizer, seed=3)
    data = prepared(made)
    assert len(data.dataset) == len(plain) == 7
    posteriors = set()
    for epoch in range(4):
        plain.set_epoch(epoch)
        data.set_epoch(epoch)
        for indices in ([4, 0, 6], [1, 5, 2], [3]):
            torch.manual_seed(epoch)
            random.seed(epoch)
            wanted = collate([plain[index] for index in indices])
            torch.manual_seed(epoch)
            random.seed(epoch)
            batch, new = batch_of(data, indices)
            assert new["new_pictures"] == (indices if epoch == 0 else [])
            with torch.no_grad():
                posterior = models.vae.encode(wanted["pixel_values"]).latent_dist
                hidden = models.text_encoder(wanted["input_ids"], return_dict=False)[0]
            torch.testing.assert_close(batch["posterior"][:, 0], posterior.mean, rtol=0, atol=1e-4)
            torch.testing.assert_close(batch["posterior"][:, 1], posterior.std, rtol=1e-4, atol=0)
            torch.testing.assert_close(batch["encoder_hidden_states"], hidden, rtol=0, atol=1e-5)
            posteriors.add(tuple(batch["posterior"].flatten()[:4].tolist()))
    assert len(posteriors) > 3 if made.random_flip else len(posteriors) == 3  # of three batches


def test_each_is_encoded_once_in_whichever_batch_it_comes_first_and_to_the_bit_the_same(folder):
    """Not the batch, not the order, not the run before decides what the numbers are."""
    data = prepared(config(folder))
    news = [batch_of(data, indices) for indices in ([4, 0, 6], [0, 5, 6], [1, 2, 3])]
    assert [new["new_pictures"] for _, new in news] == [[4, 0, 6], [5], [1, 2, 3]]
    assert [new["new_captions"] for _, new in news] == [
        ["a picture of 4", "a picture of 0", "a picture of 1"], [], ["a picture of 2", "a picture of 3"]
    ]  # fmt: skip
    again = prepared(config(folder))
    shutil.rmtree(cache_dir())
    other = prepared(config(folder))
    others = dict(zip((6, 5, 4, 3, 2, 1, 0), batch_of(other, [6, 5, 4, 3, 2, 1, 0])[0]["posterior"], strict=True))
    for indices in ([0, 1, 2], [3, 4, 5], [6]):
        batch, new = batch_of(again, indices)
        assert new == {"new_pictures": [], "new_captions": []} and again.dataset.images is None
        assert torch.equal(batch["posterior"], torch.stack([others[index] for index in indices]))


def test_encoders_leave_memory_when_all_is_encoded(folder):
    data = prepared(config(folder))
    data.set_epoch(0)
    for indices in ([4, 0, 6], [1, 5, 2], [3]):
        batch_of(data, indices)
    assert data.encoders.loaded() == {"tokenizer", "text_encoder", "vae"}
    data.set_epoch(1)
    assert data.encoders.loaded() == set()
    assert data.dataset.posteriors.path.stat().st_mode & 0o777 == 0o444
    assert prepared(config(folder)).encoders.loaded() == set()  # and another run needs none


def test_encoders_leave_memory_after_an_epoch_that_needed_none(folder):
    """With the script's batches a picture may never come in the last one, which has encodings of its own."""
    data = prepared(config(folder, match_diffusers=True))
    for epoch, loaded in enumerate([{"tokenizer", "text_encoder", "vae"}, {"vae"}, set()]):
        data.set_epoch(epoch)
        assert data.encoders.loaded() == loaded, epoch
        for indices in ([4, 0, 6], [1, 5, 2], [3]):
            batch_of(data, indices)
    assert data.dataset.posteriors.missing() == 7 + 6 - 6


def test_a_damaged_encoding_is_made_again_in_the_middle_of_a_run(folder):
    data = prepared(config(folder))
    before, _ = batch_of(data, [0, 1, 2, 3, 4, 5, 6])
    data = prepared(config(folder))
    for records in (data.dataset.posteriors, data.dataset.hidden):
        content = bytearray(records.path.read_bytes())
        content[-1] ^= 1
        records.path.write_bytes(content)
    batch, new = batch_of(data, [0, 1, 2, 3, 4, 5, 6])
    assert new == {"new_pictures": [6], "new_captions": ["a picture of 4"]}
    for name in ("posterior", "encoder_hidden_states"):
        assert torch.equal(batch[name], before[name])
    assert batch_of(data, [4, 6])[1] == {"new_pictures": [], "new_captions": []}


def test_captions_that_change_in_the_middle_of_a_run_are_seen(folder):
    batch_of(prepared(config(folder)), [0, 1, 2, 3, 4, 5, 6])
    data = prepared(config(folder))
    data.dataset.hidden.path.write_bytes(bytes(data.dataset.hidden.path.stat().st_size))
    text = (folder / "metadata.jsonl").read_text()
    (folder / "metadata.jsonl").write_text(text.replace("a picture of 1", "a picture of 9"))
    with pytest.raises(ValueError, match="the pictures or their captions have changed since the run began"):
        batch_of(data, [0, 1])


def test_a_picture_that_changes_in_the_middle_of_a_run_is_seen_before_it_is_kept(folder):
    data = prepared(config(folder))
    batch_of(data, [0, 1])
    (folder / "4.png").chmod(0o600)  # which changes nothing that is seen
    batch_of(data, [4, 5])
    shutil.copyfile(folder / "3.png", folder / "2.png")
    with pytest.raises(ValueError, match="have changed since the run began: .*; picture .*2.png is no longer the same"):
        batch_of(data, [2, 3])
    assert data.dataset.posteriors.missing() == 3


@pytest.mark.parametrize("no_cache", [True, False])
def test_no_collective_waits_while_the_pictures_are_looked_through(no_cache, folder, monkeypatch):
    """It would end after ddp_timeout, and many pictures take longer."""
    for name in ("local_main_process_first", "main_process_first", "wait_for_everyone"):
        monkeypatch.setattr(Accelerator, name, lambda self: pytest.fail("a collective"))
    assert len(prepared(config(folder, no_cache=no_cache)).dataset) == 7


@pytest.mark.parametrize("no_cache", [True, False])
def test_captions_that_are_cut_are_counted_before_training(no_cache, folder, capsys):
    text = (folder / "metadata.jsonl").read_text()
    (folder / "metadata.jsonl").write_text(text.replace("a picture of 1", "fox " * 20 + "red apple"))
    prepared(config(folder, no_cache=no_cache))
    assert re.search(
        r"^warning: 1 of 5 captions are longer than the \d+ tokens that the text encoder reads; of one it drops '.*red apple'$",
        capsys.readouterr().out,
        re.MULTILINE,
    )


def test_without_a_cache_too_a_broken_picture_is_named_before_training(tmp_path):
    stored = [{"bytes": file.getvalue(), "path": None} for file in (io.BytesIO(), io.BytesIO(b"no picture"))]
    Image.new("RGB", (64, 64)).save(whole := io.BytesIO(), "PNG")
    stored[0]["bytes"] = whole.getvalue()
    features = datasets.Features({"image": datasets.Image(), "text": datasets.Value("string")})
    (tmp_path / "stored").mkdir()
    datasets.Dataset.from_dict({"image": stored, "text": ["one", "two"]}, features).to_parquet(
        tmp_path / "stored" / "a.parquet"
    )
    made = TrainingConfig(dataset_name=str(tmp_path / "stored"), learning_rate=1e-3, resolution=64, no_cache=True)
    with pytest.raises(ValueError, match="picture 1 of .*stored can't be read"):
        prepared(made)


@pytest.mark.parametrize("center_crop", [True, False])
def test_a_broken_picture_of_any_source_is_named_before_training(center_crop, models):
    good, broken = io.BytesIO(), {"image": {"path": None, "bytes": b"no picture"}}
    Image.new("RGB", (64, 64)).save(good, "PNG")
    stored = [{"image": {"path": None, "bytes": good.getvalue()}}, broken]
    images = CaptionedImages(stored, ["one", "two"], ["0 of somewhere", "1 of somewhere"])
    made = TrainingConfig(style="outlined", learning_rate=1e-3, resolution=64, center_crop=center_crop)
    with pytest.raises(ValueError, match="picture 1 of somewhere can't be read"):
        Plan.of(made, images, models.tokenizer, models.text_encoder, models.vae, (2,))


def test_a_disk_that_takes_no_more_is_said_once_and_the_run_goes_on(folder, capsys):
    wanted = batch_of(prepared(config(folder)), [0, 1, 2])[0]
    shutil.rmtree(cache_dir())
    data = prepared(config(folder))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
    try:
        for _ in range(2):
            batch, new = batch_of(data, [0, 1, 2])
            assert new["new_pictures"] == [0, 1, 2] and torch.equal(batch["posterior"], wanted["posterior"])
            assert torch.equal(batch["encoder_hidden_states"], wanted["encoder_hidden_states"])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    said = capsys.readouterr().err
    assert (
        said.count("warning: the cache ") == 1 and "can't be written: No space left on device; the run goes on" in said
    )
    data.set_epoch(1)
    assert "vae" in data.encoders.loaded()


def test_captions_are_kept_once_and_lists_drawn_from(models, tmp_path):
    made = TrainingConfig(style="outlined", learning_rate=1e-3, resolution=64)
    image = Image.new("RGB", (64, 64))
    images = CaptionedImages([image] * 3, ["one", ["two", "one", "three"], "two"], ["a", "b", "c"])
    assert distinct_captions(images) == (["one", "two", "three"], [0, [1, 0, 2], 1])
    plan = Plan.of(made, images, models.tokenizer, models.text_encoder, models.vae, (2,))
    assert plan.caption_shape[0] == 3 and plan.picture_shape == (1, 1, 3, 2, 4, 16, 16)
    hidden = SealedRecords(tmp_path / "captions", "key", 3, plan.caption_shape[1:], torch.float32)
    encoded = encode_captions(["one", "two", "three"], models.tokenizer, models.text_encoder, 2)
    for place, text in enumerate(("one", "two", "three")):
        hidden.write(place, encoded[place])
        ids = models.tokenizer(text, padding="max_length", return_tensors="pt").input_ids
        with torch.no_grad():
            torch.testing.assert_close(encoded[place], models.text_encoder(ids)[0][0], rtol=0, atol=1e-5)
    posteriors = SealedRecords(tmp_path / "pictures", "key", 3, plan.picture_shape[3:], torch.float32)
    pictures = EncodedPictures.of(made, images, plan, 0, hidden=hidden, posteriors=posteriors, load=None)
    drawn = set()
    for epoch in range(20):
        pictures.set_epoch(epoch)
        states = pictures.__getitems__([0, 1])["encoder_hidden_states"]
        assert torch.equal(states[0], encoded[0])
        drawn.add(next(place for place in range(3) if torch.equal(states[1], encoded[place])))
    assert drawn == {0, 1, 2}


def test_pictures_that_are_cropped_at_random_are_encoded_as_they_come(tmp_path, models):
    write_folder(tmp_path / "data", [(64, 64), (96, 64)])
    made = config(tmp_path / "data")
    for loaded in ({"tokenizer", "text_encoder", "vae"}, set()):  # the second time captions are known
        data = prepared(made, seed=0)
        assert data.dataset.posteriors is None and data.encoders.loaded() == loaded
        batch, _ = batch_of(data, [1, 0])
        plain = TrainingPictures.of(made, load_images(made), models.tokenizer, seed=0)
        assert torch.equal(batch["pixel_values"], torch.stack([plain[1]["pixel_values"], plain[0]["pixel_values"]]))
    centred = dataclasses.replace(made, center_crop=True)
    assert prepared(centred).dataset.plan.picture_shape == (1, 1, 2, 2, 4, 16, 16)


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
    data = prepared(made)
    assert data.dataset.plan.batch_sizes == (3, 1) and data.dataset.plan.picture_shape[:3] == (2, 1, 7)
    plain = TrainingPictures.of(made, load_images(made), models.tokenizer)
    for _ in range(2):  # as they are encoded, and from the disk
        for indices in ([0, 1, 2], [6], [4, 5, 6]):
            with torch.no_grad():
                posterior = models.vae.encode(torch.stack([plain.pixels(index) for index in indices])).latent_dist
            assert torch.equal(batch_of(data, indices)[0]["posterior"][:, 0], posterior.mean)
