import math

import pytest

from lora_kit.doctor.case import plan
from lora_kit.explorer.curves import (
    SAMPLES,
    compared,
    make_curve,
    position_of,
    rate_at,
    run_curve,
    sample_updates,
    trainer_curve,
)


def planned(num_examples=8, num_processes=1, **settings):
    base = dict(style="outlined", learning_rate=1e-3, train_batch_size=2, num_train_epochs=1, lr_scheduler="linear")
    return plan(base | settings, num_examples, num_processes)


def updates_of(cursor=None, **settings):
    plan = planned(**settings)
    return sample_updates(plan.config, plan.steps, cursor)


def test_every_element_of_a_curve():
    assert run_curve("as applied", "run", planned(num_examples=7)) == dict(
        label="as applied",
        kind="run",
        note="",
        updates=[0, 1, 2, 3],
        rates=[1e-3, 0.75e-3, 0.5e-3, 0.25e-3],
        passed=dict(updates=[0, 1, 2, 3], micro_steps=[0, 1, 2, 3], epochs=[0, 0.25, 0.5, 0.75], images=[0, 2, 4, 6]),
        ends=dict(updates=4, micro_steps=4, epochs=1, images=7),
    )


def test_two_processes_and_a_warm_up():
    curve = run_curve("a", "b", planned(num_processes=2, num_train_epochs=4, lr_warmup_steps=4))
    # 2 updates an epoch, 8 in all, of which 4 rise to the peak and 4 fall from it
    assert curve["rates"] == pytest.approx([0, 0.25e-3, 0.5e-3, 0.75e-3, 1e-3, 0.75e-3, 0.5e-3, 0.25e-3], abs=1e-18)
    assert curve["passed"]["images"] == [0, 4, 8, 12, 16, 20, 24, 28] and curve["ends"]["images"] == 32


def test_every_update_of_a_short_run_is_there():
    assert updates_of(max_train_steps=1) == [0]
    assert updates_of(max_train_steps=SAMPLES) == list(range(400))


def test_the_updates_of_a_long_run_are_evenly_spread():
    assert updates_of(max_train_steps=400 * 399 + 1) == [400 * index for index in range(400)]
    assert updates_of(max_train_steps=599)[:6] == [0, 1, 3, 4, 6, 7]  # 1.4987 updates from one to the next
    assert updates_of(max_train_steps=599)[-3:] == [595, 597, 598]


def test_whole_numbers_stay_exact_however_large():
    updates = updates_of(max_train_steps=2**62)
    assert len(updates) == 400 and updates[0] == 0 and updates[-1] == 2**62 - 1
    assert all(abs(update * 399 - index * (2**62 - 1)) <= 200 for index, update in enumerate(updates))


@pytest.mark.parametrize(
    ("settings", "corners"),
    [
        (dict(lr_warmup_steps=1237), {1236, 1237}),
        (dict(lr_scheduler="constant", lr_warmup_steps=1237), set()),  # has no warm-up
        (dict(lr_scheduler="piecewise_constant", lr_step_rules="1:101,0.1:202,0.01"), {100, 101, 201, 202}),
        (dict(lr_scheduler="linear", lr_step_rules="1:101,0.1:202,0.01"), set()),
        (dict(lr_scheduler="cosine_with_restarts", lr_num_cycles=3), {33333, 33334, 66666, 66667}),
        (dict(lr_scheduler="cosine_with_restarts", lr_num_cycles=3, lr_warmup_steps=1000),
         {999, 1000, 33999, 34000, 66999, 67000}),
        (dict(lr_scheduler="cosine", lr_num_cycles=3), set()),
        (dict(lr_scheduler="piecewise_constant", lr_step_rules="1:99999,0.1:100000,0.1:200000,1"), {99998, 99999}),
    ],
)  # fmt: skip
def test_corners_and_jumps_are_among_the_updates(settings, corners):
    even = {round(index * 99_999 / 399) for index in range(400)}
    assert set(updates_of(max_train_steps=100_000, **settings)) == even | corners


@pytest.mark.parametrize(("cycles", "count"), [(400, 399), (401, 0), (10**9, 0)])
def test_restarts_that_can_t_be_told_apart_are_no_corners(cycles, count):
    updates = updates_of(max_train_steps=10**7, lr_scheduler="cosine_with_restarts", lr_num_cycles=cycles)
    assert len([update for update in updates if update + 1 in updates]) == count


def test_the_cursor_is_among_the_updates_of_the_run():
    assert 54_321 in updates_of(54_321, max_train_steps=100_000)
    assert updates_of(4) == updates_of(-1) == [0, 1, 2, 3]
    assert updates_of(0, max_train_steps=100_000) == updates_of(None, max_train_steps=100_000)


@pytest.mark.parametrize(("rate", "word"), [(math.inf, "inf"), (math.nan, "nan"), (-math.inf, "-inf")])
def test_a_rate_that_is_no_number_is_refused(rate, word):
    with pytest.raises(ValueError, match=f"^the learning rate of update 1,234 would be {word}, which nothing"):
        make_curve("a", "b", planned(max_train_steps=2000).steps, [0, 1234], lambda updates: [1e300, rate])


def test_every_update_has_a_rate():
    with pytest.raises(ValueError, match="zip"):
        make_curve("a", "b", planned().steps, [0, 1], lambda updates: [1e-3])


