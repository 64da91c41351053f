"""Every setting of a run, under the names of the flags of diffusers' text-to-image LoRA script, checked when it is made.

Source of names and defaults: diffusers, examples/text_to_image/train_text_to_image_lora.py. Where that script's
defaults and the training configuration it documents differ (a warm-up of 500 steps, a rate of 1e-4), this kit takes the
latter: no warm-up unless asked for, and a rate that you choose. With match_diffusers it takes the script's.
"""

import argparse
import dataclasses
import difflib
import math
import warnings
from dataclasses import dataclass, field

LR_SCHEDULERS = (
    "constant",
    "constant_with_warmup",
    "linear",
    "cosine",
    "cosine_with_restarts",
    "polynomial",
    "piecewise_constant",
)
IGNORES_WARMUP = ("constant", "piecewise_constant")
STYLES = ("twemoji", "outlined", "line_art", "blueprint", "openmoji", "openmoji_line")
ATTENTIONS = ("sdpa", "plain")
INTERPOLATION_MODES = ("nearest", "nearest_exact", "box", "bilinear", "hamming", "bicubic", "lanczos")
USUAL_LEARNING_RATES = (1e-5, 1e-2)
MATCHED_DEFAULTS = {"learning_rate": 1e-4, "lr_warmup_steps": 500}  # the script's own, taken with match_diffusers
MATCHED_DEFECTS = (  # what match_diffusers brings back, as --help and the README say it
    "D1: max_grad_norm does nothing, since clipping is handed an exhausted iterator",
    "D2: with bf16 the LoRA's own weights are bf16 too, in which most small updates round away",
    "D4: with a seed, every process draws the same noise and timesteps",
    "D7: a resumed epoch starts again from its first batch, and processes other than the first lose their random state",
)


OWN_SETTINGS = (  # what diffusers' script has no flag for
    "style", "target_modules", "lora_alpha", "lr_num_cycles", "lr_power", "lr_step_rules", "match_diffusers", "no_cache",
    "attention", "channels_last", "torch_compile",
)  # fmt: skip


class ConfigWarning(UserWarning):
    """A setting that is legal but out of the ordinary, or that another setting makes idle."""


def _setting(default, help, kind, low=None, high=None, choices=None, optional=False, above=None, below=None):
    """A field with what `--help` says of it and what its value must be: low <= value <= high, above < value < below."""
    rules = dict(help=help, kind=kind, low=low, high=high, choices=choices, optional=optional, above=above, below=below)
    if default is dataclasses.MISSING:
        return field(metadata=rules)
    return field(default=default, metadata=rules)


def _text(default, help, **rules):
    return _setting(default, help, str, **rules)


def _count(default, help, low=1, **rules):
    return _setting(default, help, int, low=low, **rules)


def _number(default, help, **rules):
    return _setting(default, help, float, **rules)


