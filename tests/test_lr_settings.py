import pytest

from lora_kit.lr_settings import LR_END, LR_SCHEDULERS, READ_BY, WARM_UP, check_warmup, parse_step_rules, problem_of

EXAMPLE = 'for example "1:100,0.1:200,0.01": 1 x up to update 100, 0.1 x up to update 200, then 0.01 x'


@pytest.mark.parametrize(
    ("rules", "parsed"),
    [
        ("1:100,0.1:200,0.01", ([(100, 1.0), (200, 0.1)], 0.01)),
        ("0:1,1", ([(1, 0.0)], 1.0)),
        ("0.5", ([], 0.5)),
        ("0", ([], 0.0)),
        (" 1 : 10 , 2 ", ([(10, 1.0)], 2.0)),
    ],
)
def test_step_rules(rules, parsed):
    assert parse_step_rules(rules) == parsed


@pytest.mark.parametrize(
    ("rules", "words"),
    [
        (None, f"lr_step_rules None: lr_scheduler 'piecewise_constant' needs them, {EXAMPLE}"),
        ("", f"lr_step_rules '' can't be read; {EXAMPLE}"),
        ("1:2", f"lr_step_rules '1:2' can't be read; {EXAMPLE}"),
        ("1:2:3,1", f"lr_step_rules '1:2:3,1' can't be read; {EXAMPLE}"),
        ("1:2.5,1", f"lr_step_rules '1:2.5,1' can't be read; {EXAMPLE}"),
        ("-1:2,1", f"lr_step_rules '-1:2,1': each factor must be a number of at least 0; {EXAMPLE}"),
        ("1:2,-1", f"lr_step_rules '1:2,-1': each factor must be a number of at least 0; {EXAMPLE}"),
        ("inf:2,1", f"lr_step_rules 'inf:2,1': each factor must be a number of at least 0; {EXAMPLE}"),
        ("1:2,nan", f"lr_step_rules '1:2,nan': each factor must be a number of at least 0; {EXAMPLE}"),
        ("1:0,1", f"lr_step_rules '1:0,1': boundaries [0] must rise from 1 on; {EXAMPLE}"),
        ("1:5,2:5,1", f"lr_step_rules '1:5,2:5,1': boundaries [5, 5] must rise from 1 on; {EXAMPLE}"),
        ("1:5,2:4,1", f"lr_step_rules '1:5,2:4,1': boundaries [5, 4] must rise from 1 on; {EXAMPLE}"),
    ],
)
def test_step_rules_that_are_none(rules, words):
    with pytest.raises(ValueError) as caught:
        parse_step_rules(rules)
    assert str(caught.value) == words


def test_a_warm_up_leaves_an_update_at_the_full_rate():
    for warmup, total in ((0, 1), (1, 2), (99, 100), (0, 0)):
        check_warmup(warmup, total)
    for warmup, total, tenth in ((100, 100, 10), (500, 305, 30), (1, 1, 0)):
        with pytest.raises(ValueError) as caught:
            check_warmup(warmup, total)
        assert str(caught.value) == (
            f"lr_warmup_steps {warmup} is not shorter than the {total} updates of the run, so the rate would never reach its "
            f"peak; about {tenth} (a tenth) is usual"
        )


def test_a_problem_in_words():
    assert problem_of(lambda: check_warmup(1, 2)) is None
    assert problem_of(lambda: parse_step_rules("x")) == f"lr_step_rules 'x' can't be read; {EXAMPLE}"
    with pytest.raises(ZeroDivisionError):
        problem_of(lambda: 1 / 0)


def test_which_schedules_there_are_and_what_they_read():
    assert LR_SCHEDULERS == (
        "constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "polynomial", "piecewise_constant",
    )  # fmt: skip
    assert LR_END == 1e-7
    assert WARM_UP == ("constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "polynomial")
    assert READ_BY == {
        "lr_warmup_steps": WARM_UP, "lr_num_cycles": ("cosine_with_restarts",), "lr_power": ("polynomial",),
        "lr_step_rules": ("piecewise_constant",),
    }  # fmt: skip
