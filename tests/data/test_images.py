import json
import os
import subprocess
import sys

import datasets
import numpy as np
import pytest
from PIL import ExifTags, Image

from lora_kit.config import TrainingConfig
from lora_kit.data.emoji import STYLES, load_style
from lora_kit.data.images import CaptionedImages, count_images, find_columns, load_images, local_folder

ROWS = [{"file_name": f"{index}.png", "text": f"caption {index}"} for index in range(5)]


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
    modes = {"L": 7, "RGBA": (1, 2, 3, 255), "1": 1, "P": 0, "LA": (9, 255)}
    path = write_folder(folder, [{"file_name": f"{mode}.png", "text": mode} for mode in modes], pictures=0)
    for mode, colour in modes.items():
        Image.new(mode, (6, 4), colour).save(folder / f"{mode}.png")
    images = load_images(TrainingConfig(train_data_dir=path, **settings))
    pictures = {images.captions(index): images.image(index) for index in range(len(images))}
    assert pictures.keys() == modes.keys() and {picture.mode for picture in pictures.values()} == {"RGB"}
    assert pictures["L"].getpixel((0, 0)) == (7, 7, 7) and pictures["RGBA"].getpixel((0, 0)) == (1, 2, 3)


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_a_picture_that_asks_to_be_turned_is(suffix, tmp_path, settings):
    """Orientation 6: what stands at the left of the file is to be seen on top."""
    path = write_folder(tmp_path / "turned", [{"file_name": f"0.{suffix}", "text": "a flag"}], pictures=0)
    flag, exif = Image.new("RGB", (32, 16), "red"), Image.Exif()
    flag.paste("blue", (16, 0, 32, 16))
    exif[ExifTags.Base.Orientation] = 6
    flag.save(tmp_path / "turned" / f"0.{suffix}", exif=exif)
    turned = load_images(TrainingConfig(train_data_dir=path, **settings)).image(0)
    assert turned.size == (16, 32)
    for place, wanted in (((8, 4), (255, 0, 0)), ((8, 28), (0, 0, 255))):
        assert turned.getpixel(place) == pytest.approx(wanted, abs=3)


def test_max_train_samples_chooses_as_the_reference(tmp_path, settings):
    path = write_folder(tmp_path / "pictures")
    images = load_images(TrainingConfig(train_data_dir=path, max_train_samples=3, seed=4, **settings))
    shuffled = datasets.Dataset.from_list(ROWS).shuffle(seed=4)[:3]["text"]
    assert [images.captions(index) for index in range(len(images))] == list(shuffled)
    with pytest.raises(ValueError, match="max_train_samples 6 is more than the 5 pictures"):
        load_images(TrainingConfig(train_data_dir=path, max_train_samples=6, **settings))


# How many there are


@pytest.mark.parametrize("style", STYLES)
def test_a_style_is_counted(style):
    config = TrainingConfig(style=style, learning_rate=1e-3, resolution=64)
    assert count_images(config) == len(load_images(config)) == 399


def test_max_train_samples_are_counted_and_too_many_are_an_error(tmp_path, settings):
    path = write_folder(tmp_path / "pictures")
    for source, count in (({"style": "outlined", "resolution": 64}, 399), ({"train_data_dir": path}, 5)):
        assert count_images(TrainingConfig(**source, max_train_samples=3, **settings), seed=4) == 3
        assert count_images(TrainingConfig(**source, max_train_samples=count, **settings)) == count
        for count_or_load in (count_images, load_images):
            with pytest.raises(ValueError) as error:
                count_or_load(TrainingConfig(**source, max_train_samples=count + 1, **settings))
            assert str(error.value) == f"max_train_samples {count + 1} is more than the {count} pictures of the data"


def test_pictures_of_a_folder_are_counted_with_every_check(tmp_path, settings):
    assert count_images(TrainingConfig(train_data_dir=write_folder(tmp_path / "whole"), **settings)) == 5
    path = write_folder(tmp_path / "lacking", ROWS[:4])
    with pytest.raises(ValueError, match="4.png has no caption: no line of metadata names it"):
        count_images(TrainingConfig(train_data_dir=path, **settings))
    with pytest.raises(FileNotFoundError, match="nowhere' is not there"):
        count_images(TrainingConfig(train_data_dir=str(tmp_path / "nowhere"), **settings))


