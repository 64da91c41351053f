"""Where diffusers' text-to-image LoRA script and this kit differ: one object each, which the loop asks.

`config.behaviour` is `KIT`, or with match_diffusers `SCRIPT`. D1, D2, D4 and D7 are defects of the script, which the kit mends.
Source: diffusers, examples/text_to_image/train_text_to_image_lora.py.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

DEFECTS = (  # as --help and the README say them
    "D1: max_grad_norm does nothing, since clipping is handed an exhausted iterator",
    "D2: with bf16 the LoRA's own weights are bf16 too, in which most small updates round away",
    "D4: with a seed, every process draws the same noise and timesteps",
    "D7: a resumed epoch starts again from its first batch, and processes other than the first lose their random state",
)


@dataclass(frozen=True)
class Behaviour:
    """How a run behaves; each field is one difference."""

    defaults: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    """Settings whose defaults are others than the kit's."""
    clips_gradients: bool = True
    """Clipping is handed a list. False is D1."""
    keeps_lora_in_float32: bool = True
    """In every precision; else in fp16 alone, where the flag says so (D2)."""
    draws_from_seed: bool = True
    """What is random in a micro-step depends on the seed, the process and the micro-step alone, and a data set's on seed, epoch
    and index; else it comes from torch's and Python's global generators, one draw after the other (D4)."""
    skips_seen_batches: bool = True
    """A run that is resumed in the middle of an epoch goes on there. False is D7."""
    keeps_every_random_state: bool = True
    """A checkpoint holds the random state of every process; else of the first (D7)."""
    applies_new_settings: bool = True
    """A resumed run takes the optimizer's settings and the rate from its own configuration, not from the checkpoint."""
    refuses_bad_fit: bool = True
    """Refuse a warm-up as long as the run, and pictures and captions that can hardly be meant."""
    shows_pictures_as_seen: bool = True
    """Transparency is shown on white, grey of 16 bits keeps its levels; else PIL's `convert("RGB")` does as it does."""
    fuses_optimizer: bool = True
    """AdamW in one kernel, which rounds otherwise."""
    largest_encoding_batch: int | None = 8
    """Pictures encoded together at most; None: as many as the loop's batches have, the last included, to the bit as there."""
    logs_mean_loss: bool = True
    """The logged loss is a mean over micro-steps; else their sum divided by gradient_accumulation_steps."""
    stores_peft_keys: bool = True
    """The LoRA's file has peft's keys and the adapter's settings; else diffusers' older keys, lora.up and lora.down."""

    def float32_lora(self, mixed_precision: str | None) -> bool:
        """Whether the LoRA is kept in float32 under this setting of mixed_precision."""
        return self.keeps_lora_in_float32 or mixed_precision == "fp16"


KIT = Behaviour()
SCRIPT = Behaviour(
    defaults=MappingProxyType({"learning_rate": 1e-4, "lr_warmup_steps": 500}),
    clips_gradients=False,
    keeps_lora_in_float32=False,
    draws_from_seed=False,
    skips_seen_batches=False,
    keeps_every_random_state=False,
    applies_new_settings=False,
    refuses_bad_fit=False,
    shows_pictures_as_seen=False,
    fuses_optimizer=False,
    largest_encoding_batch=None,
    logs_mean_loss=False,
    stores_peft_keys=False,
)
