import json
import sys
from collections import Counter

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoTokenizer

from lora_kit.config import TrainingConfig
from lora_kit.data.emoji import load_style
from lora_kit.data.images import CaptionedImages, TrainingPictures, collate, find_columns, load_images, resize_and_crop
from lora_kit.models import EMBEDDED_MODEL

ROWS = [{"file_name": f"{index}.png", "text": f"caption {index}"} for index in range(5)]


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(EMBEDDED_MODEL / "tokenizer")


@pytest.fixture
def settings(tmp_path):
    return {"learning_rate": 1e-3, "cache_dir": str(tmp_path / "cache")}


def write_folder(folder, rows=ROWS, pictures=5):
    folder.mkdir(parents=True)
    for index in range(pictures):
        Image.new("RGB", (12, 10), (index, 100, 200)).save(folder / f"{index}.png")
    if rows is not None:
        (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder)


def of(*pictures, captions=None):
    captions = captions or ["a dog"] * len(pictures)
    return CaptionedImages(list(pictures), captions, [str(index) for index in range(len(pictures))])


def numbered(width, height):
    """A picture whose red channel is its column and whose green channel is its row."""
    columns, rows = np.meshgrid(np.arange(width), np.arange(height))
    return Image.fromarray(np.stack([columns, rows, 0 * rows], axis=-1).astype(np.uint8))


# Where pictures come from


def test_a_style_gives_the_emoji_that_a_lora_may_see():
    images = load_images(TrainingConfig(style="outlined", resolution=64, learning_rate=1e-3))
    records = load_style("outlined", "lora")
    assert [images.captions(index) for index in range(len(images))] == [record["text"] for record in records]
    assert images.image(7).tobytes() == records[7]["image"].tobytes()


@pytest.mark.parametrize("field", ["train_data_dir", "dataset_name"])
def test_a_local_folder(tmp_path, settings, field):
    images = load_images(TrainingConfig(**{field: write_folder(tmp_path / "pictures")}, **settings))
    assert len(images) == 5
    assert [images.captions(index) for index in range(5)] == [row["text"] for row in ROWS]
    assert [images.image(index).getpixel((0, 0)) for index in range(5)] == [(index, 100, 200) for index in range(5)]


def test_a_folder_of_parquet_files_with_columns_of_other_names(tmp_path, settings):
    folder = tmp_path / "stored"
    folder.mkdir()
    pictures = [numbered(9, 9), numbered(8, 8)]
    features = datasets.Features({"picture": datasets.Image(), "words": datasets.Value("string")})
    stored = datasets.Dataset.from_dict({"picture": pictures, "words": ["one", ""]}, features)
    stored.to_parquet(folder / "train.parquet")
    config = TrainingConfig(dataset_name=str(folder), image_column="picture", caption_column="words", **settings)
    with pytest.raises(ValueError, match=r"picture 1 of .*stored has no caption: its 'words' is ''"):
        load_images(config)
    datasets.Dataset.from_dict({"picture": pictures, "words": ["one", "two"]}, features).to_parquet(
        folder / "train.parquet"
    )
    images = load_images(config)
    assert images.captions(1) == "two" and images.image(0).tobytes() == pictures[0].tobytes()


def test_pictures_of_any_mode_come_as_rgb(tmp_path, settings):
    folder = tmp_path / "modes"
    modes = {"L": 7, "RGBA": (1, 2, 3, 128), "1": 1, "P": 0, "LA": (9, 255)}
    path = write_folder(folder, [{"file_name": f"{mode}.png", "text": mode} for mode in modes], pictures=0)
    for mode, colour in modes.items():
        Image.new(mode, (6, 4), colour).save(folder / f"{mode}.png")
    images = load_images(TrainingConfig(train_data_dir=path, **settings))
    found = {images.captions(index): images.image(index) for index in range(len(images))}
    assert {image.mode for image in found.values()} == {"RGB"}
    assert found["L"].getpixel((0, 0)) == (7, 7, 7) and found["RGBA"].getpixel((0, 0)) == (1, 2, 3)


def test_max_train_samples_chooses_as_the_reference(tmp_path, settings):
    path = write_folder(tmp_path / "pictures")
    images = load_images(TrainingConfig(train_data_dir=path, max_train_samples=3, seed=4, **settings))
    shuffled = datasets.Dataset.from_list(ROWS).shuffle(seed=4)[:3]["text"]
    assert [images.captions(index) for index in range(len(images))] == list(shuffled)
    with pytest.raises(ValueError, match="max_train_samples 6 is more than the 5 pictures"):
        load_images(TrainingConfig(train_data_dir=path, max_train_samples=6, **settings))


# Columns


def test_columns_by_name_by_place_and_by_data_set():
    plain = TrainingConfig(dataset_name="someone/some", learning_rate=1e-3)
    by_place = TrainingConfig(dataset_name="someone/some", image_column=None, caption_column=None, learning_rate=1e-3)
    naruto = TrainingConfig(
        dataset_name="lambdalabs/naruto-blip-captions", image_column=None, caption_column=None, learning_rate=1e-3
    )
    assert find_columns(["text", "image"], plain) == ("image", "text")
    assert find_columns(["pixels", "words", "more"], by_place) == ("pixels", "words")
    assert find_columns(["text", "image"], naruto) == ("image", "text")
    with pytest.raises(ValueError, match="caption_column None is not a column; The columns are pixels"):
        find_columns(["pixels"], by_place)


