import logging

import pytest

from lora_kit.system.imports import needed_by, quiet_imports


def test_quiet_imports_silences_three_sentences_only():
    for name, words in (
        ("transformers.utils.import_utils", "`X` requires torchvision (not installed); falling back"),
        ("bitsandbytes.backends.cpu.ops", "Failed to load CPU gemm_4bit_forward from %s"),
        (
            "diffusers.loaders.lora_base",
            "No LoRA keys associated to CLIPTextModel found with the prefix='text_encoder'.",
        ),
    ):
        quiet_imports()
        logger, seen = logging.getLogger(name), []
        filters = list(logger.filters)
        quiet_imports()
        assert logger.filters == filters
        handler = logging.Handler()
        handler.emit = lambda record, seen=seen: seen.append(record.getMessage())
        logger.addHandler(handler)
        try:
            logger.warning(words.replace("%s", "there"))
            logger.warning("something else")
        finally:
            logger.removeHandler(handler)
        assert seen == ["something else"]


def test_a_package_that_was_built_for_another_machine_is_named_with_a_cure(monkeypatch):
    def import_module(name):
        raise RuntimeError("CUDA Setup failed")

    monkeypatch.setattr("lora_kit.system.imports.import_module", import_module)
    words = r"use_8bit_adam: bitsandbytes can't be imported \(RuntimeError CUDA Setup failed\); `pip install bitsandbytes`, or"
    with pytest.raises(ValueError, match=words):
        needed_by("use_8bit_adam")
