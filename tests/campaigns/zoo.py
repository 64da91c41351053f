"""A zoo of pictures, captions, metadata and names, as people have them: each trains as people see it, or is named.

    python tests/campaigns/zoo.py

Each kind stands in a folder of its own beside a plain picture. What is loaded is compared with what was drawn: two halves, orange
on the left and blue on the right, in the kind's own colours. Exits with 1 where one is silently something else, where an error
doesn't name its file, and where one is no sentence.
"""

import csv
import io
import itertools
import json
import os
import shutil
import sys
import tempfile
import warnings
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image, TiffImagePlugin

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from lora_kit.config import TrainingConfig
from lora_kit.data.batches import TrainingPictures
from lora_kit.data.images import load_images

LEFT, RIGHT, SIDE = (240, 140, 30), (20, 60, 220), 64
LINE = "a caption"
WANTED = [LEFT, RIGHT]


def halves(left=LEFT, right=RIGHT, size=(SIDE, SIDE)):
    picture = Image.new("RGB", size, left)
    picture.paste(right, (size[0] // 2, 0, *size))
    return picture


def grey(left, right, dtype):
    pixels = np.full((SIDE, SIDE), left, dtype)
    pixels[:, SIDE // 2 :] = right
    return pixels


def both(level_left, level_right):
    return [(level_left,) * 3, (level_right,) * 3]


def saved(picture, name, **options):
    return lambda folder: picture.save(folder / name, **options)


def written(name, content):
    return lambda folder: (folder / name).write_bytes(content)


def encoded(picture, kind, **options):
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


class Kind:
    """name; file: the picture's; make(folder): writes it; colours: of its halves, or None where it is to be named; far: by how
    much of 255 they may differ; lines: what metadata.jsonl says of it, and plain of the other; column: that caption_column names."""

    def __init__(
        self,
        name,
        file,
        make,
        colours=WANTED,
        far=3,
        lines=None,
        column="text",
        metadata=None,
        folder="pictures",
        plain=LINE,
    ):
        self.name, self.file, self.make, self.colours, self.far = name, file, make, colours, far
        self.lines = [{"file_name": file, "text": LINE}] if lines is None else lines
        self.column, self.metadata, self.folder, self.plain = column, metadata, folder, plain


def formats():
    """Files of all kinds that Pillow writes, in their usual options."""
    plain = halves()
    for suffix, far, options in (
        ("png", 0, {}), ("bmp", 0, {}), ("tiff", 0, {}), ("tif", 0, {}), ("webp", 20, {}), ("jpg", 60, {}), ("jpeg", 60, {}), ("ppm", 0, {}),
        ("tga", 0, {}), ("gif", 20, {}), ("ico", 0, {"sizes": [(SIDE, SIDE)]}), ("pcx", 0, {}), ("sgi", 0, {}), ("jp2", 0, {}),
        ("dds", 0, {}), ("icns", None, {}), ("im", 0, {}), ("jfif", 60, {}), ("jpe", 60, {}), ("j2k", 0, {}), ("apng", 0, {}), ("avif", 60, {}),
    ):  # fmt: skip
        name = f"a.{suffix}"
        yield Kind(f"format {suffix}", name, saved(plain, name, **options), far=far or 3)
        upper = f"A.{suffix.upper()}"
        yield Kind(f"format {suffix.upper()}", upper, saved(plain, upper, **options), far=far or 3)
    for compression in ("tiff_lzw", "tiff_deflate", "packbits", "tiff_adobe_deflate", "jpeg", "zstd"):
        yield Kind(f"tiff {compression}", "a.tiff", saved(plain, "a.tiff", compression=compression), far=60)
    for subsampling, quality in itertools.product((0, 1, 2), (50, 95)):
        options = dict(subsampling=subsampling, quality=quality)
        yield Kind(f"jpeg {subsampling} {quality}", "a.jpg", saved(plain, "a.jpg", **options), far=60)
    yield Kind("jpeg progressive", "a.jpg", saved(plain, "a.jpg", progressive=True), far=60)
    yield Kind("webp lossless", "a.webp", saved(plain, "a.webp", lossless=True))
    yield Kind("png interlaced or not", "a.png", saved(plain, "a.png", compress_level=0))
    yield Kind("a png called jpg", "a.jpg", written("a.jpg", encoded(plain, "PNG")))
    yield Kind("a jpeg called png", "a.png", written("a.png", encoded(plain, "JPEG")), far=60)
    yield Kind("a webp called png", "a.png", written("a.png", encoded(plain, "WEBP")), far=20)


def modes():
    """Colours of every sort."""
    plain = halves()
    left, right = (Image.new("RGB", (1, 1), colour).convert("L").getpixel((0, 0)) for colour in WANTED)
    for mode in ("L", "LA"):
        yield Kind(f"mode {mode}", "a.png", saved(plain.convert(mode), "a.png"), both(left, right))
    yield Kind("mode 1", "a.png", saved(Image.fromarray(grey(0, 255, np.uint8)).convert("1"), "a.png"), both(0, 255))
    yield Kind("mode P", "a.png", saved(plain.quantize(2), "a.png"))
    yield Kind("mode P in gif", "a.gif", saved(plain.quantize(2), "a.gif"))
    yield Kind("mode RGBA", "a.png", saved(plain.convert("RGBA"), "a.png"))
    for mode in ("CMYK", "YCbCr", "LAB"):
        colours = None if mode == "CMYK" else WANTED
        if mode != "LAB":
            picture = plain.convert(mode)
            yield Kind(f"mode {mode} in tiff", "a.tiff", saved(picture, "a.tiff"), colours)
    yield Kind("mode CMYK in jpeg", "a.jpg", saved(plain.convert("CMYK"), "a.jpg"), None)
    for bits, full in ((16, 65_535), (32, 65_535)):
        levels = grey(full // 4, full // 2, np.uint16 if bits == 16 else np.int32)
        for suffix in ("png", "tiff"):
            if bits == 32 and suffix == "png":
                continue
            name = f"a.{suffix}"
            yield Kind(f"grey of {bits} bits in {suffix}", name, saved(Image.fromarray(levels), name), both(64, 127))
    for full in (1.0, 255.0, 65_535.0):
        levels = grey(full / 4, full, np.float32)
        yield Kind(f"floats up to {full:g}", "a.tiff", saved(Image.fromarray(levels), "a.tiff"), both(64, 255))
    for name, value in (("nan", np.nan), ("negative", -1.0), ("endless", np.inf), ("huge", 1e9)):
        levels = grey(0.5, value, np.float32)
        yield Kind(f"floats that are {name}", "a.tiff", saved(Image.fromarray(levels), "a.tiff"), None)
    half = plain.convert("RGBA")
    half.putalpha(Image.fromarray(grey(255, 0, np.uint8)))
    for suffix, far in (("png", 0), ("webp", 20), ("tiff", 0), ("tga", 0), ("ico", 0), ("gif", 20)):
        options = {"sizes": [(SIDE, SIDE)]} if suffix == "ico" else {}
        name = f"a.{suffix}"
        yield Kind(
            f"transparent right half in {suffix}", name, saved(half, name, **options), [LEFT, (255,) * 3], far or 3
        )
    faint = plain.convert("RGBA")
    faint.putalpha(128)
    mixed = [tuple(round(255 - (255 - part) * 128 / 255) for part in colour) for colour in WANTED]
    yield Kind("half transparent", "a.png", saved(faint, "a.png"), mixed)
    clear = plain.convert("RGBA")
    clear.putalpha(0)
    yield Kind("all transparent", "a.png", saved(clear, "a.png"), both(255, 255))
    palette = plain.quantize(2)
    place = palette.getpixel((SIDE - 1, 0))
    yield Kind(
        "a palette's colour is transparent", "a.png", saved(palette, "a.png", transparency=place), [LEFT, (255,) * 3]
    )
    yield Kind("a colour is transparent", "a.png", saved(plain, "a.png", transparency=RIGHT), [LEFT, (255,) * 3])
    level = plain.convert("L")
    yield Kind("a grey is transparent", "a.png", saved(level, "a.png", transparency=right), both(left, 255))
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        back = {2: (1, 0), 3: (1, 0), 4: (0, 1), 1: (0, 1)}
        if orientation in back:
            colours = [WANTED[index] for index in back[orientation]]
            for suffix, far in (("jpg", 60), ("png", 3), ("webp", 20), ("tiff", 3)):
                name = f"a.{suffix}"
                yield Kind(
                    f"turned by exif {orientation} in {suffix}", name, saved(plain, name, exif=exif), colours, far
                )
        else:  # a quarter turn: what was above the other stands beside it
            above = plain.transpose(Image.Transpose.ROTATE_90)
            turned = Image.Image.transpose(above, {5: 5, 6: 4, 7: 6, 8: 2}[orientation])
            ends = [turned.getpixel((2, 32)), turned.getpixel((61, 32))]
            yield Kind(f"turned by exif {orientation}", "a.jpg", saved(above, "a.jpg", exif=exif, quality=95), ends, 60)


def sizes():
    """Pictures that are small, large, long, in several frames, or no pictures."""
    for size in ((1, 1), (2, 1), (1, 2), (3, 3), (63, 65), (64, 4096), (4096, 64), (1024, 1024)):
        colours = WANTED if size[0] > 1 and size[0] <= 2 * size[1] else "any"
        yield Kind(
            f"{size[0]} x {size[1]} pixels",
            "a.png",
            saved(halves(size=size), "a.png"),
            colours,
            far=130 if size[0] < 64 else 3,
        )
    yield Kind("20,000 x 1 pixels", "a.png", saved(halves(size=(20_000, 1)), "a.png"), "any")
    yield Kind("1 x 20,000 pixels", "a.png", saved(halves(size=(1, 20_000)), "a.png"), "any")
    frames = [halves(), halves(RIGHT, LEFT)]
    for suffix in ("gif", "png", "webp"):
        options = dict(save_all=True, append_images=frames[1:])
        yield Kind(f"a film in {suffix}", f"a.{suffix}", saved(frames[0], f"a.{suffix}", **options), None)
    yield Kind("pages of a tiff", "a.tiff", saved(frames[0], "a.tiff", save_all=True, append_images=frames[1:]))
    whole = {kind: encoded(halves(size=(640, 640)), kind) for kind in ("PNG", "JPEG", "BMP", "TIFF", "WEBP", "GIF")}
    for kind, content in whole.items():
        suffix = kind.lower()
        for share in (0.02, 0.5, 0.95):
            cut = content[: max(1, int(len(content) * share))]
            yield Kind(f"{suffix} cut at {share:.0%}", f"a.{suffix}", written(f"a.{suffix}", cut), None)
    yield Kind("an empty file", "a.png", written("a.png", b""), None)
    yield Kind("a text called png", "a.png", written("a.png", b"hello, world" * 99), None)
    yield Kind("zeros called png", "a.png", written("a.png", bytes(4096)), None)
    yield Kind("html called jpg", "a.jpg", written("a.jpg", b"<!doctype html><title>404</title>"), None)
    yield Kind(
        "a pointer of git-lfs",
        "a.png",
        written("a.png", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"),
        None,
    )
    damaged = bytearray(encoded(halves(), "PNG"))
    damaged[60] ^= 255
    yield Kind("a png with a wrong sum", "a.png", written("a.png", bytes(damaged)), None)


def captions():
    """What metadata say: a text or texts of any script; what isn't one is named."""
    texts = {
        "one word": "cat", "Japanese": "猫の絵", "Arabic": "صورة قطة", "emoji": "🐱 cat 🐈‍⬛", "combining marks": "e\u0301le\u0300ve",
        "quotes": 'a "cat", it\'s <b>bold</b> & more', "backslashes": "a\\b\\n", "line feeds": "a\nb\r\nc", "a tab": "a\tb", "null sign": "a\0b",
        "a number in it": "007", "spaces around": "  a cat  ", "2,000 signs": "x" * 2000, "a lone surrogate's stand-in": "\ufffd", "BOM inside": "\ufeffcat",
        "right to left marks": "\u202ecat\u202c", "braces": "{a|b} (c:1.2) [d]", "comma": "a, b, c", "true": "true", "null word": "null",
    }  # fmt: skip
    for name, text in texts.items():
        yield Kind(f"caption: {name}", "a.png", saved(halves(), "a.png"), lines=[{"file_name": "a.png", "text": text}])
    wrong = {
        "empty": "", "blank": "  \n", "null": None, "a number": 7, "a truth": True, "an empty list": [], "a list of nothing": [""],
        "a list with null": ["a", None], "2,001 signs": "x" * 2001, "a record": {"a": 1},
    }  # fmt: skip
    for name, text in wrong.items():
        yield Kind(
            f"caption: {name}", "a.png", saved(halves(), "a.png"), None, lines=[{"file_name": "a.png", "text": text}]
        )
    lists = {"texts": ["a", "b"], "nothing": [], "an empty text": [""], "a text and null": ["a", None]}
    for name, text in lists.items():
        colours, lines = WANTED if name == "texts" else None, [{"file_name": "a.png", "text": text}]
        yield Kind(f"a list of {name}", "a.png", saved(halves(), "a.png"), colours, lines=lines, plain=[LINE])
    yield Kind("caption: none", "a.png", saved(halves(), "a.png"), None, lines=[{"file_name": "a.png"}])
    yield Kind("no line for it", "a.png", saved(halves(), "a.png"), None, lines=[])
    yield Kind(
        "another column",
        "a.png",
        saved(halves(), "a.png"),
        lines=[{"file_name": "a.png", "words": LINE}],
        column="words",
    )
    yield Kind("a column that isn't there", "a.png", saved(halves(), "a.png"), None, column="txet")


def metadata():
    """Metadata in other forms."""

    def table(delimiter=",", encoding="utf-8", newline="\n"):
        def write(folder):
            with open(folder / "metadata.csv", "w", encoding=encoding, newline="") as file:
                rows = csv.writer(file, delimiter=delimiter, lineterminator=newline)
                rows.writerows([["file_name", "text"], ["a.png", LINE], ["plain.png", LINE]])

        return write

    def lines(text, encoding="utf-8"):
        return lambda folder: (folder / "metadata.jsonl").write_bytes(text.encode(encoding))

    def line(**fields):
        return json.dumps({"file_name": "plain.png", "text": LINE} | fields) + "\n"

    good = line() + line(file_name="a.png")
    made = saved(halves(), "a.png")
    yield Kind("metadata.csv", "a.png", made, metadata=table())
    yield Kind("metadata.csv of Windows", "a.png", made, metadata=table(newline="\r\n"))
    yield Kind("metadata.csv with semicolons", "a.png", made, None, metadata=table(delimiter=";"))
    yield Kind("metadata.csv with a mark of UTF-8", "a.png", made, "any", metadata=table(encoding="utf-8-sig"))
    yield Kind("lines of Windows", "a.png", made, metadata=lines(good.replace("\n", "\r\n")))
    yield Kind("no line feed at the end", "a.png", made, metadata=lines(good.strip()))
    yield Kind("an empty line between", "a.png", made, metadata=lines(good.replace("\n", "\n\n")))
    yield Kind("a mark of UTF-8", "a.png", made, "any", metadata=lines("\ufeff" + good))
    yield Kind("UTF-16", "a.png", made, None, metadata=lines(good, "utf-16"))
    yield Kind(
        "latin-1",
        "a.png",
        made,
        None,
        metadata=lines(
            good.replace(LINE, "é").replace("\\u00e9", "é") + '{"file_name": "a.png", "text": "é"}', "latin-1"
        ),
    )
    yield Kind("a line cut short", "a.png", made, None, metadata=lines(good[:-9]))
    yield Kind("single quotes", "a.png", made, None, metadata=lines(good.replace('"', "'")))
    yield Kind("an empty file of metadata", "a.png", made, None, metadata=lines(""))
    yield Kind(
        "a JSON list", "a.png", made, "any", metadata=lines(json.dumps([json.loads(row) for row in good.splitlines()]))
    )
    yield Kind("a picture twice", "a.png", made, "any", metadata=lines(good + line(file_name="a.png", text="again")))
    yield Kind("a picture that isn't there", "b.png", made, None, metadata=lines(good + line(file_name="b.png")))
    yield Kind(
        "a path out of the folder", "a.png", made, "any", metadata=lines(good + line(file_name="../other/plain.png"))
    )
    yield Kind("an absolute path", "a.png", made, "any", metadata=lines(line() + line(file_name="/etc/hostname")))
    yield Kind("file names of another case", "a.png", made, None, metadata=lines(line() + line(file_name="A.PNG")))
    yield Kind("no file_name", "a.png", made, None, metadata=lines('{"file": "a.png", "text": "a"}\n'))
    yield Kind("fields that are more", "a.png", made, metadata=lines(line(x=1) + line(file_name="a.png", x=2)))
    yield Kind("fields of two sorts", "a.png", made, "any", metadata=lines(line(x=1) + line(file_name="a.png", x="b")))

    def zipped(folder):
        with zipfile.ZipFile(folder / "all.zip", "w") as archive:
            for name in ("plain.png", "a.png"):
                archive.write(folder / name, name)
                (folder / name).unlink()
            archive.writestr("metadata.jsonl", good)

    yield Kind("all in a zip file", "a.png", made, metadata=zipped)


def names():
    """Files and folders as they are called."""
    for name in (
        "a b.png", "ä.png", "a\u0308.png", "猫.png", "🐱.png", "a'b.png", "a\"b.png", "a;b.png", "a&b.png", "a#b.png", "a%20b.png", "a?b.png",
        "a[1].png", "a{1}.png", "a*b.png", "a::b.png", "-a.png", "a.b.c.png", "x" * 200 + ".png", "sub/a.png", "sub/sub/a.png", "a\\b.png", "CON.png",
        "train.png", "test/a.png", "validation/a.png", "train/a.png",
    ):  # fmt: skip

        def make(folder, name=name):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            halves().save(folder / name)

        yield Kind(f"file {name[:20]!r}", name, make, "right or named")
    for name in (
        "a b", "ä", "猫", "🐱", "[2024] cats", "a::b", "a*b", "a?b", "a#b", "a%b", "{a}", "a'b", "train", "test", "data.v1", "a.zip", "x" * 200, "-a", "~a",
        "a,b", "a=b", "http:", "hf:",
    ):  # fmt: skip
        yield Kind(f"folder {name[:20]!r}", "a.png", saved(halves(), "a.png"), "right or named", folder=name)
    yield Kind(
        "a hidden file beside",
        "a.png",
        lambda folder: (halves().save(folder / "a.png"), (folder / ".DS_Store").write_bytes(b"\0"))[0],
    )
    yield Kind(
        "Thumbs.db beside",
        "a.png",
        lambda folder: (halves().save(folder / "a.png"), (folder / "Thumbs.db").write_bytes(b"\0"))[0],
        "right or named",
    )
    yield Kind(
        "notes beside",
        "a.png",
        lambda folder: (halves().save(folder / "a.png"), (folder / "notes.txt").write_text("a"))[0],
        "right or named",
    )

    def linked(folder):
        halves().save(folder.parent / "elsewhere.png")
        (folder / "a.png").symlink_to(folder.parent / "elsewhere.png")

    yield Kind("a link to a picture", "a.png", linked)
    yield Kind("a link to nothing", "a.png", lambda folder: (folder / "a.png").symlink_to(folder / "gone.png"), None)


def see(kind, place):
    """(what came of it, in words; whether that is right)."""
    folder = place / kind.folder
    try:
        folder.mkdir(parents=True)
        halves(RIGHT, LEFT).save(folder / "plain.png")
        kind.make(folder)
        if kind.metadata:
            kind.metadata(folder)
        else:
            rows = [{"file_name": "plain.png", kind.column: kind.plain}, *kind.lines]
            (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    except (OSError, ValueError, KeyError, SystemError, TiffImagePlugin.struct.error) as error:
        return f"can't be made here: {error}", True
    try:
        config = TrainingConfig(
            train_data_dir=str(folder), learning_rate=1e-3, resolution=SIDE, center_crop=True, caption_column=kind.column,
            cache_dir=str(place / "cache"),
        )  # fmt: skip
        images = load_images(config)
        pictures = TrainingPictures.of(config, images, None)
        for index in range(len(images)):
            images.captions(index)
        loaded = [pictures.pixels(index, flip=False) for index in range(len(images))]
    except (ValueError, OSError) as error:
        text = str(error)
        named = any(word in text for word in (Path(kind.file).name, "metadata", "caption", kind.folder))
        right = named and "Traceback" not in text and kind.colours in (None, "any", "right or named")
        return f"named: {text[:160]}", right
    except BaseException as error:
        return f"{type(error).__name__}: {error}", False
    if kind.colours is None:
        return "taken, and should be named", False
    if kind.colours == "any":
        return f"taken ({len(loaded)} pictures)", True
    wanted = WANTED if kind.colours == "right or named" else kind.colours
    ends = [[(picture[:, 32, column] * 127.5 + 127.5) for column in (4, -5)] for picture in loaded]
    off = min(
        max(
            abs(float(part) - want)
            for end, colour in zip(pair, wanted, strict=True)
            for part, want in zip(end, colour, strict=True)
        )
        for pair in ends
    )
    return f"right to {off:.0f}", off <= kind.far


def main():
    warnings.simplefilter("ignore")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    counts, wrong = Counter(), []
    for group in (formats, modes, sizes, captions, metadata, names):
        for kind in group():
            with tempfile.TemporaryDirectory() as place:
                outcome, right = see(kind, Path(place))
                shutil.rmtree(Path(place, "cache"), ignore_errors=True)
            counts[group.__name__, outcome.split(":")[0].split(" to ")[0].split(" (")[0]] += 1
            print(f"{'' if right else 'WRONG '}{kind.name}: {outcome}", flush=True)
            if not right:
                wrong.append(kind.name)
    print("\n| kinds | " + " | ".join(sorted({outcome for _, outcome in counts})) + " |")
    for group in dict.fromkeys(name for name, _ in counts):
        print(
            f"| {group} | "
            + " | ".join(str(counts[group, outcome]) for outcome in sorted({o for _, o in counts}))
            + " |"
        )
    print(f"{sum(counts.values())} kinds, {len(wrong)} wrong")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
