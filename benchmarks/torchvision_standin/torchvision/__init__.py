"""The part of torchvision that diffusers' LoRA script uses, for machines where torchvision does not fit their torch.

Never installed and never read by lora_kit: benchmarks/run_one.py puts this folder on the path where there is no torchvision.
"""

from . import transforms

__version__ = "0.0.0+standin"
__all__ = ["transforms"]
