"""A picture trains as people see it, or is named before training."""

import io

import numpy as np
import pytest
from PIL import Image

from lora_kit.data.pictures import as_seen_in_rgb, check_picture

RAMP = np.tile(np.linspace(0, 65535, 256).round().astype(np.uint16)[None], (8, 1))


def stored(picture, kind, **options):
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return Image.open(file)


GREYS = {
    "16 bits, PNG": (Image.fromarray(RAMP), "PNG"),
    "16 bits, TIFF": (Image.fromarray(RAMP), "TIFF"),
    "32 bits": (Image.fromarray(RAMP.astype(np.int32)), "TIFF"),
    "floats to 1": (Image.fromarray((RAMP / 65535).astype(np.float32)), "TIFF"),
    "floats to 255": (Image.fromarray((RAMP / 257).astype(np.float32)), "TIFF"),
    "floats to 65,535": (Image.fromarray(RAMP.astype(np.float32)), "TIFF"),
    "8 bits": (Image.fromarray((RAMP // 257).astype(np.uint8)), "PNG"),
}


@pytest.mark.parametrize("kind", GREYS)
def test_grey_keeps_its_levels(kind):
    found = np.asarray(as_seen_in_rgb(stored(*GREYS[kind])))
    assert found.shape == (8, 256, 3) and (found[..., 0] == found[..., 2]).all()
    assert np.array_equal(found[0, :, 0], np.arange(256))


@pytest.mark.parametrize("levels, wanted", [([0, 100, 200], [0, 100, 200]), ([0, 256, 65_535], [0, 1, 255])])
def test_whole_numbers_up_to_255_are_grey_of_8_bits(levels, wanted):
    picture = stored(Image.fromarray(np.array([levels], np.int32)), "TIFF")
    assert picture.mode == "I" and np.asarray(as_seen_in_rgb(picture))[0, :, 0].tolist() == wanted


@pytest.mark.parametrize(
    "levels", [[-1.0, 0.5], [0.0, 70_000.0], [0.0, np.nan], [0.0, np.inf], [0.0, 0.5, 1.02], [0.0, 255.4], [0.0, 16.0]]
)
def test_levels_that_mean_nothing_are_refused(levels):
    with pytest.raises(ValueError, match=r"its grey levels range from .* save it with 8 bits"):
        as_seen_in_rgb(Image.fromarray(np.array([levels], np.float32)))


def palette(transparent):
    picture = Image.new("P", (2, 1))
    picture.putpalette([0, 0, 0, 255, 0, 0])
    picture.putdata([0, 1])
    return stored(picture, "PNG", **({"transparency": 0} if transparent else {}))


TRANSPARENT = {
    "RGBA": (stored(Image.fromarray(np.array([[[0, 0, 0, 0], [255, 0, 0, 255]]], np.uint8)), "PNG"), [255, 255, 255]),
    "half of it": (stored(Image.fromarray(np.array([[[0, 0, 0, 127], [255, 0, 0, 255]]], np.uint8)), "PNG"), [128] * 3),
    "palette": (palette(True), [255, 255, 255]),
    "palette without": (palette(False), [0, 0, 0]),
}


@pytest.mark.parametrize("kind", TRANSPARENT)
def test_what_is_transparent_shows_white(kind):
    picture, first = TRANSPARENT[kind]
    assert np.asarray(as_seen_in_rgb(picture)).tolist() == [[first, [255, 0, 0]]]


def test_grey_with_transparency():
    levels, opacity = (Image.fromarray(np.array([row], np.uint8)) for row in ([0, 100], [0, 255]))
    picture = stored(Image.merge("LA", (levels, opacity)), "PNG")
    assert np.asarray(as_seen_in_rgb(picture)).tolist() == [[[255] * 3, [100] * 3]]


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF"])
@pytest.mark.parametrize("share", [0.3, 0.95])
def test_a_file_that_ends_in_the_middle_is_named(kind, share, tmp_path):
    whole = io.BytesIO()
    Image.effect_noise((300, 220), 80).convert("RGB").save(whole, kind)
    path = tmp_path / "picture"
    path.write_bytes(whole.getvalue())
    check_picture(path, any_kind=False)
    path.write_bytes(whole.getvalue()[: int(len(whole.getvalue()) * share)])
    with pytest.raises(ValueError, match=f"picture {path} can't be read: "):
        check_picture(path, any_kind=True)
