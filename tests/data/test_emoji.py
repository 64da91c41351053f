import hashlib
import os
import subprocess
import sys
import time
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from running import full_disk

from lora_kit import config
from lora_kit.data import emoji
from lora_kit.data.emoji import SPLITS, STYLES, count_style, emoji_captions, held_out, load_style, render, svg_path
from lora_kit.system.files import UNUSED_DAYS


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
    assert file.name.startswith("style-openmoji_line-24-") and file.stat().st_mode & 0o777 == 0o444
    monkeypatch.setattr(emoji, "render", None)
    second = load_style(**options)
    assert len(first) == 85
    assert [(record["emoji"], record["text"]) for record in first] == [
        (record["emoji"], record["text"]) for record in second
    ]
    assert all(a["image"].tobytes() == b["image"].tobytes() for a, b in zip(first, second, strict=True))


SMALL = {"style": "twemoji", "categories": ("Activities",), "size": 16}


def bits(records):
    return [(record["emoji"], record["text"], record["image"].tobytes()) for record in records]


@pytest.fixture
def stored(tmp_path, monkeypatch):
    """(the file of a small style in a cache of its own, its pictures); nobody draws until the test says so."""
    monkeypatch.setenv("LORA_KIT_CACHE", str(tmp_path))
    records = load_style(**SMALL)
    (file,) = tmp_path.iterdir()
    return file, bits(records)


def test_a_file_that_is_not_as_it_was_written_is_made_again(stored, monkeypatch):
    """One bit flipped anywhere, cut anywhere, lengthened, empty, of another name: the same pictures, and a whole file."""
    file, pictures = stored
    whole = file.read_bytes()
    drawn = {char: render(char, "twemoji", 16) for char in emoji_captions(("Activities",))}
    monkeypatch.setattr(emoji, "render", lambda char, style, size: drawn[char])
    places = sorted({*range(64), *range(64, len(whole), 1 + len(whole) // 150), *range(len(whole) - 64, len(whole))})
    broken = [whole[:place] + bytes([whole[place] ^ 1 << place % 8]) + whole[place + 1 :] for place in places]
    broken += [whole[:place] for place in places[::4]] + [whole + b"0", bytes(len(whole)), whole[32:]]
    for content in broken:
        file.unlink()
        file.write_bytes(content)
        assert bits(load_style(**SMALL)) == pictures
        assert file.read_bytes() == whole and [*file.parent.iterdir()] == [file]


def test_another_style_s_file_under_this_name_is_not_read(stored):
    file, pictures = stored
    load_style(**SMALL | {"style": "blueprint"})
    (other,) = file.parent.glob("style-blueprint-*")
    other.replace(file)
    assert bits(load_style(**SMALL)) == pictures


def test_pictures_of_other_packages_are_drawn_anew(stored, monkeypatch):
    monkeypatch.setattr(emoji, "version", lambda package: "99")
    load_style(**SMALL)
    assert len([*stored[0].parent.iterdir()]) == 2


def test_two_processes_write_at_once(tmp_path, monkeypatch):
    """Again and again, each removing what the other has written: always the same pictures."""
    monkeypatch.setenv("LORA_KIT_CACHE", str(tmp_path))
    code = (
        "import hashlib; from lora_kit.data import emoji; from pathlib import Path\n"
        "drawn = {char: emoji.render(char, 'twemoji', 16) for char in emoji.emoji_captions(('Activities',))}\n"
        "emoji.render, found = lambda char, style, size: drawn[char], set()\n"
        "print('ready', flush=True); input()\n"
        "for _ in range(60):\n"
        "    records = emoji.load_style('twemoji', categories=('Activities',), size=16)\n"
        "    found.add(hashlib.sha256(b''.join(record['image'].tobytes() for record in records)).hexdigest())\n"
        "    for path in emoji.cache_dir().glob('style-*[0-9a-f]'): path.unlink(missing_ok=True)\n"
        "print(*found)\n"
    )
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    both = [subprocess.Popen([sys.executable, "-c", code], **pipes) for _ in range(2)]
    assert [process.stdout.readline() for process in both] == ["ready\n"] * 2
    for process in both:
        process.stdin.write("go\n")
        process.stdin.flush()
    ends = [process.communicate() for process in both]
    digest = hashlib.sha256(b"".join(record["image"].tobytes() for record in load_style(**SMALL))).hexdigest()
    assert ends == [(f"{digest}\n", "")] * 2
    assert len([*tmp_path.iterdir()]) == 1


def test_what_nobody_has_used_for_a_month_goes(stored, tmp_path):
    file, _ = stored
    month_ago = time.time() - (UNUSED_DAYS + 1) * 86_400
    (tmp_path / "notes").touch()
    for path in tmp_path.iterdir():
        os.utime(path, (month_ago, month_ago))
    load_style(**SMALL)  # used
    load_style(**SMALL | {"size": 17})
    assert file.exists() and len([*tmp_path.iterdir()]) == 3
    for path in tmp_path.iterdir():
        os.utime(path, (month_ago, month_ago))
    load_style(**SMALL | {"size": 18})
    assert sorted(path.name[:17] for path in tmp_path.iterdir()) == ["notes", "style-twemoji-18-"]


def test_nothing_half_written_is_taken_for_a_cache(stored, monkeypatch):
    def interrupted(path, content):
        with open(path, "wb") as file:
            file.write(content[:100])
        raise KeyboardInterrupt

    stored[0].unlink()
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Path, "write_bytes", interrupted)
        load_style(**SMALL)
    assert [*stored[0].parent.iterdir()] == [] and bits(load_style(**SMALL)) == stored[1]


def test_a_full_disk_is_said_with_the_cure(stored):
    stored[0].unlink()
    with (
        full_disk(1_000),
        pytest.raises(ValueError, match="can't be written: OSError File too large; set LORA_KIT_CACHE"),
    ):
        load_style(**SMALL)
    assert [*stored[0].parent.iterdir()] == []


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
    assert [path.name[:17] for path in tmp_path.iterdir()] == ["style-twemoji-16-"]
