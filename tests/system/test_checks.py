import math
from pathlib import Path

import numpy as np
import pytest

from lora_kit.system.checks import (
    check_count,
    checked,
    did_you_mean,
    is_number,
    is_whole,
    nearest,
    shown,
    whole_number,
)


@pytest.mark.parametrize(
    ("word", "name"),
    [("to_qq", "to_q"), ("TO_Q", "to_q"), ("rnak", "Rank"), ("xyz", None), ("", None)],
)
def test_the_nearest_name(word, name):
    assert nearest(word, ("to_q", "to_k", "Rank")) == name
    assert nearest(word, iter(["to_q", "to_k", "Rank"])) == name
    assert did_you_mean(word, ("to_q", "to_k", "Rank"), "see --help") == (
        f"did you mean {name!r}?" if name else "see --help"
    )


def test_nothing_is_near_among_nothing():
    assert nearest("a", []) is None and did_you_mean("a", []) == ""


@pytest.mark.parametrize(
    ("value", "whole", "number"),
    [
        (4, True, True), (np.int64(4), True, True), (0, True, True), (-1, True, True), (10**400, True, False),
        (4.0, False, True), (np.float32(0.5), False, True), (math.nan, False, False), (math.inf, False, False),
        (-math.inf, False, False), (True, False, False), (False, False, False), ("4", False, False), (None, False, False),
        (1j, False, False), ([1], False, False),
    ],
)  # fmt: skip
def test_what_is_a_number(value, whole, number):
    assert (is_whole(value), is_number(value)) == (whole, number)


def test_whole_numbers():
    assert whole_number("rank", 1) == 1 and whole_number("rank", 0, 0) == 0 and whole_number("rank", 7, low=7) == 7
    assert type(whole_number("rank", np.int64(4))) is int


@pytest.mark.parametrize(
    ("value", "low", "words"),
    [(0, 1, "0"), (-1, 0, "-1"), (2.0, 1, "2.0"), (True, 1, "True"), ("4", 1, "'4'"), (None, 1, "None"), (6, 7, "6")],
)
def test_what_is_no_whole_number_is_named(value, low, words):
    with pytest.raises(ValueError) as caught:
        whole_number("rank", value, low)
    assert str(caught.value) == f"rank {words} is not a whole number of at least {low}"
    with pytest.raises(KeyError, match="rank"):
        whole_number("rank", value, low, KeyError)


def test_one_is_the_lowest_unless_said():
    with pytest.raises(ValueError, match="^rank 0 is not a whole number of at least 1$"):
        whole_number("rank", 0)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("a", "'a'"),
        ("x" * 198, repr("x" * 198)),  # 200 letters with its quotes
        ("x" * 199, "'" + "x" * 199 + "..."),
        (None, "None"),
    ],
)
def test_a_value_as_a_message_quotes_it(value, text):
    assert shown(value) == text


def test_a_number_too_long_to_be_written_is_measured():
    assert shown(10**5000) == "a number of about 5000 digits" and shown(-(10**4999)) == "a number of about 4999 digits"


@pytest.mark.parametrize(
    ("value", "kind", "same"),
    [
        (True, bool, True), (np.int64(3), int, 3), (3, float, 3.0), (0.5, float, 0.5), (["a", "b"], tuple, ("a", "b")),
        (("a",), tuple, ("a",)), ([], tuple, ()), ("a", str, "a"), (Path("a/b"), str, "a/b"),
    ],
)  # fmt: skip
def test_a_right_value_is_given_back_as_its_kind(value, kind, same):
    result = checked("name", value, kind)
    assert result == same and type(result) is kind


@pytest.mark.parametrize(
    ("value", "kind", "words"),
    [
        (1, bool, "1 is not True or False"),
        (3.0, int, "3.0 is not a whole number"),
        (True, int, "True is not a whole number"),
        (math.nan, float, "nan is not a finite number"),
        ("1", float, "'1' is not a finite number"),
        ("ab", tuple, "'ab' is not a list of names"),
        (["a", 1], tuple, "['a', 1] is not a list of names"),
        ("", str, "'' is not a text"),
        (1, str, "1 is not a text"),
        (None, int, "None: a value is needed"),
        ("x" * 300, int, "'" + "x" * 199 + "... is not a whole number"),
    ],
)
def test_a_wrong_value_is_named(value, kind, words):
    with pytest.raises(ValueError) as caught:
        checked("name", value, kind)
    assert str(caught.value) == f"name {words}"


def test_none_only_where_it_is_allowed():
    assert checked("name", None, int, optional=True, low=1) is None and checked("name", 3, int, optional=True) == 3


@pytest.mark.parametrize(
    ("bounds", "right", "wrong", "words"),
    [
        (dict(low=2), 2, 1, "1 must be at least 2"),
        (dict(above=2), 3, 2, "2 must be greater than 2"),
        (dict(below=2), 1, 2, "2 must be less than 2"),
        (dict(low=0, below=5), 4, 5, "5 must be less than 5"),
        (dict(low=0), 0, -1, "-1 must be at least 0"),
        (dict(above=0), 1, 0, "0 must be greater than 0"),
        (dict(below=0), -1, 0, "0 must be less than 0"),
    ],
)
def test_bounds(bounds, right, wrong, words):
    assert checked("name", right, int, **bounds) == right
    with pytest.raises(ValueError) as caught:
        checked("name", wrong, int, **bounds)
    assert str(caught.value) == f"name {words}"
    with pytest.raises(ValueError, match="must be at least 1e-06$"):
        checked("name", 0.0, float, low=1e-6)
    with pytest.raises(ValueError, match="must be at least 2$"):
        checked("name", 0.0, float, low=2.0)


def test_choices():
    assert checked("name", "fp16", str, choices=("no", "fp16")) == "fp16"
    with pytest.raises(ValueError) as caught:
        checked("name", "fp61", str, choices=("no", "fp16"))
    assert str(caught.value) == "name 'fp61' is unknown; did you mean 'fp16'? It must be one of no, fp16"
    with pytest.raises(ValueError) as caught:
        checked("name", "zzz", str, choices=("no", "fp16"))
    assert str(caught.value) == "name 'zzz' is unknown; It must be one of no, fp16"


@pytest.mark.parametrize(
    "check", [lambda value: whole_number("n", value), lambda value: checked("n", value, int), lambda value: check_count("n", value) or value]
)  # fmt: skip
def test_a_number_beyond_what_can_be_counted(check):
    assert check(9223372036854775807) == 9223372036854775807
    with pytest.raises(ValueError) as error:
        check(9223372036854775808)
    assert str(error.value) == "n 9223372036854775808 is more than can be counted: at most 9223372036854775807"


def test_below_what_can_be_counted_and_what_is_no_whole_number():
    assert check_count("n", -9223372036854775807) is None and check_count("n", 1e300) is None
    with pytest.raises(KeyError, match="n -9223372036854775808 is more"):
        check_count("n", -9223372036854775808, KeyError)
