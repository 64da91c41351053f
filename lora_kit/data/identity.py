"""Which data these are, by content: exchanged pictures are noticed, and a moved folder is still the same data."""

from importlib.metadata import version
from pathlib import Path

from lora_kit.config import TrainingConfig
from lora_kit.data.emoji import STYLE_PACKAGES, STYLES
from lora_kit.data.file_index import FileIndex
from lora_kit.data.folder import ARCHIVES, METADATA, local_folder, named_data_set, visible_files
from lora_kit.data.images import CaptionedImages
from lora_kit.data.pictures import readable_suffixes
from lora_kit.system.files import json_digest


def data_identity(config: TrainingConfig, images: CaptionedImages | None = None, index: FileIndex | None = None) -> str:
    """A text that is the same for the same data and another for others, whatever their folder is called.

    A style is known by the packages that draw it, a local folder by names and content of its files, and a data set of the Hub,
    whose `images` are needed, by its captions and by how much was downloaded. index: of the local folder, if there is one already.
    """
    if config.style is not None:
        return json_digest([STYLES[config.style], [version(package) for package in STYLE_PACKAGES]])
    folder = local_folder(config)
    if folder is not None:
        digests = (index or FileIndex(folder)).digests(data_files(folder, config))
        return json_digest([config.dataset_config_name, digests])
    return json_digest([[images.captions(place) for place in range(len(images))], images.downloads])


def data_files(folder: Path, config: TrainingConfig) -> list[Path]:
    """The files of a local folder that make the data, sorted: all that aren't hidden, or of imagefolder's what it reads."""
    files = visible_files(folder)
    if named_data_set(config):
        return files
    readable = readable_suffixes() | {*ARCHIVES}
    return [path for path in files if path.suffix.lower() in readable or path.name in METADATA]
