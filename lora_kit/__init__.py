"""LoRA Kit: learn, check and run the training configuration of LoRA fine-tuning for diffusion models.

Importing this package is light. What needs torch or diffusers imports it when it is called, for a reason that the last
notebook shows: a kernel that has touched a device, or imported bitsandbytes, can't launch processes.
"""

from importlib import import_module

__version__ = "0.1.0"

_HOMES = {
    "command_line.flags": ("parse_args", "to_argv"),
    "config": ("ConfigWarning", "TrainingConfig"),
    "doctor": ("examine",),
    "explorer": ("explorer",),
    "explorer.atlas": ("atlas",),
    "system.kernel": ("LaunchError",),
    "optimizers": ("expected_state_bytes", "make_optimizer", "state_bytes"),
    "parameters": ("add_lora", "parameter_table", "trainable_parameters"),
    "schedules": ("Schedule", "applied_learning_rates"),
    "steps": ("Steps",),
    "data.emoji": ("emoji_captions", "held_out", "load_style"),
    "training": ("train",),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}
__all__ = sorted(_HOME)


def __getattr__(name):
    if name in _HOME:
        return getattr(import_module(f"lora_kit.{_HOME[name]}"), name)
    raise AttributeError(f"module 'lora_kit' has no attribute {name!r}")


def __dir__():
    return [*globals(), *__all__]
