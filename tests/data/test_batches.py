import json
import random
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoTokenizer

from lora_kit.config import INTERPOLATION_MODES, TrainingConfig
from lora_kit.data.batches import TrainingPictures, collate, resize_and_crop
from lora_kit.data.images import CaptionedImages, load_images
from lora_kit.models import EMBEDDED_MODEL


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(EMBEDDED_MODEL / "tokenizer")


def of(*pictures, captions=None):
    captions = captions or ["a dog"] * len(pictures)
    return CaptionedImages(list(pictures), captions, [str(index) for index in range(len(pictures))])


def numbered(width, height):
    """A picture whose red channel is its column and whose green channel is its row."""
    columns, rows = np.meshgrid(np.arange(width), np.arange(height))
    return Image.fromarray(np.stack([columns, rows, 0 * rows], axis=-1).astype(np.uint8))


def test_values_are_those_of_to_tensor_and_normalize(tokenizer):
    colours = [[(0, 51, 255), (255, 0, 102)], [(1, 2, 3), (204, 153, 128)]]
    image = Image.fromarray(np.array(colours, dtype=np.uint8))
    item = TrainingPictures(of(image), tokenizer, 2, center_crop=True, random_flip=False, seed=0)[0]
    wanted = (torch.tensor(colours).permute(2, 0, 1) / 255 - 0.5) / 0.5
    assert item["pixel_values"].dtype == torch.float32 and torch.equal(item["pixel_values"], wanted)
    assert item["pixel_values"][:, 0, 0].tolist() == pytest.approx([-1, -0.6, 1])
    assert item["input_ids"].dtype == torch.int64 and item["input_ids"].shape == (tokenizer.model_max_length,)
    assert item["input_ids"].tolist() == tokenizer("a dog", padding="max_length").input_ids


@pytest.mark.parametrize("size", [(7, 5), (5, 7), (33, 10), (10, 33), (4, 4), (8, 8), (500, 9)])
@pytest.mark.parametrize("center", [True, False])
def test_every_shape_becomes_a_square(size, center):
    assert resize_and_crop(Image.new("RGB", size), 8, center).size == (8, 8)


def test_the_longer_edge_is_cut_down_to_a_whole_number(monkeypatch):
    sizes, resize = [], Image.Image.resize

    def seen(self, size, *rest):
        sizes.append((size, *rest))
        return resize(self, size, *rest)

    monkeypatch.setattr(Image.Image, "resize", seen)
    resize_and_crop(Image.new("RGB", (7, 3)), 8, True)  # 8 * 7 / 3 = 18.67
    resize_and_crop(Image.new("RGB", (3, 7)), 8, True, "bilinear")
    resize_and_crop(Image.new("RGB", (8, 20)), 8, True)  # already right: left alone
    resize_and_crop(Image.new("RGB", (4, 4)), 8, True, "nearest_exact")
    kinds = Image.Resampling
    assert sizes == [((18, 8), kinds.LANCZOS), ((8, 18), kinds.BILINEAR), ((8, 8), kinds.NEAREST)]


def test_interpolation_modes_of_the_configuration_all_resize():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (20, 20, 3), dtype=np.uint8))
    seen = {mode: resize_and_crop(image, 9, True, mode).tobytes() for mode in INTERPOLATION_MODES}
    assert len(set(seen.values())) == len(seen) - 1 and seen["nearest"] == seen["nearest_exact"]


@pytest.mark.parametrize("width, left", [(8, 0), (9, 0), (10, 1), (11, 2), (12, 2)])  # torchvision rounds half to even
def test_center_crop(width, left):
    assert resize_and_crop(numbered(width, 8), 8, True).getpixel((0, 0)) == (left, 0, 0)


def test_random_crop_is_uniform_and_flip_a_fair_coin(tokenizer):
    pictures = TrainingPictures(of(numbered(10, 8)), tokenizer, 8, center_crop=False, random_flip=True, seed=3)
    corners = Counter()
    for epoch in range(600):
        pictures.set_epoch(epoch)
        first, last = ((pictures[0]["pixel_values"][0, 0, column].item() + 1) * 127.5 for column in (0, -1))
        corners[round(min(first, last)), first > last] += 1
    assert set(corners) == {(left, flipped) for left in (0, 1, 2) for flipped in (True, False)}
    assert min(corners.values()) > 60 and max(corners.values()) < 140  # 100 expected, standard deviation 9


def test_an_epoch_repeats_whatever_came_before(tokenizer):
    images = of(numbered(60, 8), numbered(8, 60), captions=[["one", "two", "three", "four"], "five"])

    def read(seed, epochs):
        pictures = TrainingPictures(images, tokenizer, 8, center_crop=False, random_flip=True, seed=seed)
        for epoch in epochs:
            pictures.set_epoch(epoch)
            torch.rand(3)
            batch = collate([pictures[1], pictures[0]])
        return batch["pixel_values"], batch["input_ids"]

    state = torch.random.get_rng_state()
    fresh, resumed = read(0, [0, 1, 2, 3]), read(0, [3])
    assert all(torch.equal(tensor, again) for tensor, again in zip(fresh, resumed, strict=True))
    assert not torch.equal(fresh[0], read(0, [4])[0]) and not torch.equal(fresh[0], read(1, [3])[0])
    torch.random.set_rng_state(state)
    TrainingPictures(images, tokenizer, 8, center_crop=False, random_flip=True, seed=0)[0]
    assert torch.equal(torch.random.get_rng_state(), state)  # and torch's own generator is left alone


