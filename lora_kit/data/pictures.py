"""One picture, as people see it: transparency on white, sixteen bits as eight, and no file that ends in the middle."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

ANIMATED = ("GIF", "PNG", "WEBP")  # formats that may be films; a phone's JPEG may hold a second picture, which is none
FLOATS = {1: -1, 255: 16, 65_535: 4095}  # full scale: what the highest level must exceed, else another may be meant
SIXTEEN_BITS = ("I;16", "I;16L", "I;16B", "I;16N", "I")  # PIL opens some files of 16 bits as I, which has 32


def as_seen_in_rgb(picture: "Picture") -> "Picture":
    """A picture in RGB: what is transparent shows white, grey of 16 bits and of floats keeps its levels.

    PIL's own `convert("RGB")` cuts such greys off at 255 and drops transparency, which bares whatever colour lies below. Raises
    ValueError for levels that are not clearly on a scale of 0 to 1, 0 to 255 or 0 to 65,535.
    """
    if picture.mode in SIXTEEN_BITS or picture.mode == "F":
        return _grey(picture)
    if picture.has_transparency_data:
        from PIL import Image

        picture = picture.convert("RGBA")
        white = Image.new("RGBA", picture.size, "white")
        return Image.alpha_composite(white, picture).convert("RGB")
    return picture.convert("RGB")


def _grey(picture):
    import numpy as np
    from PIL import Image

    pixels = np.asarray(picture).astype(np.float64)
    low, high = float(pixels.min()), float(pixels.max())
    if picture.mode == "F":
        full = next((full for full, above in FLOATS.items() if above < high <= full), None)
    else:
        full = 255 if picture.mode == "I" and high <= 255 else 65_535
    if full is None or not 0 <= low or high > full:  # NaN is none of these either
        raise ValueError(f"its grey levels range from {low:g} to {high:g}: save it with 8 bits a channel")
    return Image.fromarray((pixels * (255 / full)).round().astype(np.uint8)).convert("RGB")


def readable_suffixes() -> set[str]:
    """The ends of the names of pictures that PIL opens, as load_dataset's imagefolder knows them."""
    from PIL import Image

    return {suffix for suffix, kind in Image.registered_extensions().items() if kind in Image.OPEN}


def check_picture(name: str | Path, any_kind: bool) -> None:
    """FileNotFoundError or ValueError, with its name, for a picture that isn't there or that ends in the middle.

    Unless any_kind also for one in CMYK or with several frames. A JPEG is decoded at an eighth of its size, which reads all of
    it in a fifth of the time.
    """
    from PIL import Image

    if not Path(name).is_file():
        raise FileNotFoundError(f"picture {name} is not there, though the metadata names it")
    try:
        with Image.open(name) as image:
            mode, frames = image.mode, getattr(image, "n_frames", 1) if image.format in ANIMATED else 1
            image.draft(None, (image.width // 8, image.height // 8))
            image.load()
    except Exception as error:  # PIL raises OSError, SyntaxError, struct.error ... for what it can't read
        raise ValueError(f"picture {name} can't be read: {error}") from error
    if mode == "CMYK" and not any_kind:
        raise ValueError(
            f"picture {name} is in CMYK, whose colours depend on a print profile: save it as RGB with an image editor"
        )
    if frames > 1 and not any_kind:
        raise ValueError(
            f"picture {name} is animated: of its {frames} frames only one would be learned; save that one as PNG"
        )
