"""Captioned pictures from a style, a folder or the Hub, and the data set that a training loop reads from them.

Columns, transforms and their order follow diffusers' examples/text_to_image/train_text_to_image_lora.py; the transforms
are torchvision's, without torchvision. One thing differs, but with match_diffusers: what is random about an item (crop,
flip, which caption) depends on the seed, the epoch and the index alone, so a resumed epoch repeats exactly.
"""

import difflib
import hashlib
import random
from pathlib import Path

DATASET_COLUMNS = {"lambdalabs/naruto-blip-captions": ("image", "text")}  # the reference's, where a column is None
ANIMATED = ("GIF", "PNG", "WEBP")  # formats that may be films; a phone's JPEG may hold a second picture, which is none
LONGEST_CAPTION = 2000  # characters; CLIP reads 77 tokens, some 300 of them
ARCHIVES = (".zip", ".tar", ".gz", ".tgz")


class CaptionedImages:
    """Pictures with captions by index: `len(images)`, `images.image(0)` -> PIL RGB, `images.captions(0)` -> text(s).

    `pictures` is a list of PIL pictures, or a data set of one column whose pictures are read when they are asked for.
    `fingerprint` is a text that changes when the data do, where their maker has one.
    """

    def __init__(self, pictures, captions, names, fingerprint=None):
        self._pictures, self._captions, self._names, self.fingerprint = pictures, captions, names, fingerprint

    def __len__(self):
        return len(self._captions)

    def captions(self, index):
        """The caption at `index`: a text, or a list of texts that all fit."""
        return self._captions[index]

    def image(self, index):
        """The picture at `index`, RGB in its own size. Raises ValueError, with its name, where it can't be read."""
        item = self._pictures[index]
        try:
            if isinstance(item, dict):
                import datasets

                (stored,) = item.values()
                item = datasets.Image().decode_example(stored)
            return item.convert("RGB")
        except Exception as error:  # PIL raises OSError, SyntaxError, struct.error ... for what it can't read
            raise ValueError(f"picture {self._names[index]} can't be read: {error}") from error


def load_images(config, seed=None):
    """The captioned pictures that `config` names by style, train_data_dir or dataset_name, as `CaptionedImages`.

    seed: for the choice of max_train_samples, the same on every process; left out: config.seed, or 0.

    Raises FileNotFoundError for a folder or picture that isn't there, and ValueError, naming the file or the column,
    for an empty folder, a missing or endless caption, an unknown column and, in a local folder, a picture that is broken,
    animated, in CMYK or too large to be decoded safely. (With match_diffusers all but broken ones are taken.)
    """
    if config.style is not None:
        from lora_kit.data.emoji import load_style

        records = load_style(config.style, "lora", size=config.resolution)
        records = [records[index] for index in _chosen(len(records), config, seed)]
        return CaptionedImages(*([record[key] for record in records] for key in ("image", "text", "emoji")))

    folder, by_name = local_folder(config), config.dataset_name is not None
    found = _check_folder(folder, described=not by_name) if folder else []
    import datasets

    if by_name:
        source = str(folder or config.dataset_name)
        options = {"name": config.dataset_config_name, "data_dir": config.train_data_dir}
    else:
        source, options = "imagefolder", {"data_files": {"train": str(folder / "**")}}
    try:
        splits = datasets.load_dataset(source, cache_dir=config.cache_dir, **options)
    except Exception as error:
        if folder is None:
            raise
        raise ValueError(f"folder {str(folder)!r} can't be loaded; its metadata may be at fault: {error}") from error
    if "train" not in splits:
        raise ValueError(f"dataset_name {config.dataset_name!r} has no split 'train'; it has {', '.join(splits)}")
    rows = splits["train"]
    image_column, caption_column = find_columns(rows.column_names, config)
    if not isinstance(rows.features[image_column], datasets.Image):
        raise ValueError(f"image_column {image_column!r} holds no pictures but {rows.features[image_column]}")
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
        _check_caption(name, caption, caption_column, empty=folder is None, any_length=config.match_diffusers)
    if folder is not None:
        _verify(names, found if not by_name and config.max_train_samples is None else [], config.match_diffusers)
    return CaptionedImages(pictures, captions, names, rows._fingerprint)


def find_columns(column_names, config):
    """(image column, caption column) as the reference finds them: by name, or by place where `config` says None.

    Raises ValueError for a column that isn't there.
    """
    found = []
    for place, field in enumerate(("image_column", "caption_column")):
        name = getattr(config, field)
        if name is None:
            name = DATASET_COLUMNS.get(config.dataset_name, column_names)[place : place + 1]
            name = name[0] if name else None
        if name not in column_names:
            close = difflib.get_close_matches(str(name), column_names, 1)
            hint = f"did you mean {close[0]!r}? " if close else ""
            raise ValueError(f"{field} {name!r} is not a column; {hint}The columns are {', '.join(column_names)}")
        found.append(name)
    return tuple(found)


