"""Every setting of a run, under the names of the flags of diffusers' text-to-image LoRA script, checked when it is made.

Source of names and defaults: diffusers, examples/text_to_image/train_text_to_image_lora.py. Where that script's
defaults and the training configuration it documents differ (a warm-up of 500 steps, a rate of 1e-4), this kit takes the
latter: no warm-up unless asked for, and a rate that you choose. With match_diffusers it takes the script's.
"""

import dataclasses
import functools
import typing
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lora_kit.lr_settings import LR_END, LR_SCHEDULERS, READ_BY, WARM_UP, check_warmup, parse_step_rules, problem_of
from lora_kit.script import KIT, SCRIPT, Behaviour
from lora_kit.system.checks import checked, did_you_mean, shown
from lora_kit.system.secret import Secret

STYLES = ("twemoji", "outlined", "line_art", "blueprint", "openmoji", "openmoji_line")
INTERPOLATION_MODES = ("nearest", "nearest_exact", "box", "bilinear", "hamming", "bicubic", "lanczos")
TARGET_MODULES = ("to_k", "to_q", "to_v", "to_out.0")
USUAL_LEARNING_RATES = (1e-5, 1e-2)
PATHS = ("pretrained_model_name_or_path", "dataset_name", "resume_from_checkpoint")  # and ..._dir: there ~ is home
OWN_SETTINGS = (  # what diffusers' script has no flag for
    "style", "target_modules", "lora_alpha", "lr_num_cycles", "lr_power", "lr_step_rules", "match_diffusers", "no_cache",
    "allow_nan", "attention", "channels_last", "torch_compile", "ddp_timeout", "hub_private_repo",
)  # fmt: skip


class ConfigWarning(UserWarning):
    """A setting that is legal but out of the ordinary, or that another setting makes idle."""


