"""The base model: where it is, and its parts, frozen."""

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from lora_kit.config import TrainingConfig
from lora_kit.system.checks import did_you_mean, with_home
from lora_kit.system.files import reason
from lora_kit.system.imports import NEEDED, bars_for_downloads_only, needed_by, quiet_imports

if TYPE_CHECKING:
    import torch
    from diffusers import StableDiffusionPipeline

EMBEDDED_MODEL = Path(__file__).parent / "embedded_model"


class Models(NamedTuple):
    """The parts of Stable Diffusion that training uses."""

    tokenizer: Any
    text_encoder: Any
    vae: Any
    unet: Any
    noise_scheduler: Any


def model_path(name: str) -> str:
    """What `from_pretrained` takes: the folder of the embedded model for "embedded", else `name` as it is.

    Raises ValueError for a folder that is missing or is no model, before any hub is asked for it.

    >>> model_path("stable-diffusion-v1-5/stable-diffusion-v1-5")
    'stable-diffusion-v1-5/stable-diffusion-v1-5'
    """
    if name == "embedded":
        return str(EMBEDDED_MODEL)
    text, folder = str(name), Path(name)
    looks_like_path = text.startswith((".", "/", "~")) or text.count("/") > 1 or "\\" in text or folder.exists()
    problem = None
    if looks_like_path and not folder.is_dir():
        problem = "is a file" if folder.exists() else "does not exist"
    elif looks_like_path and not (folder / "model_index.json").is_file():
        problem = "has no model_index.json"
    elif "/" not in text and (hint := did_you_mean(text, ["embedded"])):
        problem = f"is no model; {hint}"
    if problem:
        raise ValueError(
            f"pretrained_model_name_or_path {text!r} {problem}: give a folder with model_index.json, a Hub name "
            'such as "stable-diffusion-v1-5/stable-diffusion-v1-5", or "embedded"'
        )
    return text


def load_models(
    config: TrainingConfig, dtype: "torch.dtype | None" = None, parts: tuple[str, ...] = Models._fields
) -> Models:
    """`Models` for a `TrainingConfig`: in `dtype` (float32 if left out), on the CPU, all frozen, in eval mode.

    Parts that are not named in `parts` are None: neither they nor the classes that they need are loaded. Training puts
    the UNet back into train mode. `revision` and `variant` go to those parts that the reference gives them to: both to
    VAE and UNet, the revision to tokenizer and text encoder. Raises ValueError for a part that is missing or broken.

    >>> config = TrainingConfig(style="outlined", learning_rate=1e-3)
    >>> load_models(config, parts=("noise_scheduler",)).noise_scheduler.config.num_train_timesteps
    1000

    Source: diffusers, examples/text_to_image/train_text_to_image_lora.py.
    """
    path = model_path(config.pretrained_model_name_or_path)
    quiet_imports()
    import torch

    dtype = dtype or torch.float32
    revision, weights = {"revision": config.revision}, {"variant": config.variant, "torch_dtype": dtype}
    sources = {  # part: its library, class, folder and options
        "tokenizer": ("transformers", "CLIPTokenizer", "tokenizer", revision),
        "text_encoder": ("transformers", "CLIPTextModel", "text_encoder", {**revision, "dtype": dtype}),
        "vae": ("diffusers", "AutoencoderKL", "vae", {**revision, **weights}),
        "unet": ("diffusers", "UNet2DConditionModel", "unet", {**revision, **weights}),
        "noise_scheduler": ("diffusers", "DDPMScheduler", "scheduler", {}),
    }
    name = f"pretrained_model_name_or_path {config.pretrained_model_name_or_path!r}"
    missing = [sources[part][2] for part in parts if Path(path).is_dir() and not Path(path, sources[part][2]).is_dir()]
    if missing:
        raise ValueError(f"{name}: its {missing[0]} can't be loaded: the folder has none")
    loaded = dict.fromkeys(sources)
    with bars_for_downloads_only(path):
        for part in parts:
            library, kind, folder, options = sources[part]
            load = getattr(import_module(library), kind).from_pretrained
            try:
                loaded[part] = load(path, subfolder=folder, cache_dir=config.cache_dir, **options)
            except Exception as error:  # of each library its own; they don't always name the file
                cure = (
                    f"give a folder whose {folder} is whole"
                    if Path(path).is_dir()
                    else "check its name, your login and the network"
                )
                raise ValueError(f"{name}: its {folder} can't be loaded: {reason(error)}; {cure}") from error
    models = Models(**loaded)
    for model in (models.text_encoder, models.vae, models.unet):
        if model is not None:
            model.requires_grad_(False).eval()
    return models