def test_a_style_is_counted_without_drawing_it(tmp_path):
    """No torch, no picture library, nothing written: the doctor and the explorer ask before each run."""
    code = (
        "import sys; from lora_kit.config import TrainingConfig; from lora_kit.data.images import count_images\n"
        "print([count_images(TrainingConfig(style=style, learning_rate=1e-3)) for style in ('outlined', 'openmoji')])\n"
        "print(sorted({'torch', 'numpy', 'PIL', 'resvg_py', 'datasets', 'diffusers'} & sys.modules.keys()))"
    )
    environment = {**os.environ, "LORA_KIT_CACHE": str(tmp_path / "cache")}
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert run.stdout.splitlines() == ["[399, 399]", "[]"]
    assert list(tmp_path.iterdir()) == []


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
    with pytest.raises(ValueError, match="image_column 'text' holds Value.*, not pictures"):
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
        ([{"text": "a"}], ValueError, "pictures' can't be loaded: its metadata may be at fault: .*`file_name`"),
        ([], ValueError, "pictures/metadata.jsonl' is empty: write a line in it for each picture"),
    ],
)
def test_faults_of_the_metadata(tmp_path, settings, rows, kind, message):
    with pytest.raises(kind, match=message):
        load_images(TrainingConfig(train_data_dir=write_folder(tmp_path / "pictures", rows), **settings))


def test_a_picture_without_a_caption_is_named_in_a_folder_by_name_too(tmp_path, settings):
    path = write_folder(tmp_path / "pictures", ROWS[:4])
    with pytest.raises(ValueError, match="4.png has no caption: no line of metadata names it"):
        load_images(TrainingConfig(dataset_name=path, **settings))
    (tmp_path / "pictures" / "README.md").touch()  # which may say what belongs to the data
    assert len(load_images(TrainingConfig(dataset_name=path, **settings))) == 4
    write_folder(tmp_path / "split" / "train")
    write_folder(tmp_path / "split" / "test", ROWS[:1], pictures=1)
    assert len(load_images(TrainingConfig(dataset_name=str(tmp_path / "split"), **settings))) == 5


@pytest.mark.parametrize(
    "source, message",
    [
        ({"train_data_dir": "https://example.com/a"}, "train_data_dir 'https://example.com/a' is not there"),
        (
            {"dataset_name": "https://example.com/a"},
            "dataset_name 'https://example.com/a' can't be loaded: .*any data file",
        ),
        ({"dataset_name": "someone/some"}, "dataset_name 'someone/some' can't be loaded: ConnectionError .*Hub"),
        ("https://example.com/0.png", "Invalid metadata file_name 'https://example.com/0.png': .*relative path"),
    ],
    ids=str,
)
def test_what_is_not_on_this_machine(source, message, tmp_path, settings, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    if isinstance(source, str):
        source = {
            "train_data_dir": write_folder(tmp_path / "pictures", [{"file_name": source, "text": "a"}], pictures=1)
        }
    with pytest.raises((ValueError, OSError), match=message):
        load_images(TrainingConfig(**source, **settings))


def test_what_is_behind_an_error_of_the_hub_s_data_is_said(settings, monkeypatch):
    def load_dataset(*_, **__):
        raise datasets.exceptions.DatasetGenerationError("An error occurred") from KeyError("no column")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(ValueError, match="^dataset_name 'someone/some' can't be loaded: KeyError 'no column'$"):
        load_images(TrainingConfig(dataset_name="someone/some", **settings))


@pytest.mark.parametrize("name", ["[2024] cats", "a*b", "a?b", "{a,b}", "猫 ä"])
def test_a_folder_may_be_called_anything(name, tmp_path, settings):
    images = load_images(TrainingConfig(train_data_dir=write_folder(tmp_path / name, ROWS), **settings))
    assert len(images) == len(ROWS) and images.size(0) == images.image(0).size


def test_a_path_that_would_be_taken_for_an_archive_is_named(tmp_path, settings):
    with pytest.raises(ValueError, match="a::b/.*' can't be loaded: '::' in a path stands for an archive; rename"):
        load_images(TrainingConfig(train_data_dir=write_folder(tmp_path / "a::b", ROWS), **settings))


def test_folders_that_are_missing_or_empty(tmp_path, settings):
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "notes.txt").write_text("no picture")
    for field in ("train_data_dir", "dataset_name"):
        with pytest.raises(FileNotFoundError, match=f"{field} '.*nowhere' is not there"):
            load_images(TrainingConfig(**{field: str(tmp_path / "nowhere")}, **settings))
        with pytest.raises(ValueError, match="empty' has no pictures in it"):
            load_images(TrainingConfig(**{field: str(tmp_path / "empty")}, **settings))
    with pytest.raises(ValueError, match="notes' has no pictures in it: add some"):
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