def test_without_a_seed_torch_s_own_decides(tokenizer):
    torch.manual_seed(11)
    assert TrainingPictures(of(numbered(8, 8)), tokenizer, 8, False, False).seed == 11


def test_a_list_of_captions_gives_each_its_turn(tokenizer):
    images = of(numbered(8, 8), captions=[["a dog", "a cat"]])
    pictures = TrainingPictures(images, tokenizer, 8, center_crop=True, random_flip=False, seed=0)
    seen = Counter()
    for epoch in range(100):
        pictures.set_epoch(epoch)
        seen[tokenizer.decode(pictures[0]["input_ids"], skip_special_tokens=True).strip()] += 1
    assert set(seen) == {"a dog", "a cat"} and min(seen.values()) > 25


def test_a_long_caption_is_cut(tokenizer):
    images = of(numbered(8, 8), captions=["dog " * 300])
    item = TrainingPictures(images, tokenizer, 8, center_crop=True, random_flip=False, seed=0)[0]
    assert item["input_ids"].shape == (tokenizer.model_max_length,)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_reads_a_folder(tmp_path, tmp_path_factory, tokenizer, workers):
    cache = tmp_path_factory.mktemp("cache")
    rows = [{"file_name": f"{index}.png", "text": [f"caption {index}", "another"]} for index in range(5)]
    for index, row in enumerate(rows):
        Image.new("RGB", (12, 10), (index, 100, 200)).save(tmp_path / row["file_name"])
    (tmp_path / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    images = load_images(TrainingConfig(train_data_dir=str(tmp_path), learning_rate=1e-3, cache_dir=str(cache)))
    assert images.captions(2) == ["caption 2", "another"]
    pictures = TrainingPictures(images, tokenizer, 8, center_crop=False, random_flip=True, seed=0)
    loader = torch.utils.data.DataLoader(pictures, batch_size=2, collate_fn=collate, num_workers=workers)
    batches = list(loader)
    assert [len(batch["pixel_values"]) for batch in batches] == [2, 2, 1]
    assert batches[0]["pixel_values"].shape == (2, 3, 8, 8) and batches[0]["pixel_values"].is_contiguous()
    assert batches[0]["input_ids"].shape == (2, tokenizer.model_max_length)
    assert torch.equal(batches[1]["pixel_values"][0], pictures[2]["pixel_values"])


def test_batches_that_are_made_already_pass_through():
    batch = {"posterior": torch.zeros(2), "encoder_hidden_states": torch.ones(2)}
    assert collate(batch) is batch


def test_with_match_diffusers_items_draw_one_after_the_other_as_in_the_script(tokenizer):
    """There a caption comes from Python's random.choice, then the crop's top, its left and the flip from torch's."""
    config = TrainingConfig(
        style="outlined", learning_rate=1e-3, lr_warmup_steps=0, resolution=8, random_flip=True, match_diffusers=True
    )
    texts = ["one", "two", "three", "four"]
    wide, tall = numbered(60, 8), numbered(8, 60)
    pictures = TrainingPictures.of(config, of(wide, tall, captions=[texts, texts]), tokenizer, seed=3)
    random.seed(1)
    torch.manual_seed(1)
    items = [pictures[index] for index in (1, 0, 1, 0, 1)]
    random.seed(1)
    torch.manual_seed(1)
    flips = set()
    for index, item in zip((1, 0, 1, 0, 1), items, strict=True):
        caption = random.choice(texts)
        top, left = (int(torch.randint(spare + 1, (1,))) for spare in ((0, 52) if index == 0 else (52, 0)))
        flip = bool(torch.rand(1) < 0.5)
        flips.add(flip)
        corner = item["pixel_values"][:2, 0, -1 if flip else 0]
        assert ((corner + 1) * 127.5).round().tolist() == [left, top]
        assert item["input_ids"].tolist() == tokenizer(caption, padding="max_length").input_ids
    assert flips == {True, False}


def test_without_match_diffusers_the_seed_decides(tokenizer):
    config = TrainingConfig(style="outlined", learning_rate=1e-3, resolution=8, random_flip=True)
    pictures = TrainingPictures.of(config, of(numbered(60, 8)), tokenizer, seed=3)
    assert (pictures.global_draws, pictures.seed, pictures.random_flip, pictures.center_crop) == (False, 3, True, False)


def test_what_is_cut_off_a_caption():
    from lora_kit.data.batches import cut_captions
    from lora_kit.models import load_models

    tokenizer = load_models(TrainingConfig(style="outlined", learning_rate=1e-3), parts=("tokenizer",)).tokenizer
    read, fox = tokenizer.model_max_length - 2, len(tokenizer("fox", add_special_tokens=False).input_ids)
    fits = " ".join(["fox"] * (read // fox))
    cut = cut_captions(["fox", fits, f"{fits} fox red apple"], tokenizer)
    assert list(cut) == [f"{fits} fox red apple"] and cut[f"{fits} fox red apple"].split()[-2:] == ["red", "apple"]
    assert len(cut[f"{fits} fox red apple"]) < len("fox fox red apple")
    assert cut_captions([], tokenizer) == {}