def test_the_rate_at_a_place_is_that_of_the_update_under_way():
    curve = run_curve("a", "b", planned())
    assert [rate_at(curve, "images", place) for place in (-1, 0, 1.9, 2, 6, 7.9)] == [
        1e-3, 1e-3, 1e-3, 0.75e-3, 0.25e-3, 0.25e-3,
    ]  # fmt: skip
    assert rate_at(curve, "updates", 3) == 0.25e-3 and rate_at(curve, "epochs", 0.3) == 0.75e-3
    assert rate_at(curve, "images", 8) is None and rate_at(curve, "images", 9) is None
    assert rate_at(curve | dict(rates=[], passed=dict(images=[])), "images", 0) is None


def test_where_an_update_lies():
    curve = run_curve("a", "b", planned())
    assert [position_of(curve, "images", update) for update in (0, 1, 3, 4, 5, 500)] == [0, 2, 6, 8, 8, 8]
    assert position_of(curve, "epochs", 3) == 0.75
    sparse = dict(updates=[0, 10, 30], passed=dict(images=[0, 100, 500]), ends=dict(updates=40, images=800))
    assert [position_of(sparse, "images", update) for update in (5, 15, 29, 30, 35, 40)] == [
        50,
        200,
        480,
        500,
        650,
        800,
    ]


def test_other_rates_are_compared_in_words():
    here = dict(updates=[0, 1500, 1600, 1700], rates=[0.0, 1.23456e-3, 1.23456e-3, 5.4321e-4])
    other = dict(updates=[0, 1500, 1600, 1700], rates=[1e-3, 1e-3, 1.55555e-3, 7.77777e-4])
    assert compared(other, here) == (
        "In this run: at most 0.00156, first at update 1,600, and 0.000778 at the last; "
        "here at most 0.00123, first at update 1,500, and 0.000543 at the last."
    )


@pytest.mark.parametrize(
    ("rates", "same"),
    [
        ([0.0, 1e-3, 5e-4], True),
        ([0.9e-6, 1e-3, 5e-4], True),  # a thousandth of the peak
        ([1.1e-6, 1e-3, 5e-4], False),
        ([0.0, 1.0009e-3, 5e-4], True),
        ([0.0, 1.002e-3, 5e-4], False),
        ([0.0, 1e-3, 5.009e-4], True),
        ([0.0, 1e-3, 5.02e-4], False),
    ],
)
def test_which_rates_are_the_same(rates, same):
    here = dict(updates=[0, 1, 2], rates=[0.0, 1e-3, 5e-4])
    assert (compared(dict(updates=[0, 1, 2], rates=rates), here) == "In this run: the same rates as here.") == same


def test_a_thousandth_of_a_rate_far_above_the_peak_is_the_same():
    assert compared(dict(updates=[0], rates=[5.004]), dict(updates=[0], rates=[5.0])).endswith(
        "the same rates as here."
    )


def test_the_curve_of_another_trainer():
    run = planned(num_processes=2, num_train_epochs=2)  # 4 updates, 8 ticks
    curve = trainer_curve("forgets_processes", run.config, run.steps, run_curve("as applied", "run", run))
    assert (curve["kind"], curve["label"]) == ("forgets_processes", "a loop that forgets × num_processes")
    assert curve["rates"] == [1e-3, 0.5e-3, 0.0, 0.0]  # the whole curve in half of the run
    assert curve["note"].startswith(
        "In this run: at most 0.001, first at update 0, and 0 at the last; "
        "here at most 0.001, first at update 0, and 0.00025 at the last. The scheduler is told updates but ticks once"
    )
    assert curve["ends"] == dict(updates=4, micro_steps=4, epochs=2, images=16) and curve["updates"] == [0, 1, 2, 3]
    source = "https://github.com/huggingface/accelerate/blob/16cb6eb80dd9aa8b4df1a63ef57863e455d53b83/src/accelerate/scheduler.py#L54"
    assert curve["note"].endswith(f"diffusers#3954 and #8312, accelerate#2926. Source: {source}, read 2026-11-26.")


def test_a_schedule_that_a_trainer_lacks_has_no_points():
    run = planned(lr_scheduler="piecewise_constant", lr_step_rules="1:2,0.5")
    curve = trainer_curve("simpletuner", run.config, run.steps, run_curve("as applied", "run", run))
    assert curve["rates"] == curve["updates"] == curve["passed"]["images"] == []
    assert curve["note"].startswith("SimpleTuner has no lr_scheduler 'piecewise_constant'. cosine starts at the peak")
    assert (curve["kind"], curve["label"]) == ("simpletuner", "SimpleTuner") and curve["ends"]["updates"] == 4


def test_a_trainer_that_can_t_count_so_far_has_no_points():
    run = planned(lr_scheduler="cosine", learning_rate=1e302)
    curve = trainer_curve("simpletuner", run.config, run.steps, run_curve("as applied", "run", run))
    assert curve["rates"] == [] and curve["note"].count("Source: ") == 1


def test_the_warm_up_reaches_other_trainers_as_it_was_given():
    # this kit's constant ignores it, SimpleTuner's takes it
    run = planned(lr_scheduler="constant", lr_warmup_steps=2)
    curve = trainer_curve("simpletuner", run.config, run.steps, run_curve("as applied", "run", run))
    assert curve["rates"] == [0, 0.5e-3, 1e-3, 1e-3]