def _chosen(count, config, seed):
    """Indices of the pictures to train on, by the same draw as `datasets.Dataset.shuffle(seed)`."""
    import numpy as np

    wanted = config.max_train_samples
    if wanted is None:
        return range(count)
    if wanted > count:
        raise ValueError(f"max_train_samples {wanted!r} is more than the {count} pictures of the data")
    seed = (config.seed or 0) if seed is None else seed
    return np.random.default_rng(seed).permutation(count)[:wanted].tolist()


def local_folder(config):
    """The folder of this machine that holds the data, or None where they are a style or the Hub's.

    Raises FileNotFoundError for a path that is no folder.
    """
    if config.style is not None:
        return None
    field = "train_data_dir" if config.dataset_name is None else "dataset_name"
    value = getattr(config, field)
    folder = Path(value).expanduser()
    if folder.is_dir():
        return folder.resolve()
    if field == "train_data_dir" or str(value).startswith(("/", ".", "~")):
        raise FileNotFoundError(f"{field} {value!r} is {'not a folder' if folder.exists() else 'not there'}")
    return None


def _check_folder(folder, described):
    """The pictures in `folder`; ValueError for an empty one, or one without pictures where they must be `described`."""
    from PIL import Image

    readable = {suffix for suffix, kind in Image.registered_extensions().items() if kind in Image.OPEN}
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    files = [path for path in files if not any(part.startswith((".", "__")) for part in path.relative_to(folder).parts)]
    if not files or (described and not any(path.suffix.lower() in {*readable, *ARCHIVES} for path in files)):
        raise ValueError(f"folder {str(folder)!r} is empty: there is no picture in it")
    pictures = [path for path in files if path.suffix.lower() in readable]
    if pictures == files:
        raise ValueError(
            f"folder {str(folder)!r} has no captions: write metadata.jsonl in it, with a line such as "
            f'{{"file_name": "{pictures[0].name}", "text": "its caption"}} for each picture'
        )
    return pictures


def _check_caption(name, caption, column, empty, any_length=False):
    """ValueError unless `caption` is a text or texts; `empty` texts pass where a data set's maker may mean them."""
    texts = caption if isinstance(caption, list) and caption else [caption]
    for text in texts:
        if text is None or text == [] or (isinstance(text, str) and not text.strip() and not empty):
            raise ValueError(f"picture {name} has no caption: its {column!r} is {caption!r}")
        if not isinstance(text, str):
            raise ValueError(
                f"caption_column {column!r} must hold a text or a list of texts; picture {name} has {caption!r}"
            )
        if len(text) > LONGEST_CAPTION and not any_length:
            raise ValueError(
                f"picture {name} has a caption of {len(text):,} characters, {text[:40]!r}...: the text encoder reads 77 tokens "
                f"and drops the rest; write one of at most {LONGEST_CAPTION:,}"
            )


def _verify(names, pictures, any_kind=False):
    """An error for the first of `names` that is missing or broken, or of `pictures` that is not among them."""
    from PIL import Image

    for name in names:
        if not Path(name).is_absolute():  # inside an archive or a parquet file: read when it is asked for
            continue
        if not Path(name).is_file():
            raise FileNotFoundError(f"picture {name} is not there, though the metadata names it")
        try:
            with Image.open(name) as image:
                mode, frames = image.mode, getattr(image, "n_frames", 1) if image.format in ANIMATED else 1
                image.verify()
        except Exception as error:
            raise ValueError(f"picture {name} can't be read: {error}") from error
        if mode == "CMYK" and not any_kind:
            raise ValueError(
                f"picture {name} is in CMYK, whose colours depend on a print profile: save it as RGB with an image editor"
            )
        if frames > 1 and not any_kind:
            raise ValueError(
                f"picture {name} is animated: of its {frames} frames only one would be learned; save that one as PNG"
            )
    named = {str(Path(name).resolve()) for name in names}
    for picture in pictures:
        if str(picture.resolve()) not in named:
            raise ValueError(f"picture {picture} has no caption: no line of metadata names it; add one or remove it")


