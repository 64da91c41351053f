"""The range test: its run, and how its losses are read."""

import itertools
import math

import pytest
from parsed import words

from lora_kit.explorer.range_test import HIGHEST, LOWEST, UPDATES, in_words, range_html, range_settings, read_test
from lora_kit.explorer.trial_settings import trial_settings
from lora_kit.lr_settings import parse_step_rules

RATES = [1e-4, 1e-3, 1e-2, 1e-1]


def test_the_run_of_a_test():
    made, _ = trial_settings(
        range_settings(dict(rank=8, learning_rate=1e-4, lr_warmup_steps=7, scale_lr=True)), UPDATES
    )
    assert (made["rank"], made["learning_rate"], made["scale_lr"], made["max_train_steps"]) == (
        8,
        HIGHEST,
        False,
        UPDATES,
    )
    pairs, last = parse_step_rules(made["lr_step_rules"])
    assert [boundary for boundary, _ in pairs] == list(range(1, UPDATES)) and last == 1
    factors = [factor for _, factor in pairs] + [1]
    assert factors[0] * HIGHEST == pytest.approx(LOWEST)
    ratios = [after / before for before, after in itertools.pairwise(factors)]
    assert ratios == pytest.approx([ratios[0]] * len(ratios), rel=1e-4)


def run(*losses, state="done"):
    return dict(lr=RATES, fixed=list(enumerate(losses)), state=state)


@pytest.mark.parametrize(
    ("losses", "reading"),
    [
        ((1.0, 1.0, 0.9, 0.7, 3.0), (1e-3, 1e-2, 1e-1, 1e-3)), ((1.0, 1.0, 0.9, 0.7, math.nan), (1e-3, 1e-2, 1e-1, 1e-3)),
        ((1.0, 0.9, 0.8, 0.7, 0.6), (1e-4, 1e-1, None, 1e-2)), ((1.0, 0.999, 0.96, 1.2, 3.0), (None, None, None, None)),
        ((1.0, math.nan, math.nan, math.nan, math.nan), (None, None, None, None)), ((1.0,), (None, None, None, None)),
        ((), (None, None, None, None)),
    ],
)  # fmt: skip
def test_how_it_is_read(losses, reading):
    test = read_test(run(*losses))
    assert (test.falls, test.lowest, test.breaks, test.take) == reading
    assert len(test.points) == max(len(losses) - 1, 0)


def test_what_is_measured_before_its_rate_is_known_waits():
    assert read_test(dict(lr=[1e-4], fixed=[(0, 1.0), (1, 0.9), (2, 0.5)])).points == [(1e-4, 0.9)]


def test_in_words():
    done = read_test(run(1.0, 1.0, 0.9, 0.7, 3.0))
    assert in_words(done) == (
        "The loss falls from 0.001, is lowest at 0.01, breaks at 0.1; a tenth of the lowest is 0.001, which is a good start."
    )
    assert in_words(done, done=False) == "The loss falls from 0.001, is lowest at 0.01, breaks at 0.1."
    assert in_words(read_test(run(1.0, 1.0))) == "No rate of the test has taught anything."
    assert in_words(read_test(run(1.0, 1.0)), done=False) == "No rate has taught anything so far."


def test_the_picture():
    page = range_html({"range test": run(1.0, 1.0, 0.9, 0.7, 30.0)})
    assert "range test: 2" in words(page) and "the base model: 1" in words(page)  # cut at twice the base's
    assert "learning rate, in powers of ten above 1e-05" in words(page)
    assert range_html({"range test": run(1.0)}) == range_html({"range test": run()}) == ""
    assert "<svg" in range_html({"range test": run(1.0, math.nan, state="running")})