def test_an_unknown_column_is_named_with_the_nearest(tmp_path, settings):
    path = write_folder(tmp_path / "pictures")
    wanted = "caption_column 'txet' is not a column; did you mean 'text'\\? The columns are image, text"
    with pytest.raises(ValueError, match=wanted):
        load_images(TrainingConfig(train_data_dir=path, caption_column="txet", **settings))
    with pytest.raises(ValueError, match="image_column 'text' holds no pictures but Value"):
        load_images(TrainingConfig(train_data_dir=path, image_column="text", **settings))


# Errors name the file


@pytest.mark.parametrize(
    "rows, kind, message",
    [
        (None, ValueError, 'pictures\' has no captions: write metadata.jsonl .*"file_name": "0.png"'),
        ([*ROWS[:4], {"file_name": "4.png"}], ValueError, "4.png has no caption: its 'text' is None"),
        ([*ROWS[:4], {"file_name": "4.png", "text": " "}], ValueError, "4.png has no caption: its 'text' is ' '"),
        (ROWS[:4], ValueError, "4.png has no caption: no line of metadata names it"),
        ([*ROWS, {"file_name": "9.png", "text": "a"}], FileNotFoundError, "9.png is not there"),
        ([*ROWS[:4], {"text": "a"}], ValueError, "picture 4 of .* has no file"),
        ([{**row, "text": 3} for row in ROWS], ValueError, "caption_column 'text' must hold a text.*0.png has 3"),
        ([{**row, "text": []} for row in ROWS], ValueError, "0.png has no caption"),
        ([{**row, "text": ["a", None]} for row in ROWS], ValueError, "0.png has no caption"),
        ([{"text": "a"}], ValueError, "pictures' can't be loaded; its metadata may be at fault: `file_name`"),
        ([], ValueError, "pictures' can't be loaded; its metadata may be at fault"),
    ],
)
def test_faults_of_the_metadata(tmp_path, settings, rows, kind, message):
    with pytest.raises(kind, match=message):
        load_images(TrainingConfig(train_data_dir=write_folder(tmp_path / "pictures", rows), **settings))


def test_folders_that_are_missing_or_empty(tmp_path, settings):
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "notes.txt").write_text("no picture")
    for field in ("train_data_dir", "dataset_name"):
        with pytest.raises(FileNotFoundError, match=f"{field} '.*nowhere' is not there"):
            load_images(TrainingConfig(**{field: str(tmp_path / "nowhere")}, **settings))
        with pytest.raises(ValueError, match="empty' is empty"):
            load_images(TrainingConfig(**{field: str(tmp_path / "empty")}, **settings))
    with pytest.raises(ValueError, match="notes' is empty: there is no picture in it"):
        load_images(TrainingConfig(train_data_dir=str(tmp_path / "notes"), **settings))
    with pytest.raises(FileNotFoundError, match=r"notes\.txt' is not a folder"):
        load_images(TrainingConfig(train_data_dir=str(tmp_path / "notes" / "notes.txt"), **settings))


@pytest.mark.parametrize("damage", [lambda data: b"no picture", lambda data: data[:40], lambda data: b""])
def test_a_broken_picture_is_named(tmp_path, settings, damage):
    path = write_folder(tmp_path / "pictures")
    broken = tmp_path / "pictures" / "2.png"
    broken.write_bytes(damage(broken.read_bytes()))
    with pytest.raises(ValueError, match=r"2\.png can't be read"):
        load_images(TrainingConfig(train_data_dir=path, **settings))


def test_a_broken_picture_of_a_stored_data_set_is_named_when_it_is_read():
    stored = datasets.Dataset.from_dict({"image": [{"bytes": b"no picture", "path": None}]})
    images = CaptionedImages(stored, ["a"], ["0 of someone/some"])
    with pytest.raises(ValueError, match="picture 0 of someone/some can't be read"):
        images.image(0)


# Transforms


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
    from lora_kit.config import INTERPOLATION_MODES

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
    assert all(torch.equal(one, other) for one, other in zip(fresh, resumed, strict=True))
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


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_reads_a_folder(tmp_path, settings, tokenizer, workers):
    rows = [{**row, "text": [row["text"], "another"]} for row in ROWS]
    images = load_images(TrainingConfig(train_data_dir=write_folder(tmp_path / "pictures", rows), **settings))
    assert images.captions(2) == ["caption 2", "another"]
    pictures = TrainingPictures(images, tokenizer, 8, center_crop=False, random_flip=True, seed=0)
    loader = torch.utils.data.DataLoader(pictures, batch_size=2, collate_fn=collate, num_workers=workers)
    batches = list(loader)
    assert [len(batch["pixel_values"]) for batch in batches] == [2, 2, 1]
    assert batches[0]["pixel_values"].shape == (2, 3, 8, 8) and batches[0]["pixel_values"].is_contiguous()
    assert batches[0]["input_ids"].shape == (2, tokenizer.model_max_length)
    assert torch.equal(batches[1]["pixel_values"][0], pictures[2]["pixel_values"])


def test_a_long_caption_is_cut(tokenizer):
    images = of(numbered(8, 8), captions=["dog " * 300])
    item = TrainingPictures(images, tokenizer, 8, center_crop=True, random_flip=False, seed=0)[0]
    assert item["input_ids"].shape == (tokenizer.model_max_length,)


def test_torchvision_is_not_needed():
    assert "torchvision" not in sys.modules