def resize_and_crop(image, resolution, center_crop, interpolation="lanczos", generator=None):
    """`image` with its shorter edge resized to `resolution`, then cropped to a square: at its centre or at random.

    The longer edge becomes int(resolution * long / short), as torchvision's Resize has it; a random crop draws its top,
    then its left, as RandomCrop does, and draws nothing where the picture is a square.
    """
    import torch
    from PIL import Image

    size = _resized(image.size, resolution)
    if size != image.size:
        image = image.resize(size, Image.Resampling[interpolation.upper().removesuffix("_EXACT")])
    spare = [edge - resolution for edge in size]
    if center_crop or spare == [0, 0]:
        left, top = (round(edge / 2) for edge in spare)
    else:
        top, left = (int(torch.randint(edge + 1, (1,), generator=generator)) for edge in reversed(spare))
    return image.crop((left, top, left + resolution, top + resolution))


def _resized(size, resolution):
    short = min(size)
    return tuple(resolution if edge == short else int(resolution * edge / short) for edge in size)


class TrainingPictures:
    """A map-style data set for torch: {"pixel_values": float32 (3, R, R) in [-1, 1], "input_ids": int64 (tokens,)}.

    images: `CaptionedImages`; R: `resolution`. Call `set_epoch` before each epoch: with (seed, epoch, i) it decides the
    caption, crop and flip of item i. seed None takes torch's own seed. With global_draws they come from Python's and
    torch's global generators instead, one item after the other, as in diffusers' script.
    """

    def __init__(
        self,
        images,
        tokenizer,
        resolution,
        center_crop,
        random_flip,
        image_interpolation_mode="lanczos",
        seed=None,
        global_draws=False,
    ):
        import torch

        self.images, self.tokenizer, self.resolution = images, tokenizer, resolution
        self.center_crop, self.random_flip, self.interpolation = center_crop, random_flip, image_interpolation_mode
        self.seed = torch.initial_seed() if seed is None else seed
        self.global_draws = global_draws
        self.epoch = 0

    @classmethod
    def of(cls, config, images, encoder, seed=None):
        """This data set with the settings of a `TrainingConfig`; `encoder` is what the class takes second."""
        return cls(
            images,
            encoder,
            resolution=config.resolution,
            center_crop=config.center_crop,
            random_flip=config.random_flip,
            image_interpolation_mode=config.image_interpolation_mode,
            seed=seed,
            global_draws=config.match_diffusers,
        )

    def set_epoch(self, epoch):
        """Makes the next reads those of `epoch` (0 is the first)."""
        self.epoch = epoch

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        generator = self.generator(index)
        caption = self.choose(self.images.captions(index), generator)
        return {"pixel_values": self.pixels(index, generator), "input_ids": self.input_ids(caption)}

    def generator(self, index):
        """Where item `index` of this epoch draws from; None stands for the global generators."""
        import torch

        if self.global_draws:
            return None
        digest = hashlib.sha256(f"{self.seed} {self.epoch} {index}".encode()).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))

    def choose(self, captions, generator=None):
        """One of a list of captions; what is no list is returned as it is, and nothing is drawn for it."""
        import torch

        if not isinstance(captions, list):
            return captions
        if generator is None:
            return random.choice(captions)
        return captions[int(torch.randint(len(captions), (), generator=generator))]

    def flipped(self, generator=None):
        """Whether this read is mirrored."""
        import torch

        return self.random_flip and bool(torch.rand(1, generator=generator) < 0.5)

    def is_square(self, index):
        """Whether picture `index` needs no crop once it is resized."""
        return _resized(self.images.image(index).size, self.resolution) == (self.resolution, self.resolution)

    def pixels(self, index, generator=None, flip=None):
        """Picture `index` as float32 (3, R, R) in [-1, 1], cropped and (unless `flip` decides) mirrored by `generator`."""
        import numpy as np
        import torch
        from PIL import Image

        image = self.images.image(index)
        image = resize_and_crop(image, self.resolution, self.center_crop, self.interpolation, generator)
        if self.flipped(generator) if flip is None else flip:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous().float() / 255
        return (pixels - 0.5) / 0.5

    def input_ids(self, caption):
        """A caption as int64 (tokens,), padded or cut to the tokenizer's length."""
        return self.tokenizer(
            caption,
            max_length=self.tokenizer.model_max_length,
            padding="max_length",
            truncation=True,
            return_tensors="pt",
        ).input_ids[0]


def collate(examples):
    """One batch of items: {"pixel_values": float32 (batch, 3, R, R), "input_ids": int64 (batch, tokens)}.

    A data set that makes whole batches has made it already.
    """
    import torch

    if isinstance(examples, dict):
        return examples
    return {key: torch.stack([one[key] for one in examples]).contiguous() for key in ("pixel_values", "input_ids")}
