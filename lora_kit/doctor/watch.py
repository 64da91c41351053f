"""Watch a run's first updates: what had a gradient, what moved, and what clipping did."""

import tempfile
from typing import TYPE_CHECKING, Any

from lora_kit.config import TrainingConfig, quiet_config
from lora_kit.doctor.findings import Check, Finding, Findings
from lora_kit.doctor.numbers import clipping

if TYPE_CHECKING:
    from torch.nn import Module
    from torch.optim import Optimizer

GRADIENTS = Check("gradients", see=("01_parameters.ipynb", "B = 0 changes nothing, at first"))
MOVEMENT = Check("movement", see=("02_optimizers.ipynb", "On a real LoRA"))
TRIAL = Check("trial", see=("05_train.ipynb", "When it goes wrong: a chart to diagnose by"))
TINY = 1e-3  # how near to max_grad_norm a clipped norm lies, relative to it


class Watch:
    """Looks at every step that an optimizer makes inside the `with`, of your loop or of this kit's, and then says what
    it saw: parameters that never had a gradient, weights that did not move, clipping that always or never bites.

    unet: the model, any torch module; left out, `begin` takes it later. max_grad_norm: what gradients are clipped to, if
    they are. A LoRA's A has a gradient from the second update with a rate above 0 on, since B starts at 0: watch four
    updates or more.

    >>> import torch
    >>> model = torch.nn.Linear(2, 1)
    >>> optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    >>> with Watch(model) as watch:
    ...     for _ in range(4):
    ...         model(torch.ones(1, 2)).sum().backward()
    ...         optimizer.step()
    >>> [(finding.check, finding.value) for finding in watch.findings()]
    [('gradients', '2 of 2 tensors'), ('movement', '2 of 2 tensors')]
    """

    def __init__(self, unet: "Module | None" = None, max_grad_norm: float | None = None) -> None:
        self.max_grad_norm = max_grad_norm
        self.norms: list[float] = []
        self.updates = 0
        self.parameters: dict[str, Any] = {}
        self.before: dict[str, Any] = {}
        self.pushed: set[str] = set()
        if unet is not None:
            self.begin(unet)

    def begin(self, unet: "Module") -> None:
        """Take the model's trainable weights as they are now for the start."""
        self.parameters = {name: parameter for name, parameter in unet.named_parameters() if parameter.requires_grad}
        self.before = {name: parameter.detach().clone() for name, parameter in self.parameters.items()}
        self.pushed = set()

    def __enter__(self) -> "Watch":
        from torch.optim.optimizer import register_optimizer_step_pre_hook

        self.handle = register_optimizer_step_pre_hook(self.look)
        return self

    def __exit__(self, *exception: object) -> None:
        self.handle.remove()

    def look(self, optimizer: "Optimizer", args: Any, kwargs: Any) -> None:
        """Take note of the gradients, just before an optimizer's step."""
        import torch

        gradients = {name: value.grad for name, value in self.parameters.items() if value.grad is not None}
        self.pushed |= {name for name, gradient in gradients.items() if bool((gradient != 0).any())}
        norms = [torch.linalg.vector_norm(gradient.float()) for gradient in gradients.values()]
        self.norms.append(float(torch.linalg.vector_norm(torch.stack(norms))) if norms else 0.0)
        self.updates += 1

    def findings(self) -> Findings:
        """`Findings` about the updates so far."""
        import torch

        if not self.updates:
            reason = "no optimizer has made a step inside the `with`"
            return Findings([MOVEMENT.error("0 updates", reason, "loss.backward(); optimizer.step()")])
        still = [name for name in self.parameters if name not in self.pushed]
        unmoved = [name for name, value in self.parameters.items() if torch.equal(value.detach(), self.before[name])]
        return Findings(
            [
                self._all(GRADIENTS, "had a gradient", still, "had no gradient", "is the part used? Is it cut off by gradient checkpointing or detach()?"),
                self._all(MOVEMENT, "moved", unmoved, "did not move", "is it in the optimizer's list? Is its rate above 0, and its dtype float32?"),
                *self._clipping(),
            ]
        )  # fmt: skip

    def _all(self, check: Check, good: str, bad_names: list[str], bad: str, cure: str) -> Finding:
        total, when = len(self.parameters), f"in {self.updates} updates"
        if not bad_names:
            return check.fine(f"{total} of {total} tensors", f"{good} {when}")
        return check.error(f"{len(bad_names)} of {total} tensors", f"{bad} {when}, for example {bad_names[0]}", cure)

    def _clipping(self) -> list[Finding]:
        limit = self.max_grad_norm
        if not limit:
            return []
        value = f"max_grad_norm {limit:g}, norms {min(self.norms):.3g} to {max(self.norms):.3g}"
        over = sum(norm > limit * (1 + TINY) for norm in self.norms)
        at = sum(abs(norm - limit) <= limit * TINY for norm in self.norms)
        if over:
            reason = f"{over} of {self.updates} updates had a larger norm: clipping does nothing"
            return [clipping.error(value, reason, "clip a list, not an iterator, before optimizer.step()")]
        if at == self.updates:
            reason = "every update was clipped: the size of the gradient has no say any more"
            return [clipping.warning(value, reason, "a larger max_grad_norm, or a look at the data")]
        return [clipping.fine(value, f"{at} of {self.updates} updates were clipped")]


def try_run(config: TrainingConfig, updates: int = 5) -> Findings:
    """Make a few updates of the real run, at its full rate and in a temporary folder, and say what they show.

    config: a `TrainingConfig`. updates: how many. In this process only. Returns `Findings`. Raises what `train` raises.
    """
    from lora_kit.training import train

    watch = Watch(max_grad_norm=config.max_grad_norm)
    with tempfile.TemporaryDirectory(prefix="lora_kit-") as folder:
        short = dict(
            output_dir=folder,
            max_train_steps=updates,
            lr_scheduler="constant",
            lr_warmup_steps=0,
            lr_num_cycles=1,
            lr_power=1.0,
            lr_step_rules=None,
            checkpointing_steps=updates + 1,
            resume_from_checkpoint=None,
            validation_prompt=None,
            report_to="none",
            push_to_hub=False,
        )
        with watch:
            train(quiet_config(vars(config) | short), progress=False, on_ready=watch.begin)
    return watch.findings()