def test_what_a_run_like_the_script_s_takes(tmp_path, settings):
    """Pictures and captions that can hardly be meant: refused, but with match_diffusers, whose script takes them."""
    odd = {"cmyk": "is in CMYK", "film": "is animated: of its 2 frames", "endless": "a caption of 2,001 characters"}
    for name, message in odd.items():
        folder = tmp_path / name
        file = "0.gif" if name == "film" else "0.jpg"
        path = write_folder(
            folder, [{"file_name": file, "text": "a" * (2001 if name == "endless" else 2000)}], pictures=0
        )
        picture = Image.new("CMYK" if name == "cmyk" else "RGB", (8, 8))
        more = {"save_all": True, "append_images": [Image.new("RGB", (8, 8), "red")]} if name == "film" else {}
        picture.save(folder / file, **more)
        with pytest.raises(ValueError, match=message):
            load_images(TrainingConfig(train_data_dir=path, **settings))
        config = TrainingConfig(train_data_dir=path, match_diffusers=True, lr_warmup_steps=0, **settings)
        assert len(load_images(config)) == 1
        assert load_images(config).image(0).mode == "RGB"


def test_local_folder(tmp_path, settings, monkeypatch):
    path = write_folder(tmp_path / "pictures")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for value in (path, "pictures", "./pictures", "~/pictures"):
        assert local_folder(TrainingConfig(train_data_dir=value, **settings)) == tmp_path / "pictures"
        assert local_folder(TrainingConfig(dataset_name=value, **settings)) == tmp_path / "pictures"
    assert local_folder(TrainingConfig(dataset_name="someone/some", **settings)) is None
    assert local_folder(TrainingConfig(style="outlined", **settings)) is None


def test_a_broken_picture_of_a_stored_data_set_is_named_when_it_is_read():
    stored = datasets.Dataset.from_dict({"image": [{"bytes": b"no picture", "path": None}]})
    images = CaptionedImages(stored, ["a"], ["0 of someone/some"])
    with pytest.raises(ValueError, match="picture 0 of someone/some can't be read"):
        images.image(0)


@pytest.mark.parametrize(
    ("files", "said"),
    [
        (
            {"0.txt": "a red square"},
            r" has no captions \(its 1 text files, where other trainers keep captions, are not read\)",
        ),
        ({"10_square/0.caption": "a red square"}, r" has no captions \(its 1 text files, "),
        ({"captions.csv": "image, caption\n"}, " has no captions: write metadata.jsonl in it"),
        ({"metadata.json": "[]"}, " has no captions: write metadata.jsonl in it"),
        ({"Thumbs.db": "x"}, " has no captions: write metadata.jsonl in it"),
    ],
    ids=str,
)
def test_captions_in_other_files_are_asked_for(files, said, tmp_path, settings):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    place = (tmp_path / next(iter(files))).parent
    Image.new("RGB", (8, 8)).save(place / "0.png")
    name = (place / "0.png").relative_to(tmp_path)
    with pytest.raises(ValueError, match=f'{said}.*"file_name": "{name}"'):
        load_images(TrainingConfig(train_data_dir=str(tmp_path), **settings))


def test_metadata_in_another_alphabet_is_named(tmp_path, settings):
    path = write_folder(tmp_path / "pictures")
    metadata = tmp_path / "pictures" / "metadata.jsonl"
    metadata.write_bytes('{"file_name": "0.png", "text": "a café"}'.encode("latin-1"))
    with pytest.raises(ValueError, match=r"can't be loaded: its metadata is not in UTF-8 .*save it as UTF-8"):
        load_images(TrainingConfig(train_data_dir=path, **settings))


def test_a_cache_that_can_not_be_written_is_not_blamed_on_the_metadata(tmp_path, settings):
    path = write_folder(tmp_path / "pictures")
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"can't be loaded: .*where data sets are cached; set HF_HOME or cache_dir"):
        load_images(TrainingConfig(train_data_dir=path, **settings | {"cache_dir": str(tmp_path / "file" / "inside")}))


def test_imagefolder_by_name_is_the_folder(tmp_path, settings):
    Image.new("CMYK", (64, 64)).save(tmp_path / "0.jpg")
    (tmp_path / "metadata.jsonl").write_text(json.dumps({"file_name": "0.jpg", "text": "a square"}))
    said = []
    for more in ({}, {"dataset_name": "imagefolder"}):
        with pytest.raises(ValueError, match="is in CMYK") as error:
            load_images(TrainingConfig(train_data_dir=str(tmp_path), **more, **settings))
        said.append(str(error.value))
    assert said[0] == said[1]
