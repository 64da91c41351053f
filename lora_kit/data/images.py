"""Captioned pictures from a style, a folder or the Hub, with checks that name the file that is at fault.

Columns follow diffusers' examples/text_to_image/train_text_to_image_lora.py.
"""

import glob
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_kit.config import TrainingConfig
from lora_kit.data.emoji import count_style, load_style
from lora_kit.data.file_index import FileIndex
from lora_kit.data.folder import (
    METADATA,
    check_caption,
    check_folder,
    check_pictures,
    local_folder,
    named_data_set,
    visible_files,
)
from lora_kit.data.pictures import as_seen_in_rgb
from lora_kit.system.checks import did_you_mean, with_home
from lora_kit.system.files import reason

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

DATASET_COLUMNS = {"lambdalabs/naruto-blip-captions": ("image", "text")}  # the reference's, where a column is None


class CaptionedImages:
    """Pictures with captions by index: `len(images)`, `images.image(0)` -> PIL RGB, `images.captions(0)` -> text(s).

    pictures: a list of PIL pictures, or a data set of one column whose pictures are read when they are asked for.
    captions: for each a text, or a list of texts that all fit. names: what messages call each, such as its file.
    fingerprint: a text that changes when the data do, where their maker has one. as_seen: whether pictures become RGB by
    `data.pictures.as_seen_in_rgb`, else by PIL's own way, as in diffusers' script. downloads: what is known of the files that
    the Hub gave (`downloads_of`).
    """

    def __init__(
        self,
        pictures: Sequence[Any],
        captions: Sequence[str | list[str]],
        names: Sequence[str],
        fingerprint: str | None = None,
        as_seen: bool = True,
        downloads: Sequence[Any] = (),
    ) -> None:
        self._pictures, self._captions, self._names, self.fingerprint = pictures, captions, names, fingerprint
        self.downloads = list(downloads)
        self._to_rgb = as_seen_in_rgb if as_seen else (lambda picture: picture.convert("RGB"))

    def __len__(self) -> int:
        return len(self._captions)

    def captions(self, index: int) -> str | list[str]:
        """The caption at `index`: a text, or a list of texts that all fit."""
        return self._captions[index]

    def name(self, index: int) -> str:
        """What messages call the picture at `index`: its file's path, where it is a file of this machine."""
        return self._names[index]

    def size(self, index: int) -> tuple[int, int]:
        """The edges of the picture at `index` in pixels; of a file without decoding it, so before any turn that it asks for."""
        from PIL import Image

        item = self._pictures[index]
        if isinstance(item, dict):
            (stored,) = item.values()
            if stored["path"] and not stored["bytes"] and Path(stored["path"]).is_file():
                with suppress(Exception), Image.open(stored["path"]) as picture:  # `image` says what is wrong
                    return picture.size
        return self.image(index).size

    def image(self, index: int) -> "Picture":
        """The picture at `index`, RGB in its own size. Raises ValueError, with its name, where it can't be read."""
        item = self._pictures[index]
        try:
            if isinstance(item, dict):
                import datasets

                (stored,) = item.values()
                with datasets.Image().decode_example(stored) as picture:
                    return self._to_rgb(picture)
            return self._to_rgb(item)
        except Exception as error:  # PIL raises OSError, SyntaxError, struct.error ... for what it can't read
            raise ValueError(f"picture {self._names[index]} can't be read: {error}") from error


def load_images(config: TrainingConfig, seed: int | None = None, index: FileIndex | None = None) -> CaptionedImages:
    """The captioned pictures that `config` names by style, train_data_dir or dataset_name, as `CaptionedImages`.

    seed: for the choice of max_train_samples, the same on every process; left out: config.seed, or 0. index: of the local folder, if
    there is one already.

    Raises FileNotFoundError for a folder or picture that isn't there, and ValueError, naming the file or the column,
    for more max_train_samples than pictures, an empty folder, a missing or endless caption, an unknown column and, in a
    local folder, a picture that is broken, animated, in CMYK or too large to be decoded safely. (With match_diffusers
    all but broken ones are taken.)
    """
    if config.style is not None:
        records = load_style(config.style, "lora", size=config.resolution)
        records = [records[index] for index in _chosen(len(records), config, seed)]
        return CaptionedImages(*([record[key] for record in records] for key in ("image", "text", "emoji")))

    folder, by_name = local_folder(config), named_data_set(config)
    files = check_folder(folder, described=not by_name) if folder else []
    import datasets

    with_home("HF_HOME", str(config.cache_dir or datasets.config.HF_DATASETS_CACHE))
    if by_name:
        source = str(folder or config.dataset_name)
        options = {"name": config.dataset_config_name, "data_dir": config.train_data_dir}
    else:
        source, options = "imagefolder", {"data_files": {"train": str(Path(glob.escape(str(folder)), "**"))}}
    try:
        splits = datasets.load_dataset(source, cache_dir=config.cache_dir, **options)
    except Exception as error:
        if folder is None:
            raise ValueError(f"dataset_name {config.dataset_name!r} can't be loaded: {_hub_cause(error)}") from error
        raise ValueError(f"folder {str(folder)!r} can't be loaded: {_cause(error, folder)}") from error
    if "train" not in splits:
        raise ValueError(f"dataset_name {config.dataset_name!r} has no split 'train'; it has {', '.join(splits)}")
    rows = splits["train"]
    image_column, caption_column = find_columns(rows.column_names, config)
    if not isinstance(rows.features[image_column], datasets.Image):
        raise ValueError(f"image_column {image_column!r} holds {rows.features[image_column]}, not pictures")
    chosen = _chosen(len(rows), config, seed)
    rows = rows.select(chosen)
    pictures = rows.select_columns([image_column]).cast_column(image_column, datasets.Image(decode=False))
    names, captions = [f"{index} of {source}" for index in chosen], list(rows[caption_column])
    if folder is not None:
        for place, item in enumerate(pictures):
            if item[image_column] is None:
                raise ValueError(f"picture {names[place]} has no file: its {image_column!r} is empty")
            names[place] = item[image_column]["path"] or names[place]
    for name, caption in zip(names, captions, strict=True):
        check_caption(name, caption, caption_column, folder is None, not config.behaviour.refuses_bad_fit)
    if folder is not None:
        every = config.max_train_samples is None and (not by_name or _all_in_train(folder, splits, config))
        check_pictures(names, files if every else [], not config.behaviour.refuses_bad_fit, index or FileIndex(folder))
    downloads = [] if folder else downloads_of(rows.info)
    return CaptionedImages(
        pictures, captions, names, rows._fingerprint, config.behaviour.shows_pictures_as_seen, downloads
    )


