"""A secret is nowhere to be read."""

import json
import pickle

import pytest

from lora_kit.command_line.flags import parse_args, to_argv
from lora_kit.command_line.texts import launch_lines
from lora_kit.config import TrainingConfig
from lora_kit.doctor import examine_settings
from lora_kit.doctor.__main__ import main
from lora_kit.explorer.state import State
from lora_kit.explorer.summary import summarize
from lora_kit.system.secret import Secret

TOKEN = "hf_thisIsVerySecret"
CONFIG = TrainingConfig(style="outlined", learning_rate=1e-3, hub_token=TOKEN, report_to="none")


def test_it_gives_itself_to_who_asks_alone():
    assert CONFIG.hub_token.reveal() == TOKEN and Secret(CONFIG.hub_token).reveal() == TOKEN
    assert CONFIG.hub_token == Secret(TOKEN) != Secret("other") and CONFIG.hub_token != TOKEN
    assert len({Secret(TOKEN), Secret(TOKEN)}) == 1
    assert pickle.loads(pickle.dumps(CONFIG)) == CONFIG
    assert parse_args(["--style=outlined", "--learning_rate=1e-3", f"--hub_token={TOKEN}"]).hub_token == Secret(TOKEN)


def test_nothing_that_is_written_holds_it():
    texts = [repr(CONFIG), str(CONFIG), f"{CONFIG.hub_token}", *to_argv(CONFIG), *launch_lines(CONFIG, 2).values()]
    texts.append(str(summarize(dict(style="outlined", learning_rate=1e-3, hub_token=TOKEN), 400)))
    assert not [text for text in texts if TOKEN in text]
    assert "hub_token='***'" in repr(CONFIG) and "***" in to_argv(CONFIG)
    with pytest.raises(TypeError):
        json.dumps(CONFIG.hub_token)


RUN = dict(style="outlined", learning_rate=1e-3)
FLAGS = [f"--{name}={value}" for name, value in RUN.items()]


@pytest.mark.parametrize(
    "settings",
    [dict(report_to="wandb", hub_token=TOKEN), dict(hub_token=TOKEN.encode()), dict(hub_tokn=TOKEN)],
    ids=["published", "bytes", "misspelt"],
)
def test_what_is_wrong_with_it_is_said_without_it(settings):
    findings = examine_settings(RUN | settings, 400)
    texts = [str(findings), findings._repr_html_(), json.dumps(findings.records())]
    texts.append("".join(summarize(RUN | settings, 400)["errors"]))
    with pytest.raises((TypeError, ValueError)) as error:
        TrainingConfig(**RUN | settings)
    assert all("hub_" in text and TOKEN not in text for text in [*texts, str(error.value)])


@pytest.mark.parametrize(
    "word", [f"--hub-token={TOKEN}", f"--hub_tokn={TOKEN}", f"--hub_tokn {TOKEN}", f"hub_token={TOKEN}"]
)
def test_a_word_that_is_no_flag_is_named_without_it(word, capsys):
    words = [*FLAGS, *word.split()]
    with pytest.raises(SystemExit):
        parse_args(words)
    texts = [capsys.readouterr().err]
    for kind in ([], ["--json"]):
        assert main([*words, "--num_examples=400", *kind]) == 1
        texts.append(capsys.readouterr().out)
    with pytest.raises(ValueError) as error:
        State({}).take(" ".join(["python -m lora_kit.training", *words]))
    assert all("hub" in text and TOKEN not in text for text in [*texts, str(error.value)])


@pytest.mark.parametrize("value", ["***", "", 5])
def test_what_is_none_is_refused(value):
    with pytest.raises(ValueError, match="hub_token") as error:
        TrainingConfig(style="outlined", learning_rate=1e-3, hub_token=value)
    assert "give the text itself, or leave it out" in str(error.value) or "is not a text" in str(error.value)
