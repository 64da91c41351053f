"""A local folder of pictures with captions: which files make it, and the file that is at fault where it is no good."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lora_kit.config import TrainingConfig
from lora_kit.data.file_index import FileIndex
from lora_kit.data.pictures import readable_suffixes

LONGEST_CAPTION = 2000  # characters; CLIP reads 77 tokens, some 300 of them
ARCHIVES = (".zip", ".tar", ".gz", ".tgz")
METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet")


def named_data_set(config: TrainingConfig) -> bool:
    """Whether dataset_name says what the data are: "imagefolder" is but another word for a folder of pictures."""
    return config.dataset_name is not None and not (config.dataset_name == "imagefolder" and config.train_data_dir)


def local_folder(config: TrainingConfig) -> Path | None:
    """The folder of this machine that holds the data, or None where they are a style or the Hub's.

    Raises FileNotFoundError for a path that is no folder.
    """
    if config.style is not None:
        return None
    field = "dataset_name" if named_data_set(config) else "train_data_dir"
    value = getattr(config, field)
    folder = Path(value)
    if folder.is_dir():
        return folder.resolve()
    if field == "train_data_dir" or str(value).startswith(("/", ".")):
        raise FileNotFoundError(f"{field} {value!r} is {'not a folder' if folder.exists() else 'not there'}")
    return None


def visible_files(folder: Path) -> list[Path]:
    """The files in a folder and those in it, sorted, but for hidden ones, which load_dataset leaves out."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return [path for path in files if not any(part.startswith((".", "__")) for part in path.relative_to(folder).parts)]


def check_folder(folder: Path, described: bool) -> list[Path]:
    """The pictures in `folder`; ValueError for an empty one, or one without pictures where they must be `described`."""
    readable, files = readable_suffixes(), visible_files(folder)
    if not files or (described and not any(path.suffix.lower() in {*readable, *ARCHIVES} for path in files)):
        raise ValueError(f"folder {str(folder)!r} has no pictures in it: add some, or choose another folder")
    for path in files:
        if "::" in str(path):
            raise ValueError(
                f"{str(path)!r} can't be loaded: '::' in a path stands for an archive; rename the file or its folder"
            )
        if path.name in METADATA and not path.stat().st_size:
            raise ValueError(f"{str(path)!r} is empty: write a line in it for each picture")
    pictures = [path for path in files if path.suffix.lower() in readable]
    if described and not any(path.name in METADATA or path.suffix.lower() in ARCHIVES for path in files):
        texts = sum(path.suffix.lower() in (".txt", ".caption") for path in files)
        beside = f" (its {texts} text files, where other trainers keep captions, are not read)" if texts else ""
        raise ValueError(
            f"folder {str(folder)!r} has no captions{beside}: write metadata.jsonl in it, with a line such as "
            f'{{"file_name": "{pictures[0].relative_to(folder)}", "text": "its caption"}} for each picture'
        )
    return pictures


def check_caption(name: str, caption: Any, column: str, empty: bool, any_length: bool) -> None:
    """ValueError unless `caption` is a text or texts. empty, any_length: whether such ones may be meant."""
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
                f"picture {name} has a caption of {len(text):,} characters, {text[:40]!r}...: the text encoder reads "
                f"77 tokens and drops the rest; write one of at most {LONGEST_CAPTION:,}"
            )


def check_pictures(names: Sequence[str], pictures: Sequence[Path], any_kind: bool, index: FileIndex) -> None:
    """An error for the first of `names` that is missing or broken, or of `pictures` that is not among them.

    index: of their folder; what it knows to be whole isn't read again.
    """
    try:
        for name in names:
            if Path(name).is_absolute():  # else inside an archive or a parquet file: read when it is asked for
                index.check(Path(name), any_kind)
    finally:
        index.keep()
    named = {str(Path(name).resolve()) for name in names}
    for picture in pictures:
        if str(picture.resolve()) not in named:
            raise ValueError(f"picture {picture} has no caption: no line of metadata names it; add one or remove it")