def setting(default: Any, help: str, **rules: Any) -> Any:
    """A field with what `--help` says of it and the bounds that `checked` takes; a whole number is at least 1 unless said."""
    return dataclasses.field(default=default, metadata={"help": help, "rules": rules})


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """The settings of one LoRA training run.

    Raises TypeError for a name that is no setting, and says which was probably meant, and ValueError for a value that can't
    work; warns (`ConfigWarning`) of what is out of the ordinary. A copy with a change: `dataclasses.replace(config, rank=8)`.

    >>> TrainingConfig(style="outlined", learning_rate=1e-3).total_batch_size(num_processes=2)
    32
    """

    pretrained_model_name_or_path: str = setting(
        "embedded", 'The base model: a Hub name, a folder in diffusers format, or "embedded" for the tiny one inside.'
    )
    revision: str | None = setting(None, "The Hub revision (branch, tag or commit) of the base model.")
    variant: str | None = setting(None, 'Which files of the base model, such as "fp16".')
    style: str | None = setting(None, "Train on emoji in this style, without those that are held out.", choices=STYLES)
    dataset_name: str | None = setting(None, "A data set of the Hub, or a local folder of one.")
    dataset_config_name: str | None = setting(None, "The configuration of that data set.")
    train_data_dir: str | None = setting(None, "A folder of pictures with metadata.jsonl (imagefolder).")
    image_column: str | None = setting("image", "The column that holds the pictures.")
    caption_column: str | None = setting("text", "The column that holds a caption or a list of them.")
    max_train_samples: int | None = setting(None, "Train on this many pictures only, drawn with --seed.")
    resolution: int = setting(512, "Pictures are resized, then cropped, to this many pixels a side.", low=8)
    center_crop: bool = setting(False, "Crop at the centre instead of at random.")
    random_flip: bool = setting(False, "Mirror each picture with probability one half.")
    image_interpolation_mode: str = setting("lanczos", "How pictures are resized.", choices=INTERPOLATION_MODES)
    validation_prompt: str | None = setting(None, "Draw pictures for this prompt while training.")
    num_validation_images: int = setting(4, "How many of them.")
    validation_epochs: int = setting(1, "Draw them every so many epochs.")
    output_dir: str = setting("sd-model-finetuned-lora", "Where LoRA, checkpoints, metrics and pictures are written.")
    cache_dir: str | None = setting(None, "Where downloaded models and data sets are kept.")
    match_diffusers: bool = setting(
        False,
        "Make the very LoRA that diffusers' own script makes: its random numbers, updates, defaults and file, "
        "and its defects, which --help lists at its end.",
    )
    no_cache: bool = setting(False, "Encode everything anew in every micro-step: slower, the same but for rounding.")
    allow_nan: bool = setting(False, "Run on where the loss or the LoRA becomes NaN or infinite; else it ends the run.")
    # accelerate's set_seed seeds NumPy as well, which takes less than torch
    seed: int | None = setting(None, "Makes a run repeatable; each process draws its own noise.", low=0, below=2**32)
    rank: int = setting(4, "The rank of the LoRA: how wide its matrices A and B are.")
    lora_alpha: int | None = setting(None, "B A is scaled by lora_alpha / rank; left out: rank.")
    target_modules: tuple[str, ...] = setting(TARGET_MODULES, "The ends of the names of the modules that get a LoRA.")
    train_batch_size: int = setting(16, "Pictures in one micro-step of one process.")
    num_train_epochs: int = setting(100, "Passes over the data; --max_train_steps overrides it.")
    max_train_steps: int | None = setting(None, "Optimizer updates in all, on any number of processes.")
    gradient_accumulation_steps: int = setting(1, "Micro-steps whose gradients make one update.")
    gradient_checkpointing: bool = setting(False, "Recompute activations in the backward pass: less memory, more time.")
    learning_rate: float = setting(dataclasses.MISSING, "The peak learning rate, reached after the warm-up.", above=0.0)
    scale_lr: bool = setting(False, "Multiply the rate by batch size, accumulation steps and processes.")
    lr_scheduler: str = setting("constant", "The course of the rate over the run.", choices=LR_SCHEDULERS)
    lr_warmup_steps: int = setting(0, "Updates over which the rate rises from 0.", low=0)
    lr_num_cycles: int = setting(1, "Restarts of cosine_with_restarts.")
    lr_power: float = setting(1.0, "The power of polynomial.", above=0.0)
    lr_step_rules: str | None = setting(
        None, 'For piecewise_constant: "1:100,0.1:200,0.01" is 1 x up to update 100, 0.1 x up to 200.'
    )
    snr_gamma: float | None = setting(None, "Min-SNR weighting of the loss; 5.0 is usual.", above=0.0)
    noise_offset: float = setting(0.0, "Adds noise that is the same over a whole channel.", low=0.0)
    prediction_type: str | None = setting(
        None, "What the model predicts; left out: as the base model says.", choices=("epsilon", "v_prediction")
    )
    use_8bit_adam: bool = setting(False, "Keep Adam's state in 8 bits (bitsandbytes).")
    adam_beta1: float = setting(0.9, "Decay of the mean of the gradients.", low=0.0, below=1.0)
    adam_beta2: float = setting(0.999, "Decay of the mean of their squares.", low=0.0, below=1.0)
    adam_weight_decay: float = setting(1e-2, "Decoupled weight decay.", low=0.0)
    adam_epsilon: float = setting(1e-8, "Keeps the division by the root of those squares finite.", low=0.0)
    max_grad_norm: float = setting(1.0, "Gradients are clipped to this norm; 0 leaves them alone.", low=0.0)
    allow_tf32: bool = setting(False, "Allow TF32 in matrix products (Ampere GPUs and later).")
    mixed_precision: str | None = setting(
        None, 'Left out: ACCELERATE_MIXED_PRECISION (`accelerate launch`); else "no".', choices=("no", "fp16", "bf16")
    )
    dataloader_num_workers: int = setting(
        0, "Processes that load pictures; 0 loads them in the training process.", low=0
    )
    checkpointing_steps: int = setting(500, "Write a checkpoint every so many updates.")
    checkpoints_total_limit: int | None = setting(None, "Keep this many checkpoints, the newest.")
    resume_from_checkpoint: str | None = setting(None, 'A checkpoint-N in output_dir, or "latest".')
    logging_dir: str = setting("logs", "Where trackers write, inside output_dir.")
    report_to: str = setting("tensorboard", "Trackers that accelerate knows; metrics.jsonl is always written.")
    attention: str = setting(
        "sdpa",
        "How the UNet's attention is computed: by torch's fused kernel, or by plain matrix products, which take more memory.",
        choices=("sdpa", "plain"),
    )
    channels_last: bool = setting(False, "Keep the UNet in channels_last memory order.")
    torch_compile: bool = setting(False, "Compile the UNet with torch.compile before the first update.")
    enable_xformers_memory_efficient_attention: bool = setting(False, "Use xformers' attention.")
    ddp_timeout: int = setting(1800, "Seconds that a process waits for the others before it gives up.", below=2**31)
    push_to_hub: bool = setting(False, "Upload the LoRA when the run is done.")
    hub_token: Secret | None = setting(None, "The token for that; a login is safer.")  # noqa: RUF009 -- a plain field
    hub_model_id: str | None = setting(None, "The repository for that; left out: output_dir's name.")
    hub_private_repo: bool = setting(False, "Make that repository private, where it is new.")

    def __post_init__(self):
        for name, value in vars(self).items():
            object.__setattr__(self, name, check_setting(name, value))

    @classmethod
    def draft(cls, **settings: Any) -> "TrainingConfig":
        """Settings that are each right by themselves, whether or not they go together: for whoever says what is wrong.

        Raises TypeError and ValueError as the class does, but for `problems`, and warns of nothing.
        """
        draft = cls.__new__(cls)
        _generated_init(draft, **_with_defaults(settings))
        return draft

    @property
    def behaviour(self) -> Behaviour:
        """This kit's ways, or with match_diffusers those of diffusers' script."""
        return SCRIPT if self.match_diffusers else KIT

    def problems(self) -> list[str]:
        """What can't work together: a list of sentences, empty where all can."""
        problems, name, rate = [], self.lr_scheduler, self.learning_rate
        sources = [source for source in DATA_SOURCES if getattr(self, source) is not None]
        if not sources:
            problems.append("no data: give one of style, dataset_name or train_data_dir")
        if self.style is not None and len(sources) > 1:
            problems.append(f"style {self.style!r} and {sources[1]} {getattr(self, sources[1])!r}: give one of the two")
        if not self.target_modules:
            problems.append(f"target_modules () names nothing to train; the usual ones are {TARGET_MODULES}")
        if self.report_to == "wandb" and self.hub_token is not None:
            problems.append("hub_token with report_to 'wandb' would publish the token; use `hf auth login` instead")
        if name == "polynomial" and rate <= LR_END:
            problems.append(f"learning_rate {rate!r} is not above {LR_END:g}, where lr_scheduler 'polynomial' ends")
        checks = [lambda: name == "piecewise_constant" and parse_step_rules(self.lr_step_rules)]
        if self.max_train_steps is not None and self.behaviour.refuses_bad_fit:
            checks.append(lambda: check_warmup(self.warmup_updates, self.max_train_steps))
        return problems + [problem for check in checks if (problem := problem_of(check))]

    def notices(self) -> list[str]:
        """What is legal but out of the ordinary, or idle because of another setting: a list of sentences."""
        notices, rate, (low, high) = [], self.learning_rate, USUAL_LEARNING_RATES
        if not low <= rate <= high and not self.scale_lr:
            notices.append(f"learning_rate {rate!r} is outside {low:g}..{high:g}, where LoRA usually trains")
        for name, readers in READ_BY.items():
            value = getattr(self, name)
            if value != FIELDS[name].default and self.lr_scheduler not in readers:
                warmup = "choose constant_with_warmup, or leave lr_warmup_steps at 0"
                cure = warmup if name == "lr_warmup_steps" else f"only {readers[0]!r} reads it"
                notices.append(f"lr_scheduler {self.lr_scheduler!r} ignores {name} {value!r}: {cure}")
        if self.max_train_steps is not None and not self.behaviour.refuses_bad_fit:
            problem = problem_of(lambda: check_warmup(self.warmup_updates, self.max_train_steps))
            notices += [problem] if problem else []
        return notices

    @property
    def warmup_updates(self) -> int:
        """lr_warmup_steps where the schedule reads it, else 0."""
        return self.lr_warmup_steps if self.lr_scheduler in WARM_UP else 0

    def total_batch_size(self, num_processes: int = 1) -> int:
        """Pictures in one optimizer update, over all processes."""
        return self.train_batch_size * self.gradient_accumulation_steps * num_processes

    def peak_learning_rate(self, num_processes: int = 1) -> float:
        """The rate that the optimizer is given: learning_rate, times `total_batch_size` where scale_lr is set."""
        return self.learning_rate * (self.total_batch_size(num_processes) if self.scale_lr else 1)

    def changes(self, behaviour: Behaviour | None = None) -> dict[str, Any]:
        """The settings that differ from their defaults, in the order of the fields.

        behaviour: whose defaults; left out, those of this configuration's.
        """
        defaults = {name: field.default for name, field in FIELDS.items()} | (behaviour or self.behaviour).defaults
        return {name: value for name, value in vars(self).items() if value != defaults[name]}


