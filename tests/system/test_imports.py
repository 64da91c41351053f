import logging

import pytest
from running import run_command

from lora_kit.system.imports import OF_EVERY_RUN, import_early, needed_by, quiet_imports


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


@pytest.mark.parametrize(("num_processes", "gpus", "early"), [(1, 0, False), (2, 0, True), (2, 2, False)])
def test_what_a_run_needs_is_imported_before_a_fork_that_nothing_forbids(num_processes, gpus, early, monkeypatch):
    imported = []
    monkeypatch.setattr("lora_kit.system.imports.import_module", imported.append)
    monkeypatch.setattr("lora_kit.system.imports.available_devices", lambda: (gpus, "cuda" if gpus else "cpu"))
    import_early(num_processes)
    assert imported == (list(OF_EVERY_RUN) if early else [])


def test_a_run_s_processes_import_next_to_nothing():
    """But what the libraries import only when they are used."""
    code = (
        "import sys\n"
        "from lora_kit.system.imports import import_early\n"
        "import_early(2)\n"
        "before = set(sys.modules)\n"
        "from lora_kit.config import TrainingConfig\n"
        "from lora_kit.training import train\n"
        "import tempfile\n"
        "with tempfile.TemporaryDirectory() as folder:\n"
        "    train(TrainingConfig(style='outlined', resolution=64, train_batch_size=1, max_train_samples=1, max_train_steps=1,\n"
        "        learning_rate=1e-3, lr_warmup_steps=0, report_to='none', output_dir=folder), progress=False)\n"
        "print(len([name for name in sys.modules if name not in before and not name.startswith('lora_kit')]))\n"
    )
    done = run_command(["-c", code])
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[-1]) < 100  # of some 3,700
