import logging

from lora_kit.system.imports import quiet_imports


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