def _switch(help):
    return _setting(False, help, bool)


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """The settings of one LoRA training run.

    Raises TypeError for a name that is no setting (and says which one was probably meant) and ValueError for a value
    that can't work; warns (`ConfigWarning`) of a legal value that is out of the ordinary. Copies with a change:
    `dataclasses.replace(config, rank=8)`.

    >>> TrainingConfig(style="outlined", learning_rate=1e-3).total_batch_size(num_processes=2)
    32
    """

    pretrained_model_name_or_path: str = _text(
        "embedded", 'The base model: a Hub name, a folder in diffusers format, or "embedded" for the tiny one inside.'
    )
    revision: str | None = _text(None, "The Hub revision (branch, tag or commit) of the base model.", optional=True)
    variant: str | None = _text(None, 'Which files of the base model, such as "fp16".', optional=True)
    style: str | None = _text(
        None, "Train on emoji in this style, without those that are held out.", choices=STYLES, optional=True
    )
    dataset_name: str | None = _text(None, "A data set of the Hub, or a local folder of one.", optional=True)
    dataset_config_name: str | None = _text(None, "The configuration of that data set.", optional=True)
    train_data_dir: str | None = _text(None, "A folder of pictures with metadata.jsonl (imagefolder).", optional=True)
    image_column: str | None = _text("image", "The column that holds the pictures.", optional=True)
    caption_column: str | None = _text("text", "The column that holds a caption or a list of them.", optional=True)
    max_train_samples: int | None = _count(None, "Train on this many pictures only, drawn with --seed.", optional=True)
    resolution: int = _count(512, "Pictures are resized, then cropped, to this many pixels a side.", low=8)
    center_crop: bool = _switch("Crop at the centre instead of at random.")
    random_flip: bool = _switch("Mirror each picture with probability one half.")
    image_interpolation_mode: str = _text("lanczos", "How pictures are resized.", choices=INTERPOLATION_MODES)
    validation_prompt: str | None = _text(None, "Draw pictures for this prompt while training.", optional=True)
    num_validation_images: int = _count(4, "How many of them.")
    validation_epochs: int = _count(1, "Draw them every so many epochs.")
    output_dir: str = _text("sd-model-finetuned-lora", "Where LoRA, checkpoints, metrics and pictures are written.")
    cache_dir: str | None = _text(None, "Where downloaded models and data sets are kept.", optional=True)
    match_diffusers: bool = _switch(
        "Make the very LoRA that diffusers' own script makes: its random numbers, updates, defaults and file, "
        "and its defects, which --help lists at its end."
    )
    no_cache: bool = _switch(
        "Encode pictures and captions anew in every micro-step: slower, the same but for rounding."
    )
    seed: int | None = _count(
        None, "Makes a run repeatable; each process draws its own noise from it.", 0, optional=True
    )
    rank: int = _count(4, "The rank of the LoRA: how wide its matrices A and B are.")
    lora_alpha: int | None = _count(None, "B A is scaled by lora_alpha / rank; left out: rank.", optional=True)
    target_modules: tuple[str, ...] = _setting(
        ("to_k", "to_q", "to_v", "to_out.0"), "The ends of the names of the modules that get a LoRA.", tuple
    )
    train_batch_size: int = _count(16, "Pictures in one micro-step of one process.")
    num_train_epochs: int = _count(100, "Passes over the data; --max_train_steps overrides it.")
    max_train_steps: int | None = _count(None, "Optimizer updates in all, on any number of processes.", optional=True)
    gradient_accumulation_steps: int = _count(1, "Micro-steps whose gradients make one update.")
    gradient_checkpointing: bool = _switch("Recompute activations in the backward pass: less memory, more time.")
    learning_rate: float = _number(dataclasses.MISSING, "The peak learning rate, reached after the warm-up.", above=0.0)
    scale_lr: bool = _switch("Multiply the rate by batch size, accumulation steps and processes.")
    lr_scheduler: str = _text("constant", "The course of the rate over the run.", choices=LR_SCHEDULERS)
    lr_warmup_steps: int = _count(0, "Updates over which the rate rises from 0.", low=0)
    lr_num_cycles: int = _count(1, "Restarts of cosine_with_restarts.")
    lr_power: float = _number(1.0, "The power of polynomial.", above=0.0)
    lr_step_rules: str | None = _text(
        None, 'For piecewise_constant: "1:100,0.1:200,0.01" is 1 x up to update 100, 0.1 x up to 200.', optional=True
    )
    snr_gamma: float | None = _number(None, "Min-SNR weighting of the loss; 5.0 is usual.", above=0.0, optional=True)
    noise_offset: float = _number(0.0, "Adds noise that is the same over a whole channel.", low=0.0)
    prediction_type: str | None = _text(
        None, "What the model predicts; left out: as the base model says.", choices=("epsilon", "v_prediction"), optional=True
    )  # fmt: skip
    use_8bit_adam: bool = _switch("Keep Adam's state in 8 bits (bitsandbytes).")
    adam_beta1: float = _number(0.9, "Decay of the mean of the gradients.", low=0.0, below=1.0)
    adam_beta2: float = _number(0.999, "Decay of the mean of their squares.", low=0.0, below=1.0)
    adam_weight_decay: float = _number(1e-2, "Decoupled weight decay.", low=0.0)
    adam_epsilon: float = _number(1e-8, "Keeps the division by the root of those squares finite.", low=0.0)
    max_grad_norm: float = _number(1.0, "Gradients are clipped to this norm; 0 leaves them alone.", low=0.0)
    allow_tf32: bool = _switch("Allow TF32 in matrix products (Ampere GPUs and later).")
    mixed_precision: str | None = _text(
        None, "Left out: what accelerate is configured for.", choices=("no", "fp16", "bf16"), optional=True
    )
    dataloader_num_workers: int = _count(
        0, "Processes that load pictures; 0 loads them in the training process.", low=0
    )
    checkpointing_steps: int = _count(500, "Write a checkpoint every so many updates.")
    checkpoints_total_limit: int | None = _count(None, "Keep this many checkpoints, the newest.", optional=True)
    resume_from_checkpoint: str | None = _text(None, 'A checkpoint-N in output_dir, or "latest".', optional=True)
    logging_dir: str = _text("logs", "Where trackers write, inside output_dir.")
    report_to: str = _text("tensorboard", "Trackers that accelerate knows; metrics.jsonl is always written.")
    attention: str = _text(
        "sdpa",
        "How the UNet's attention is computed: by torch's fused kernel, or by plain matrix products, which take more memory.",
        choices=ATTENTIONS,
    )
    channels_last: bool = _switch("Keep the UNet in channels_last memory order.")
    torch_compile: bool = _switch("Compile the UNet with torch.compile before the first update.")
    enable_xformers_memory_efficient_attention: bool = _switch("Use xformers' attention.")
    push_to_hub: bool = _switch("Upload the LoRA when the run is done.")
    hub_token: str | None = _text(None, "The token for that; a login is safer.", optional=True)
    hub_model_id: str | None = _text(None, "The repository for that; left out: output_dir's name.", optional=True)
    local_rank: int = _count(-1, "Set by launchers; LOCAL_RANK in the environment decides.", low=-1)

    def __post_init__(self):
        for one in dataclasses.fields(self):
            object.__setattr__(self, one.name, checked(one.name, getattr(self, one.name), one.metadata))
        sources = [name for name in ("style", "dataset_name", "train_data_dir") if getattr(self, name) is not None]
        if not sources:
            raise ValueError("no data: give one of style, dataset_name or train_data_dir")
        if self.style is not None and len(sources) > 1:
            raise ValueError(
                f"style {self.style!r} and {sources[1]} {getattr(self, sources[1])!r}: give one of the two"
            )
        if not self.target_modules:
            raise ValueError(
                'target_modules () names nothing to train; the usual ones are ("to_k", "to_q", "to_v", "to_out.0")'
            )
        if self.report_to == "wandb" and self.hub_token is not None:
            raise ValueError("hub_token with report_to 'wandb' would publish the token; use `hf auth login` instead")
        if self.lr_scheduler == "polynomial" and self.learning_rate <= 1e-7:
            raise ValueError(
                f"learning_rate {self.learning_rate!r} is not above 1e-7, where lr_scheduler 'polynomial' ends"
            )
        if self.lr_scheduler == "piecewise_constant":
            check_step_rules(self.lr_step_rules)
        if self.max_train_steps is not None and self.lr_scheduler not in IGNORES_WARMUP and not self.match_diffusers:
            check_warmup(self.lr_warmup_steps, self.max_train_steps)

    def notices(self):
        """What is legal but out of the ordinary, or idle because of another setting: a list of sentences."""
        found, name = [], self.lr_scheduler
        low, high = USUAL_LEARNING_RATES
        if not low <= self.learning_rate <= high and not self.scale_lr:
            found.append(
                f"learning_rate {self.learning_rate!r} is outside {low:g}..{high:g}, where LoRA usually trains"
            )
        if self.lr_warmup_steps and name in IGNORES_WARMUP:
            cure = "choose constant_with_warmup, or leave lr_warmup_steps at 0"
            found.append(f"lr_scheduler {name!r} ignores lr_warmup_steps {self.lr_warmup_steps!r}: {cure}")
        elif self.match_diffusers and self.max_train_steps is not None:
            try:
                check_warmup(self.lr_warmup_steps, self.max_train_steps)
            except ValueError as error:
                found.append(str(error))
        for field_name, idle, reader in (
            ("lr_num_cycles", 1, "cosine_with_restarts"),
            ("lr_power", 1.0, "polynomial"),
            ("lr_step_rules", None, "piecewise_constant"),
        ):
            value = getattr(self, field_name)
            if value != idle and name != reader:
                found.append(f"{field_name} {value!r} is ignored by lr_scheduler {name!r}; only {reader!r} reads it")
        return found

    def total_batch_size(self, num_processes=1):
        """Pictures in one optimizer update, over all processes."""
        return self.train_batch_size * self.gradient_accumulation_steps * num_processes

    def peak_learning_rate(self, num_processes=1):
        """The rate that the optimizer is given: learning_rate, times `total_batch_size` where scale_lr is set."""
        return self.learning_rate * (self.total_batch_size(num_processes) if self.scale_lr else 1)

    def changes(self, matched=None):
        """The settings that differ from their defaults, as a dict in the order of the fields.

        matched: from the defaults of diffusers' script, where they are others; left out: as match_diffusers says.
        """
        others = MATCHED_DEFAULTS if (self.match_diffusers if matched is None else matched) else {}
        defaults = {one.name: others.get(one.name, one.default) for one in dataclasses.fields(self)}
        return {name: getattr(self, name) for name, default in defaults.items() if getattr(self, name) != default}

    def to_argv(self):
        """The command line that gives this configuration: the flags that differ from their defaults."""
        return flags(self.changes())


