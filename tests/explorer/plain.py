"""A plain run to start tests from: 400 pictures in batches of 4, 12 times; and the texts of a page as a reader sees them."""

import html
import re

from lora_kit.explorer.page import Explorer
from lora_kit.explorer.session import Session
from lora_kit.explorer.state import State

PLAIN = dict(learning_rate=1e-3, lr_scheduler="cosine", train_batch_size=4, num_train_epochs=12)


def state(num_examples=400, num_processes=1, **settings):
    return State(PLAIN | settings, num_examples, num_processes)


def session(num_examples=400, num_processes=1, **settings):
    return Session(state(num_examples, num_processes, **settings))


def explorer(num_examples=400, num_processes=1, **settings):
    return Explorer(session(num_examples, num_processes, **settings))


def plain(text):
    """HTML as it is read."""
    return " ".join(html.unescape(re.sub("<[^>]*>", " ", text)).split())


def words(shown, part):
    """The text of a panel of a session, or of a part of a page, as a reader sees it."""
    return plain(shown.view()["panels"][part] if isinstance(shown, Session) else shown.parts[part].value)