DATA_SOURCES = ("style", "train_data_dir", "dataset_name")
FIELDS = {field.name: field for field in dataclasses.fields(TrainingConfig)}
_generated_init = TrainingConfig.__init__


@functools.wraps(_generated_init)
def _checked_init(self, **settings):
    _generated_init(self, **_with_defaults(settings))
    for problem in self.problems():
        raise ValueError(problem)
    for notice in self.notices():
        warnings.warn(notice, ConfigWarning, stacklevel=2)


TrainingConfig.__init__ = _checked_init


def _with_defaults(settings):
    """Settings with the defaults of their behaviour; TypeError for a name that is none, or no learning_rate."""
    for name in settings:
        if name not in FIELDS:
            hint = did_you_mean(name, FIELDS, "see `python -m lora_kit.training --help` for all of them")
            raise TypeError(f"{shown(name)} is not a setting: {hint}")
    settings = {**(SCRIPT if settings.get("match_diffusers") else KIT).defaults, **settings}
    if "learning_rate" not in settings:
        raise TypeError("learning_rate is missing: choose one; 1e-4 to 1e-3 is typical of LoRA")
    return settings


def quiet_config(settings: Mapping[str, Any]) -> TrainingConfig:
    """A `TrainingConfig` that is checked but warns of nothing: for whoever says its `notices` otherwise."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConfigWarning)
        return TrainingConfig(**settings)


@functools.cache
def kind_of(name: str) -> tuple[type, bool]:
    """(bool, int, float, str or tuple, whether it may be None) for the name of a setting, from its annotation."""
    hint = typing.get_type_hints(TrainingConfig)[name]
    optional = type(None) in typing.get_args(hint)
    return (typing.get_args(hint)[0] if optional else typing.get_origin(hint) or hint), optional


def check_setting(name: str, value: Any) -> Any:
    """`value` as the setting's type. Raises ValueError where it is none, or out of its bounds."""
    kind, optional = kind_of(name)
    rules = ({"low": 1} if kind is int else {}) | FIELDS[name].metadata["rules"]
    return checked(name, value, kind, optional, **rules, path=name in PATHS or name.endswith("_dir"))
