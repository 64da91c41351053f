"""Which data these are, by content: exchanged pictures are noticed, and a moved folder is still the same data."""

import contextlib
from importlib.metadata import version
from pathlib import Path

from lora_kit.config import TrainingConfig
from lora_kit.data.emoji import STYLE_PACKAGES, STYLES, cache_dir
from lora_kit.data.folder import ARCHIVES, METADATA, local_folder, named_data_set, visible_files
from lora_kit.data.images import CaptionedImages
from lora_kit.data.pictures import readable_suffixes
from lora_kit.system.files import file_digest, json_digest, read_sealed, write_sealed


def data_identity(config: TrainingConfig, images: CaptionedImages | None = None) -> str:
    """A text that is the same for the same data and another for others, whatever their folder is called.

    A style is known by the packages that draw it, a local folder by names and content of its files, and a data set of the Hub,
    whose `images` are needed, by its captions and by what its maker calls it.
    """
    if config.style is not None:
        return json_digest([STYLES[config.style], [version(package) for package in STYLE_PACKAGES]])
    folder = local_folder(config)
    if folder is not None:
        return json_digest([config.dataset_config_name, file_digests(folder, data_files(folder, config))])
    return json_digest([images.captions(index) for index in range(len(images))])


def data_files(folder: Path, config: TrainingConfig) -> list[Path]:
    """The files of a local folder that make the data, sorted: all that aren't hidden, or of imagefolder's what it reads."""
    files = visible_files(folder)
    if named_data_set(config):
        return files
    readable = readable_suffixes() | {*ARCHIVES}
    return [path for path in files if path.suffix.lower() in readable or path.name in METADATA]


def file_digests(folder: Path, files: list[Path]) -> list[list[str]]:
    """[[name within the folder, digest of the content]] of files. A file is read again only where it may have changed.

    What was read is kept beside the encodings: size, times and number of each file, and its digest. Replacing a file changes its
    number or the time of its change, which no copying program sets.
    """
    index = cache_dir() / f"files-{json_digest(str(folder))[:20]}.json"
    known, found = read_sealed(index) or {}, {}
    for path in files:
        name, stat = str(path.relative_to(folder)), path.stat()
        now = [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]
        *before, digest = known.get(name) or [None]
        found[name] = [*now, digest if before == now else file_digest(path)]
    if found != known:
        with contextlib.suppress(ValueError):  # a full disk: then everything is read again the next time
            write_sealed(index, found)
    return [[name, about[-1]] for name, about in sorted(found.items())]