def check_base(name: str, about: dict[str, Any]) -> None:
    """ValueError where a base model, by its unet/config.json, is of a kind that this loop can't train."""
    classes = "one that wants a class for each picture"
    kinds = {  # field: what it may be, the first where it is left out; what it is otherwise
        "addition_embed_type": (
            (None,),
            "SDXL or one like it, which wants the picture's size and a second text encoder",
        ),
        "class_embed_type": ((None,), classes),
        "num_class_embeds": ((None,), classes),
        "encoder_hid_dim_type": ((None, "text_proj"), "one that wants a picture beside the caption"),
        "in_channels": ((4,), "one for inpainting, editing or depth, which is given more than the noisy picture"),
    }
    for field, (plain, kind) in kinds.items():
        value = about.get(field, plain[0])
        if value not in plain:
            raise ValueError(
                f"pretrained_model_name_or_path {name!r} can't be trained by this loop: its UNet has {field} {value!r}, so it is "
                f"{kind}; give a model of Stable Diffusion 1 or 2"
            )


def describe_unet(config: TrainingConfig) -> dict[str, Any]:
    """unet/config.json of a run's base model. Raises whatever a library does where it can't be read."""
    from diffusers import UNet2DConditionModel

    about = UNet2DConditionModel.load_config(
        model_path(config.pretrained_model_name_or_path),
        subfolder="unet",
        cache_dir=config.cache_dir,
        revision=config.revision,
    )
    if not isinstance(about, dict):
        raise ValueError("its unet/config.json doesn't describe a UNet")
    return about


def empty_unet(config: TrainingConfig) -> Any:
    """The UNet of a run's base model without weights. Raises as `check_base`, `check_scheduler` and `describe_unet` do."""
    quiet_imports()
    import torch
    from diffusers import UNet2DConditionModel

    about = describe_unet(config)
    check_base(config.pretrained_model_name_or_path, about)
    check_scheduler(config)
    with torch.device("meta"):
        return UNet2DConditionModel.from_config(about)


def check_scheduler(config: TrainingConfig) -> None:
    """ValueError where the base model predicts what this loop can't train; what can't be read is left to `load_models`."""
    from diffusers import DDPMScheduler

    name = config.pretrained_model_name_or_path
    try:
        about = DDPMScheduler.load_config(model_path(name), subfolder="scheduler", cache_dir=config.cache_dir)
        predicts = config.prediction_type or about.get("prediction_type", "epsilon")
    except Exception:  # of each library its own
        return
    if predicts not in ("epsilon", "v_prediction"):
        raise ValueError(
            f"pretrained_model_name_or_path {name!r} can't be trained by this loop: its scheduler has prediction_type {predicts!r}; "
            "give a model that predicts epsilon or v_prediction, or set prediction_type to what yours predicts"
        )


def check_base_model(config: TrainingConfig) -> None:
    """`check_base`, `check_scheduler`, and a check for the packages needed; what can't be read is left to `load_models`."""
    from huggingface_hub.constants import HF_HUB_CACHE

    for name in NEEDED:
        if getattr(config, name):
            needed_by(name)
    if not Path(model_path(config.pretrained_model_name_or_path)).is_dir():
        with_home("HF_HOME", str(config.cache_dir or HF_HUB_CACHE))
    try:
        about = describe_unet(config)
    except Exception:  # of each library its own
        return
    check_base(config.pretrained_model_name_or_path, about)
    check_scheduler(config)


def speed_up(unet: Any, config: TrainingConfig) -> None:
    """Apply the settings that trade a UNet's memory and time: gradient checkpointing, attention, compilation."""
    if config.gradient_checkpointing:
        unet.enable_gradient_checkpointing()
    if config.enable_xformers_memory_efficient_attention:
        unet.enable_xformers_memory_efficient_attention()
    if config.attention == "plain":
        from diffusers.models.attention_processor import AttnProcessor

        unet.set_attn_processor(AttnProcessor())
    if config.torch_compile:
        unet.compile()


def load_pipeline(name: str = "embedded", **options: Any) -> "StableDiffusionPipeline":
    """A StableDiffusionPipeline that draws without progress bars; `options` go to its `from_pretrained`.

    The safety checker stays out: the embedded model has none, and Stable Diffusion's is a second model of 1.2 GB.
    Whoever publishes pictures for others passes their own `safety_checker`.

    >>> load_pipeline("embedded")("cat face", num_inference_steps=2).images[0].size
    (64, 64)
    """
    path = model_path(name)
    quiet_imports()
    from diffusers import StableDiffusionPipeline

    if "safety_checker" not in options:
        options = {**options, "safety_checker": None, "requires_safety_checker": False}
    with bars_for_downloads_only(path):
        pipeline = StableDiffusionPipeline.from_pretrained(path, **options)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