def _all_in_train(folder, splits, config):
    """Whether each picture of a folder that dataset_name names ought to be in its split "train"."""
    metadata = [path for path in visible_files(folder) if path.name in METADATA]
    narrowed = config.train_data_dir or (folder / "README.md").exists()  # which may say what belongs to the data
    narrowed = narrowed or (folder / "train").exists()  # which then is the whole split
    return len(metadata) == 1 and list(splits) == ["train"] and not narrowed


def downloads_of(info: Any) -> list[Any]:
    """[bytes that were downloaded, [name, number of rows] of each split], whichever commit they came with."""
    return [info.download_size, sorted([name, split.num_examples] for name, split in (info.splits or {}).items())]


def _hub_cause(error):
    """What load_dataset says is wrong with the Hub's data; where it only says that there was an error, the cause."""
    from datasets.exceptions import DatasetGenerationError

    return reason(error) if isinstance(error, DatasetGenerationError) else f"{type(error).__name__} {error}"


def _cause(error, folder):
    """What is behind an error of load_dataset, which wraps what its readers raise, and what would be right."""
    while inner := error.__cause__ or error.__context__:
        error = inner
    if isinstance(error, UnicodeError):
        return f"its metadata is not in UTF-8 ({error}); save it as UTF-8"
    if isinstance(error, OSError) and error.filename and folder not in Path(error.filename).parents:
        return f"{error.strerror}: {error.filename}, where data sets are cached; set HF_HOME or cache_dir to a folder with room"
    return f"its metadata may be at fault: {type(error).__name__} {error}"


def count_images(config: TrainingConfig, seed: int | None = None) -> int:
    """How many pictures `load_images(config, seed)` gives. A style's are counted without drawing or reading any.

    Raises what `load_images` raises; for a style that is the ValueError of max_train_samples.

    >>> count_images(TrainingConfig(style="outlined", learning_rate=1e-3))
    399
    """
    if config.style is None:
        return len(load_images(config, seed))
    return _sample_size(count_style(config.style, "lora"), config)


def find_columns(column_names: Sequence[str], config: TrainingConfig) -> tuple[str, str]:
    """(image column, caption column) as the reference finds them: by name, or by place where `config` says None.

    Raises ValueError for a column that isn't there.

    >>> config = TrainingConfig(dataset_name="someone/some", image_column=None, learning_rate=1e-3)
    >>> find_columns(["photo", "text"], config)
    ('photo', 'text')
    """
    columns = []
    for place, field in enumerate(("image_column", "caption_column")):
        name = getattr(config, field)
        if name is None:
            name = DATASET_COLUMNS.get(config.dataset_name, column_names)[place : place + 1]
            name = name[0] if name else None
        if name not in column_names:
            hint = did_you_mean(str(name), column_names)
            hint += " " if hint else ""
            raise ValueError(f"{field} {name!r} is not a column; {hint}The columns are {', '.join(column_names)}")
        columns.append(name)
    return tuple(columns)


def _sample_size(count, config):
    """How many of `count` pictures to train on: max_train_samples, or all."""
    size = config.max_train_samples
    if size is not None and size > count:
        raise ValueError(f"max_train_samples {size!r} is more than the {count} pictures of the data")
    return count if size is None else size


def _chosen(count, config, seed):
    """Indices of the pictures to train on, by the same draw as `datasets.Dataset.shuffle(seed)`."""
    size = _sample_size(count, config)
    if config.max_train_samples is None:
        return range(count)
    import numpy as np

    seed = (config.seed or 0) if seed is None else seed
    return np.random.default_rng(seed).permutation(count)[:size].tolist()
