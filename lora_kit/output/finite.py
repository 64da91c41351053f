"""A result is finite: a run whose loss or whose LoRA is no number any more ends there, and says why that may be."""

import math
from typing import Any

from lora_kit.config import USUAL_LEARNING_RATES, TrainingConfig

SKIPS = 20  # skipped updates in a row: the scale of fp16, 65,536 at first, is below 1 after 17


class NotFinite(ValueError):
    """The loss or the LoRA of a run has become NaN or infinite."""


class FiniteCheck:
    """Looks at each update and at what is to be kept; every process sees the same.

    lora: the trained parameters. first_update: of this start of the run. With `allow_nan` nothing is raised.
    """

    def __init__(self, config: TrainingConfig, lora: list[Any], precision: str, first_update: int) -> None:
        self.config, self.lora, self.precision, self.first_update = config, lora, precision, first_update
        self.skips, self.evidence = 0, []

    def update(self, update: int, loss: float, lr: float, grad_norm: Any, skipped: bool) -> None:
        """NotFinite where the loss of this update is no number, its gradients ruin the LoRA, or fp16 skips for ever."""
        norm = None if grad_norm is None else float(grad_norm)
        self.skips = self.skips + 1 if skipped else 0
        self.evidence = [f"rate {lr:.3g}", "gradients not clipped" if norm is None else f"gradient norm {norm:.3g}"]
        if not math.isfinite(loss):
            self.stop(update, f"the loss of update {update} is {loss}")
        elif self.skips >= SKIPS:
            self.stop(update, f"{SKIPS} updates in a row, up to update {update}, overflowed in fp16 and were skipped")
        elif norm is not None and not math.isfinite(norm) and not skipped:
            self.stop(update, f"the gradients of update {update} are not finite")

    def weights(self, update: int) -> bool:
        """Whether the LoRA after so many updates is finite; NotFinite where it must be and isn't."""
        import torch

        finite = bool(torch.stack([weight.detach().isfinite().all() for weight in self.lora]).all())
        if not finite:
            self.stop(update - 1, f"the LoRA holds NaN or infinity after update {update - 1}")
        return finite

    def stop(self, update: int, what: str) -> None:
        if not self.config.allow_nan:
            evidence = ", ".join([*self.evidence, f"mixed_precision {self.precision}"])
            raise NotFinite(f"{what} (counted from 0; {evidence}). {self.causes(update)}")

    def causes(self, update: int) -> str:
        """What is likely behind it, as far as the settings tell, and the way out."""
        config, causes = self.config, []
        if config.learning_rate > USUAL_LEARNING_RATES[1]:
            low, high = USUAL_LEARNING_RATES
            causes.append(f"learning_rate {config.learning_rate:g} is above the usual {low:g} to {high:g}")
        if not config.max_grad_norm:
            causes.append("max_grad_norm 0 leaves gradients unclipped")
        if self.precision == "fp16":
            causes.append("fp16 ends at 65,504: try mixed_precision bf16")
        if update == self.first_update:
            causes.append("it is the first update: the base model, or the checkpoint, may hold NaN or infinity")
        causes = causes or ["a lower learning_rate, or a longer warm-up, is the usual cure"]
        return (
            f"Likely: {'; '.join(causes)}. Checkpoints written before are kept: resume_from_checkpoint 'latest' with "
            "other settings continues from there; allow_nan keeps the run going regardless"
        )
