"""A secret is nowhere to be read."""

import json
import pickle

import pytest

from lora_kit.command_line.flags import parse_args, to_argv
from lora_kit.command_line.texts import launch_lines
from lora_kit.config import TrainingConfig
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


@pytest.mark.parametrize("value", ["***", "", 5])
def test_what_is_none_is_refused(value):
    with pytest.raises(ValueError, match="hub_token") as error:
        TrainingConfig(style="outlined", learning_rate=1e-3, hub_token=value)
    assert "give the text itself, or leave it out" in str(error.value) or "is not a text" in str(error.value)
