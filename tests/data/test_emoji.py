from functools import cache

import numpy as np
import pytest

from lora_kit import config
from lora_kit.data import emoji
from lora_kit.data.emoji import SPLITS, STYLES, count_style, emoji_captions, held_out, load_style, render, svg_path


@cache
def pixels(style):
    return np.stack([np.asarray(record["image"]) for record in load_style(style)]).astype(int)


def test_the_configuration_knows_the_same_styles():
    assert config.STYLES == tuple(STYLES)


@pytest.mark.parametrize("style", STYLES)
def test_every_style_has_all_emoji_in_the_same_places(style):
    records = load_style(style)
    assert [record["emoji"] for record in records] == list(emoji_captions())
    assert [record["text"] for record in records] == list(emoji_captions().values())
    assert len(records) == 541 == len({record["text"] for record in records})
    assert pixels(style).shape == (541, 64, 64, 3)
    assert pixels(style).std(axis=(1, 2, 3)).min() > 5  # none is an empty sheet


@pytest.mark.parametrize("style", STYLES)
def test_only_emoji_that_differ_by_colour_alone_share_a_drawing(style):
    named = {}
    for text, image in zip(emoji_captions().values(), pixels(style), strict=True):
        named.setdefault(image.tobytes(), []).append(text)
    shared = [texts for texts in named.values() if len(texts) > 1]
    if style in ("line_art", "blueprint"):
        faces, hearts = shared
        assert faces == ["enraged face", "angry face"]
        assert len(hearts) == 12 and all(text.endswith(" heart") for text in hearts)
    elif style == "openmoji_line":
        assert sorted(map(len, shared)) == [2, 2, 3, 4, 6]
    else:
        assert shared == []


def test_captions_are_plain_english():
    captions = emoji_captions()
    assert captions["😀"] == "grinning face" and captions["🐶"] == "dog face" and captions["🍕"] == "pizza"
    assert not any(set(text) & set(":_’") or text != text.lower() for text in captions.values())


def test_split_is_disjoint_complete_and_stable():
    lora, unseen, everything = (
        [record["emoji"] for record in load_style("outlined", split)] for split in ("lora", "held_out", "all")
    )
    assert not set(lora) & set(unseen)
    assert sorted(lora + unseen) == sorted(everything)
    assert (len(lora), len(unseen)) == (399, 142)
    assert lora == [record["emoji"] for record in load_style("blueprint", "lora")]
    assert [char for char in "😀🐶🍕🎃🐱🍎⚽😍" if held_out(char)] == ["🍕", "🍎"]


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("style", STYLES)
def test_what_is_counted_is_what_is_loaded(style, split):
    assert (
        count_style(style, split) == len(load_style(style, split)) == {"lora": 399, "held_out": 142, "all": 541}[split]
    )


def test_an_emoji_that_an_artist_did_not_draw_is_not_counted(monkeypatch):
    drawn_by_one = [char for char in emoji_captions(None) if svg_path(char, "openmoji") is None]
    assert len(drawn_by_one) == 14 and all(svg_path(char) for char in drawn_by_one)
    assert render(drawn_by_one[0], "openmoji") is None
    monkeypatch.setattr(emoji, "emoji_captions", lambda: dict.fromkeys([*drawn_by_one, "🍕", "🐶"], ""))
    assert count_style("twemoji") == 16 and count_style("openmoji") == 2 and count_style("openmoji", "held_out") == 1


def test_a_category_keeps_its_split():
    food = load_style("twemoji", "held_out", categories=("Food & Drink",))
    unseen = {record["emoji"] for record in load_style("twemoji", "held_out")}
    assert food and {record["emoji"] for record in food} <= unseen


@pytest.mark.parametrize("style", ["line_art", "openmoji_line"])
def test_line_art_has_no_colour(style):
    assert (pixels(style).max(axis=-1) - pixels(style).min(axis=-1)).max() == 0


@pytest.mark.parametrize("style", STYLES)
def test_background(style):
    wanted = [0x1F, 0x4E, 0x9E] if style == "blueprint" else [255, 255, 255]
    assert (pixels(style)[:, 0, 0] == wanted).all()


def test_blueprint_is_drawn_in_white_on_blue():
    red, blue = pixels("blueprint")[..., 0], pixels("blueprint")[..., 2]
    assert red.min() >= 0x1F and blue.min() >= 0x9E  # every pixel lies between the two
    assert (red > 200).any(axis=(1, 2)).mean() > 0.95


def test_second_read_comes_from_the_cache_and_is_equal(tmp_path, monkeypatch):
    monkeypatch.setenv("LORA_KIT_CACHE", str(tmp_path))
    options = {"style": "openmoji_line", "categories": ("Activities",), "size": 24}
    first = load_style(**options)
    (file,) = tmp_path.iterdir()
    assert file.suffix == ".npz"
    monkeypatch.setattr(emoji, "render", None)
    second = load_style(**options)
    assert len(first) == 85
    assert [(record["emoji"], record["text"]) for record in first] == [
        (record["emoji"], record["text"]) for record in second
    ]
    assert all(a["image"].tobytes() == b["image"].tobytes() for a, b in zip(first, second, strict=True))


def test_nothing_half_written_is_taken_for_a_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LORA_KIT_CACHE", str(tmp_path))

    def interrupted(file, **arrays):
        file.write(b"half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(np, "savez_compressed", interrupted)
        load_style("twemoji", categories=("Activities",), size=16)
    assert list(tmp_path.glob("*.npz")) == []
    assert load_style("twemoji", categories=("Activities",), size=16)[0]["image"].size == (16, 16)


@pytest.mark.parametrize(
    "options, quoted",
    [
        (
            {"style": "outline"},
            "style 'outline' is unknown; did you mean 'outlined'? It must be one of twemoji, outlined",
        ),
        ({"split": "train"}, "split 'train' is unknown; It must be one of lora, held_out, all"),
        ({"categories": ("food & drink",)}, "category 'food & drink' is unknown; did you mean 'Food & Drink'?"),
        ({"size": 4}, "size 4 is not a whole number of at least 8"),
        ({"size": 64.0}, "size 64.0 is not a whole number of at least 8"),
        ({"size": True}, "size True is not a whole number of at least 8"),
    ],
)
def test_errors_quote_the_value(options, quoted):
    with pytest.raises(ValueError) as error:
        load_style(**options)
    assert str(error.value).startswith(quoted)
    if not {"size", "categories"} & options.keys():
        with pytest.raises(ValueError) as error:
            count_style(**options)
        assert str(error.value).startswith(quoted)


def test_a_size_may_be_numpys(tmp_path, monkeypatch):
    monkeypatch.setenv("LORA_KIT_CACHE", str(tmp_path))
    assert load_style("twemoji", categories=("Activities",), size=np.int64(16))[0]["image"].size == (16, 16)
    assert [path.name[:11] for path in tmp_path.iterdir()] == ["twemoji-16-"]