def flags(settings):
    """A dict of settings as the words of a command line; None is left out."""
    argv = []
    for name, value in settings.items():
        if value is None or value is False:
            continue
        if str(value).startswith("-"):  # apart, it would be read as a flag
            argv.append(f"--{name}={value}")
            continue
        argv.append(f"--{name}")
        if isinstance(value, tuple):
            argv.extend(value)
        elif value is not True:
            argv.append(str(value))
    return argv


_generated_init = TrainingConfig.__init__


def _init(self, **settings):
    names = [one.name for one in dataclasses.fields(self)]
    for name in settings:
        if name not in names:
            close = difflib.get_close_matches(name, names, 1)
            hint = (
                f"did you mean {close[0]!r}?" if close else "see `python -m lora_kit.training --help` for all of them"
            )
            raise TypeError(f"{name!r} is not a setting: {hint}")
    if settings.get("match_diffusers"):
        settings = {**MATCHED_DEFAULTS, **settings}
    if "learning_rate" not in settings:
        raise TypeError("learning_rate is missing: choose one; 1e-4 to 1e-3 is typical of LoRA")
    _generated_init(self, **settings)
    for notice in self.notices():
        warnings.warn(notice, ConfigWarning, stacklevel=2)


TrainingConfig.__init__ = _init


