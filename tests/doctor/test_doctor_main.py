"""The command line, as a process of its own."""

import json

import pytest
from running import run_command

import lora_kit.doctor.__main__
from lora_kit.doctor import ERROR
from lora_kit.doctor.__main__ import main
from lora_kit.output.finite import NotFinite


def test_command_line(tmp_path, capsys):
    flags = ["--style", "outlined", "--resolution", "64", "--learning_rate", "1e-3", "--output_dir", str(tmp_path)]
    done = run_command(
        ["-m", "lora_kit.doctor", *flags, "--max_train_steps=20", "--max_train_samples=16", "--try_updates=4"]
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 error(s)" in done.stdout and "✓ movement" in done.stdout and "Traceback" not in done.stderr
    assert main([*flags, "--lr_scheduler", "cosine", "--lr_warmup_steps", "0.1", "--ranks", "4", "--json"]) == 1
    said = capsys.readouterr().out
    assert [one["check"] for one in json.loads(said) if one["status"] == ERROR] == ["settings", "warm-up"]
    assert "did you mean --rank?" in said


FLAGS = ["--style", "outlined", "--learning_rate", "1e-3", "--max_train_steps", "100", "--num_examples", "400"]


@pytest.mark.parametrize(
    "words, check, said",
    [
        (["--num_procesess", "2"], "settings", "did you mean --num_processes?"),
        (["--num_example=5"], "settings", "did you mean --num_examples?"),
        (["--try_update", "5"], "settings", "did you mean --try_updates?"),
        (["--Rank", "8"], "settings", "did you mean --rank?"),
        (["--lr_scheduler", "cosine", "--lr_warmup_steps", "nan"], "warm-up", "lr_warmup_steps 10, a tenth, is usual"),
        (["--lr_scheduler", "cosine", "--lr_warmup_steps", "many"], "warm-up", "lr_warmup_steps 10, a tenth, is usual"),
        (["--lr_warmup_steps", "1e400"], "warm-up", "lr_warmup_steps 10, a tenth, is usual"),
        (["--rank", "9" * 5000], "settings", "says what each flag takes"),
        (["--learning_rate", "nan"], "settings", "says what each flag takes"),
    ],
    ids=str,
)
def test_what_is_wrong_in_the_words_is_a_finding(words, check, said, capsys):
    assert main([*FLAGS, *words, "--json"]) == 1
    errors = [record for record in json.loads(capsys.readouterr().out) if record["status"] == "error"]
    assert [(record["check"], said in record["cure"]) for record in errors] == [(check, True)]


def test_a_variable_that_no_library_can_be_imported_with_is_a_finding(monkeypatch, capsys):
    monkeypatch.setenv("ACCELERATE_LOG_LEVEL", "1")
    assert main([*FLAGS, "--json"]) == 1
    (error,) = json.loads(capsys.readouterr().out)
    assert (error["check"], error["status"]) == ("environment", ERROR)
    assert error["reason"].startswith("ACCELERATE_LOG_LEVEL '1' in the environment is no level: give DEBUG")


@pytest.mark.parametrize(
    "error",
    [NotFinite("the loss is nan"), OSError(28, "No space left"), RuntimeError("CUDA out of memory.\nTried to")],
    ids=lambda error: type(error).__name__,
)
def test_what_ends_the_tried_updates_is_a_finding(error, monkeypatch, capsys):
    def try_run(config, updates):
        raise error

    monkeypatch.setattr(lora_kit.doctor.__main__, "try_run", try_run)
    assert main([*FLAGS, "--resolution=64", "--output_dir=nowhere", "--try_updates=2"]) == 1
    said = capsys.readouterr().out
    assert f"✗ trial: try_updates 2. {' '.join(str(error).split())}\n" in said and "1 error(s)" in said


@pytest.mark.parametrize("value", ["0", "1.5", "many", "-3"])
def test_counts_that_are_none_end_it(value, capsys):
    with pytest.raises(SystemExit):
        main([*FLAGS, f"--num_processes={value}"])
    assert "is not a whole number of at least 1" in capsys.readouterr().err


def test_a_launcher_s_flag_is_no_setting(capsys):
    assert main([*FLAGS, "--local_rank", "0", "--json"]) == 0