def checked(name, value, rules):
    """The value as its field's type, or ValueError."""
    kind, wanted = rules["kind"], None
    if value is None:
        if rules["optional"]:
            return None
        raise ValueError(f"{name} None: a value is needed ({rules['help']})")
    if kind is bool:
        wanted = None if isinstance(value, bool) else "True or False"
    elif kind is int:
        wanted = None if isinstance(value, int) and not isinstance(value, bool) else "a whole number"
    elif kind is float:
        number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
        wanted = None if number else "a finite number"
    elif kind is tuple:
        items = isinstance(value, (list, tuple)) and all(isinstance(item, str) for item in value)
        wanted = None if items else "a list of names"
    else:
        value = str(value) if hasattr(value, "__fspath__") else value
        wanted = None if isinstance(value, str) and value else "a text"
    if wanted:
        raise ValueError(f"{name} {value!r} is not {wanted}")
    if rules["choices"] and value not in rules["choices"]:
        close = difflib.get_close_matches(value.lower(), rules["choices"], 1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise ValueError(f"{name} {value!r} is unknown; {hint}It must be one of {', '.join(rules['choices'])}")
    for rule, broken, words in (
        ("low", lambda bound: value < bound, "at least"),
        ("high", lambda bound: value > bound, "at most"),
        ("above", lambda bound: value <= bound, "greater than"),
        ("below", lambda bound: value >= bound, "less than"),
    ):
        if rules[rule] is not None and broken(rules[rule]):
            raise ValueError(f"{name} {value!r} must be {words} {rules[rule]:g}")
    return {float: float, tuple: tuple}.get(kind, lambda same: same)(value)


def check_warmup(lr_warmup_steps, max_train_steps):
    """ValueError where the warm-up leaves no update at the full rate. Both in optimizer updates."""
    if lr_warmup_steps >= max_train_steps and lr_warmup_steps > 0:
        raise ValueError(
            f"lr_warmup_steps {lr_warmup_steps!r} is not shorter than the {max_train_steps} updates of the run, so the "
            f"rate would never reach its peak; about {max(max_train_steps // 10, 0)} (a tenth) is usual"
        )


def check_step_rules(rules):
    """The rules of piecewise_constant, "1:100,0.1:200,0.01", as ([(100, 1.0), (200, 0.1)], 0.01), or ValueError.

    Boundaries are updates counted from the start of the run, each larger than the one before.
    """
    example = 'for example "1:100,0.1:200,0.01": 1 x up to update 100, 0.1 x up to update 200, then 0.01 x'
    if rules is None:
        raise ValueError(f"lr_step_rules None: lr_scheduler 'piecewise_constant' needs them, {example}")
    try:
        *pairs, last = rules.split(",")
        parsed = [(int(boundary), float(factor)) for factor, boundary in (pair.split(":") for pair in pairs)]
        last = float(last)
    except ValueError:
        raise ValueError(f"lr_step_rules {rules!r} can't be read; {example}") from None
    if not all(math.isfinite(factor) and factor >= 0 for factor in (*(factor for _, factor in parsed), last)):
        raise ValueError(f"lr_step_rules {rules!r}: each factor must be a number of at least 0; {example}")
    boundaries = [boundary for boundary, _ in parsed]
    if sorted(set(boundaries)) != boundaries or any(boundary < 1 for boundary in boundaries):
        raise ValueError(f"lr_step_rules {rules!r}: boundaries {boundaries} must rise from 1 on; {example}")
    return parsed, last


def build_parser(number=None):
    """The command line: one flag a setting, the reference's names. `number` reads numbers instead of int and float."""
    parser = argparse.ArgumentParser(
        prog="python -m lora_kit.training",
        description="Train a LoRA of a text-to-image diffusion model.",
        epilog="\n".join(
            [
                "--match_diffusers brings back the script's defaults where a flag is left out:",
                *(f"  --{name} {value:g}" for name, value in MATCHED_DEFAULTS.items()),
                "and its defects, each of which is mended without it:",
                *(f"  {defect}" for defect in MATCHED_DEFECTS),
            ]
        ),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    for one in dataclasses.fields(TrainingConfig):
        rules, required = one.metadata, one.default is dataclasses.MISSING
        text = rules["help"].replace("%", "%%")
        text += f" One of {', '.join(rules['choices'])}." if rules["choices"] else ""
        text += " Required, but with match_diffusers." if required else ""
        if rules["kind"] is bool:
            parser.add_argument(f"--{one.name}", action="store_true", default=argparse.SUPPRESS, help=text)
            continue
        if not required and one.default is not None:
            text += f" Default: {' '.join(one.default) if rules['kind'] is tuple else one.default}."
        kind = str if rules["kind"] is tuple else rules["kind"]
        parser.add_argument(
            f"--{one.name}",
            type=kind if kind is str or number is None else number,
            nargs="+" if rules["kind"] is tuple else None,
            default=argparse.SUPPRESS,
            metavar=rules["kind"].__name__.upper() if rules["kind"] is not tuple else "NAME",
            help=text,
        )
    return parser


def nearest_flags(words):
    """[(word, what may have been meant)] for words of a command line that it doesn't know; values are left out."""
    flags = [f"--{one.name}" for one in dataclasses.fields(TrainingConfig)]
    found = []
    for word in [word for word in words if word.startswith("-")] or words[:1]:
        close = difflib.get_close_matches(word.split("=")[0], flags, 1)
        found.append((word, f", did you mean {close[0]}?" if close else ""))
    return found


def parse_args(argv=None):
    """A `TrainingConfig` from a command line (sys.argv where `argv` is None); exits with 2 and the error in one line."""
    parser = build_parser()
    given, unknown = parser.parse_known_args(argv)
    settings = vars(given)  # only what was given: a default may depend on match_diffusers
    if unknown:
        parser.error("; ".join(f"unknown {word!r}{hint}" for word, hint in nearest_flags(unknown)))
    if not {"learning_rate", "match_diffusers"} & settings.keys():
        parser.error("--learning_rate is required: 1e-4 to 1e-3 is typical of LoRA")
    try:
        return TrainingConfig(**settings)
    except ValueError as error:
        parser.error(str(error))
