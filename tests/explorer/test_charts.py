import itertools
import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as some
from parsed import attributes, elements, lines, table, texts, words

from lora_kit.explorer.charts import html_heat_map, shown_curves, svg_learning_rates, svg_lines, svg_memory
from lora_kit.explorer.summary import summarize
from lora_kit.memory import memory
from lora_kit.system.looks import COLOURS
from lora_kit.trainers.known import TRAINERS

BLUE, VERMILION, GREEN, PURPLE, OLIVE, VIOLET, GREY = COLOURS[:7]


def curve(label, rates, kind="run", images=8):
    """A curve of one update after the other: 2 micro-steps and so many images each, 2 updates an epoch."""
    updates, total = list(range(len(rates))), len(rates)
    places = dict(
        updates=updates,
        micro_steps=[2 * update for update in updates],
        epochs=[update / 2 for update in updates],
        images=[images * update for update in updates],
    )
    ends = dict(updates=total, micro_steps=2 * total, epochs=total / 2, images=images * total)
    return dict(label=label, kind=kind, note="", updates=updates, rates=rates, passed=places, ends=ends)


def summary(*others, rates=(0.0, 1e-3, 5e-4, 0.0), warmup=1):
    curves = [curve("as applied", list(rates)), *others]
    return dict(curves=curves, warmup=warmup, updates_per_epoch=2, peak=1e-3)


def test_every_element_of_a_picture():
    # 4 updates over 464 pixels: 116 each; the frame is 1.5e-3 high, and the peak lies at 230 - 200 / 1.5
    assert elements(svg_learning_rates(summary(), cursor=2)) == [
        (
            "svg",
            {
                "ns": "http://www.w3.org/2000/svg", "viewBox": "0 0 576 311", "width": "576", "height": "311",
                "style": "max-width: 100%; height: auto", "role": "img",
                "font-family": "DejaVu Sans, Verdana, sans-serif", "font-size": "12", "fill": "currentColor",
                "aria-label": "Learning rate as applied: as applied: 4 updates; the rate is 0 at update 0, at most 0.001, "
                "0 at the last. Warm-up: 1 updates.",
            },
            "",
        ),
        ("title", {}, "Learning rate as applied"),
        ("desc", {}, "as applied: 4 updates; the rate is 0 at update 0, at most 0.001, 0 at the last. Warm-up: 1 updates."),
        ("rect", {"x": "86", "y": "30", "width": "116.0", "height": "200", "fill": "#E69F00", "fill-opacity": "0.25"}, ""),
        ("text", {"x": "86", "y": "20"}, "warm-up, 1 updates"),
        ("path", {"d": "M318.0 30V230", "stroke": "currentColor", "stroke-opacity": "0.35", "stroke-dasharray": "1 3"}, ""),
        ("text", {"x": "550", "y": "20", "text-anchor": "end"}, "dotted: epochs"),
        ("path", {"d": "M86 230.0H550", "stroke": "currentColor", "stroke-opacity": "0.2"}, ""),
        ("text", {"x": "78", "y": "234.0", "text-anchor": "end"}, "0"),
        ("path", {"d": "M86 163.3H550", "stroke": "currentColor", "stroke-opacity": "0.2"}, ""),
        ("text", {"x": "78", "y": "167.3", "text-anchor": "end"}, "0.0005"),
        ("path", {"d": "M86 96.7H550", "stroke": "currentColor", "stroke-opacity": "0.2"}, ""),
        ("text", {"x": "78", "y": "100.7", "text-anchor": "end"}, "0.001"),
        ("path", {"d": "M86 30.0H550", "stroke": "currentColor", "stroke-opacity": "0.2"}, ""),
        ("text", {"x": "78", "y": "34.0", "text-anchor": "end"}, "0.0015"),
        (
            "polyline",
            {
                "points": "86.0,230.0 202.0,96.7 318.0,163.3 434.0,230.0", "fill": "none", "stroke": "#0072B2",
                "stroke-width": "2.5", "stroke-linejoin": "round",
            },
            "",
        ),
        ("circle", {"cx": "86.0", "cy": "230.0", "r": "3", "fill": "#0072B2"}, ""),
        ("circle", {"cx": "202.0", "cy": "96.7", "r": "3", "fill": "#0072B2"}, ""),
        ("circle", {"cx": "318.0", "cy": "163.3", "r": "3", "fill": "#0072B2"}, ""),
        ("circle", {"cx": "434.0", "cy": "230.0", "r": "3", "fill": "#0072B2"}, ""),
        (
                "path",
                {
                    "data-from": "86.0", "data-to": "550.0", "data-updates": "4", "d": "M318.0 30V230", "stroke": "currentColor",
                    "stroke-width": "1.5",
                },
                "",
            ),
        ("text", {"x": "86", "y": "285"}, "read at update 2"),
        *(
            element
            for x, number in (("86.0", "0"), ("202.0", "1"), ("318.0", "2"), ("434.0", "3"), ("550.0", "4"))
            for element in (
                ("path", {"d": f"M{x} 230v5", "stroke": "currentColor"}, ""),
                ("text", {"x": x, "y": "249", "text-anchor": "middle"}, number),
            )
        ),
        ("path", {"d": "M86 30V230H550", "fill": "none", "stroke": "currentColor"}, ""),
        ("text", {"x": "318.0", "y": "268", "text-anchor": "middle"}, "optimizer updates (0 is the first)"),
        ("text", {"transform": "translate(13 130.0) rotate(-90)", "text-anchor": "middle"}, "learning rate"),
        ("path", {"d": "M86 298h34", "stroke": "#0072B2", "stroke-width": "2.5", "stroke-dasharray": "none"}, ""),
        ("text", {"x": "128", "y": "302"}, "0.0005: as applied"),
    ]  # fmt: skip


def test_a_picture_is_small():
    made = summarize(dict(style="outlined", learning_rate=1e-3, lr_scheduler="cosine"), 400)
    assert len(svg_learning_rates(made)) < 4500  # it was 12,014 with its 48 unseen strips


@pytest.mark.parametrize(
    ("axis", "words", "marks", "epochs"),
    [
        ("updates", "optimizer updates (0 is the first)", ["0", "1", "2", "3", "4"], "M318.0 30V230"),
        ("micro_steps", "micro-steps of each process", ["0", "2", "4", "6", "8"], "M318.0 30V230"),
        ("epochs", "epochs", ["0", "0.5", "1", "1.5", "2"], "M318.0 30V230"),
        ("images", "images seen, by all processes", ["0", "10", "20", "30"], "M318.0 30V230"),
    ],
)
def test_every_axis(axis, words, marks, epochs):
    svg = svg_learning_rates(summary(), axis)
    assert lines(svg)[BLUE] == [(86, 230), (202, 96.7), (318, 163.3), (434, 230)]  # equal parts, whatever is counted
    found = texts(svg)
    assert found[: found.index(words)][-len(marks) :] == marks
    assert attributes(svg, "path", "d")[0] == epochs
    assert attributes(svg, "rect", "width") == ["116.0"]  # the warm-up ends where update 1 begins
    assert found[-1] == "as applied" and "read at" not in svg


def test_a_run_that_ends_within_an_epoch():
    short = summary(rates=(1e-3,) * 5, warmup=0)  # two epochs and a half
    assert attributes(svg_learning_rates(short), "path", "d")[0] == "M271.6 30V230M457.2 30V230"  # after 2 and 4 of 5
    assert attributes(svg_learning_rates(short, "images"), "path", "d")[0] == "M271.6 30V230M457.2 30V230"


def test_an_epoch_whose_last_update_is_a_short_one():
    # 10 batches by 4 micro-steps: 3 updates an epoch, the last of 2 micro-steps; the second epoch ends with its first update
    chosen = dict(
        style="outlined", learning_rate=1e-3, train_batch_size=1, gradient_accumulation_steps=4, max_train_steps=4
    )
    made = summarize(chosen, 10)
    assert made["curves"][0]["ends"]["epochs"] == 1.4
    made["curves"] = made["curves"][:1]
    assert attributes(svg_learning_rates(made), "path", "d")[0] == "M434.0 30V230"  # after 3 of 4 updates
    assert attributes(svg_learning_rates(made, "images"), "path", "d")[0] == "M417.4 30V230"  # after 10 of 14 images


def test_numbers_are_short():
    rates = (1.23456e-4, 9.87654e-4, 5.55555e-4, 2 / 3 * 1e-3, 1e-4, 1e-4, 1e-4)
    svg = svg_learning_rates(summary(rates=rates), cursor=3)
    assert texts(svg, "desc") == [
        "as applied: 7 updates; the rate is 0.000123 at update 0, at most 0.000988, 0.0001 at the last. Warm-up: 1 updates."
    ]
    assert texts(svg_learning_rates(summary(rates=rates[:4])), "desc")[0].endswith(
        ", 0.000667 at the last. Warm-up: 1 updates."
    )
    assert attributes(svg, "rect", "width") == ["66.3"] and texts(svg)[-1] == "0.0006667: as applied"
    widths = attributes(svg_memory(dict(base=1, lora=100, gradients=100, adam_32=100, adam_8=70)), "rect", "x", "width")
    assert widths[:6] == [
        ("120.0", "120.0"), ("240.0", "120.0"), ("360.0", "120.0"), ("120.0", "120.0"), ("240.0", "120.0"), ("360.0", "84.0"),
    ]  # fmt: skip
    memory = dict(base=1, lora=100, gradients=100, adam_32=500, adam_8=70)
    bars = svg_memory(memory)
    assert attributes(bars, "rect", "x", "width")[:3] == [("120.0", "51.4"), ("171.4", "51.4"), ("222.9", "257.1")]
    assert [place for place in attributes(bars, "text", "x") if "." in place] == ["486.0", "264.9"]
    grid = table(html_heat_map([2.0], [0.1 + 0.2], {}, "a", "b", "c"))
    assert grid == [["a ↓ b →", "0.3"], ["2", "…"]]


def test_curves_of_other_lengths_share_the_axis():
    expected = curve("one process", [1e-3] * 8, "expected", images=4)
    svg = svg_learning_rates(summary(expected, warmup=0))
    assert [x for x, _ in lines(svg)[BLUE]] == [86, 144, 202, 260]
    assert [x for x, _ in lines(svg)[VERMILION]] == [86, 144, 202, 260, 318, 376, 434, 492]
    assert attributes(svg, "path", "d")[0] == "M202.0 30V230"
    over_images = svg_learning_rates(summary(expected, warmup=0), "images")
    assert [x for x, _ in lines(over_images)[BLUE]] == [86, 202, 318, 434]
    assert [*lines(svg)] == [VERMILION, BLUE]  # the run is drawn last, so that it lies on top
    assert texts(svg)[-2:] == ["as applied", "one process"]
    assert texts(svg, "desc") == [
        "as applied: 4 updates; the rate is 0 at update 0, at most 0.001, 0 at the last; "
        "one process: 8 updates; the rate is 0.001 at update 0, at most 0.001, 0.001 at the last. No warm-up."
    ]


def test_the_highest_curve_sets_the_height():
    higher = curve("A", [2e-3, 2e-3])
    svg = svg_learning_rates(summary(), pinned=[("A", higher)])
    assert lines(svg)[GREEN] == [(86, 96.7), (202, 96.7)] and lines(svg)[BLUE][1] == (202, 163.3)


def test_a_rate_that_is_turned_moves_the_curve():
    """From one notch of its slider to the next, but where the frame becomes another."""
    peaks = [10 ** (-3 + 0.05 * notch) for notch in range(21)]
    heights = [lines(svg_learning_rates(summary(rates=(0.0, peak))))[BLUE][1][1] for peak in peaks]
    higher = sum(after < before for before, after in itertools.pairwise(heights))
    assert len(set(heights)) > 10 and higher >= 12 and all(30 < height < 110 for height in heights)


def test_a_run_whose_rate_is_0_throughout_has_the_height_of_its_peak():
    svg = svg_learning_rates(summary(rates=(0.0, 0.0), warmup=0))
    assert lines(svg)[BLUE] == [(86, 230), (318, 230)] and "0.001" in texts(svg)


def test_logarithmic_rates_are_three_powers_of_ten_deep():
    svg = svg_learning_rates(summary(rates=(1.0, 0.1, 0.01, 0.0)), log=True)
    # the frame ends at 1.5, and log10(1.5) is 0.176: the peak lies at 230 - 200 x (3 - 0.176) / 3
    assert [y for _, y in lines(svg)[BLUE]] == [41.7, 108.4, 175.1, 230.0]
    assert texts(svg)[2:5] == ["0.01", "0.1", "1"]


def test_a_warm_up_beyond_the_end_is_shaded_to_it_only():
    svg = svg_learning_rates(summary(warmup=5000))
    assert attributes(svg, "rect", "x", "width") == [("86", "464.0")]
    assert "warm-up, 5,000 updates" in texts(svg) and "Warm-up: 5000 updates." in texts(svg, "desc")[0]


def test_no_warm_up_no_shade():
    svg = svg_learning_rates(summary(warmup=0))
    assert attributes(svg, "rect", "x") == [] and texts(svg, "desc")[0].endswith(". No warm-up.")


@pytest.mark.parametrize(("updates", "marks"), [(2, None), (3, 1), (120, 59), (121, None)])
def test_epochs_are_marked_from_the_second_on_while_they_are_60_at_most(updates, marks):
    svg = svg_learning_rates(summary(rates=(1e-3,) * updates))
    found = [place for place, dashes in attributes(svg, "path", "d", "stroke-dasharray") if dashes == "1 3"]
    assert [place.count("M") for place in found] == ([marks] if marks else [])
    assert ("dotted: epochs" in texts(svg)) == bool(marks)


def test_the_cursor_reads_every_curve():
    others = curve("one process", [2e-3] * 8, "expected", images=4), curve("kohya", [3e-3] * 4, "kohya")
    svg = svg_learning_rates(summary(*others), "images", cursor=3, pinned=[("A", curve("A", [7e-4]))])
    assert ("M434.0 30V230", "1.5") in attributes(svg, "path", "d", "stroke-width")
    # the run ends at a half of an axis on which others go on: there one who drags the line finds its last update
    spans = attributes(svg, "path", "data-from", "data-to", "data-updates")
    assert [span for span in spans if span[0]] == [("86.0", "550.0", "4")]
    assert texts(svg)[-4:] == ["0: as applied", "0.002: one process", "ended: A", "0.003: kohya"]
    assert "read at update 3" in texts(svg)


def test_thousands_of_updates_are_read_with_their_commas():
    made = summarize(dict(style="outlined", learning_rate=1e-3, max_train_steps=100_000), 400, cursor=54_321)
    assert "read at update 54,321" in texts(svg_learning_rates(made, cursor=54_321))


def test_which_curves_are_shown_in_which_look():
    expected = curve("one process", [1e-3] * 8, "expected")
    nowhere = curve("no such schedule", [], "onetrainer")
    first, second = curve("kohya", [1e-3], "kohya"), curve("SimpleTuner", [1e-3], "simpletuner")
    made = summary(first, expected, nowhere, second)["curves"]
    pinned = [("A", curve("x", [1e-3])), ("B", curve("y", [1e-3]))]
    assert [(label, look) for label, _, look in shown_curves(made, "updates", pinned)] == [
        ("as applied", 0), ("one process", 1), ("A", 2), ("B", 3), ("kohya", 5), ("SimpleTuner", 6),
    ]  # fmt: skip
    assert [look for _, _, look in shown_curves(made[:2], "updates")] == [0, 5]  # the same look without the others
    assert shown_curves(made, "updates", pinned)[2][1] is pinned[0][1]
    assert len(COLOURS) == 5 + len(TRAINERS)  # the run, what was expected, three pinned ones, and each trainer its own


def test_what_was_expected_is_left_out_where_it_is_the_same():
    expected = curve("one process", [0.0, 1e-3, 5e-4, 0.0], "expected", images=4)
    curves = summary(expected)["curves"]
    assert [label for label, _, _ in shown_curves(curves, "updates")] == ["as applied"]
    assert [label for label, _, _ in shown_curves(curves, "images")] == ["as applied", "one process"]
    other = curve("one process", [0.0, 1e-3, 5e-4, 1e-9], "expected")
    assert len(shown_curves(summary(other)["curves"], "updates")) == 2


def test_without_curves_there_is_no_picture():
    assert svg_learning_rates(dict(curves=[])) == ""


@pytest.mark.parametrize(
    ("rate", "height", "log_height"),
    [
        (5e-324, 230, 230), (1e-310, 230, 230),  # below the lowest frame there is, of 1e-300
        (1e-6, 96.7, 41.7), (1e300, 96.7, 41.7), (1.79e308, 30.9, 30.1),
    ],
)  # fmt: skip
def test_the_smallest_and_the_largest_rates_can_be_drawn(rate, height, log_height):
    for log, wanted in ((False, height), (True, log_height)):
        assert lines(svg_learning_rates(summary(rates=(0.0, rate)), log=log))[BLUE] == [(86, 230), (318, wanted)]


def test_names_of_the_axis_stand_clear_of_its_numbers():
    for rate in (1.25e-4, 2.5e-5, 3e-3, 1.3e-5):
        svg = svg_learning_rates(summary(rates=(rate, 0.0), warmup=0))
        numbers = [found for found in zip(texts(svg), attributes(svg, "text", "text-anchor", "x"), strict=True)]
        widest = (
            max(len(words) for words, place in numbers if place == ("end", "78")) * 7.3
        )  # 12 pixels: 7.6 a digit, 3.8 a point
        assert 78 - widest > 16


KEPT = dict(base=3_440_000_000, lora=1_000_000, gradients=1_000_000, adam_32=2_000_000, adam_8=500_000)


@pytest.mark.parametrize("use_8bit_adam", [False, True])
def test_every_element_of_the_bars(use_8bit_adam):
    # 4 MB over 360 pixels: 90 each MB; from 120 on, 34 behind the frame's edge
    bold_32, bold_8 = ({}, {"font-weight": "bold"}) if use_8bit_adam else ({"font-weight": "bold"}, {})

    def bar(x, y, width, look, opacity, words):
        colour = COLOURS[look]
        place = {"x": x, "y": y, "width": width, "height": "22"}
        return [
            ("rect", place | {"fill": colour, "fill-opacity": opacity, "stroke": colour, "stroke-width": "1.5"}, ""),
            ("title", {}, words),
        ]

    def key(x, look, opacity, words):
        place = {"x": x, "y": "106", "width": "12", "height": "12"}
        return [
            ("rect", place | {"fill": COLOURS[look], "fill-opacity": opacity, "stroke": COLOURS[look]}, ""),
            ("text", {"x": str(int(x) + 17), "y": "117"}, words),
        ]

    words = "LoRA 1 MB, gradients 1 MB, Adam's state 2 MB in 32 bits and 0.5 MB in 8"
    found = elements(svg_memory(KEPT, use_8bit_adam))
    assert found[0][1]["aria-label"] == f"Memory: {words}" and found[0][1]["viewBox"] == "0 0 576 132"
    assert found[1:] == [
        ("title", {}, "Memory"),
        ("desc", {}, words),
        ("text", {"x": "120", "y": "18"}, "what the LoRA adds to 3.44 GB of frozen UNet"),
        *bar("120.0", "30", "90.0", 0, "0.55", "LoRA: 1 MB"),
        *bar("210.0", "30", "90.0", 2, "0.35", "gradients: 1 MB"),
        *bar("300.0", "30", "180.0", 3, "0.55", "Adam's state: 2 MB"),
        ("text", {"x": "114", "y": "45", "text-anchor": "end"} | bold_32, "32-bit Adam" if use_8bit_adam else "▸ 32-bit Adam"),
        ("text", {"x": "486.0", "y": "45"} | bold_32, "4 MB"),
        *bar("120.0", "66", "90.0", 0, "0.55", "LoRA: 1 MB"),
        *bar("210.0", "66", "90.0", 2, "0.35", "gradients: 1 MB"),
        *bar("300.0", "66", "45.0", 3, "0.55", "Adam's state: 0.5 MB"),
        ("text", {"x": "114", "y": "81", "text-anchor": "end"} | bold_8, "▸ 8-bit Adam" if use_8bit_adam else "8-bit Adam"),
        ("text", {"x": "351.0", "y": "81"} | bold_8, "2.5 MB"),
        *key("120", 0, "0.55", "LoRA 1 MB"),
        *key("232", 2, "0.35", "gradients 1 MB"),  # 9 letters on: 40 + 8 x 9
        *key("384", 3, "0.55", "Adam's state"),  # 14 letters on
    ]  # fmt: skip


def test_bars_of_a_tiny_lora_whose_8_bit_state_is_the_larger():
    # the maps that 8-bit tensors share may be more than what 8 bits save
    widths = attributes(svg_memory(dict(base=1, lora=100, gradients=100, adam_32=200, adam_8=600)), "rect", "width")
    assert widths[:6] == ["45.0", "45.0", "90.0", "45.0", "45.0", "270.0"]


def test_bars_of_a_known_model():
    kept = memory("stable-diffusion-v1-5/stable-diffusion-v1-5", 16)
    assert "what the LoRA adds to 3.44 GB of frozen UNet" in texts(svg_memory(kept))
    assert texts(svg_memory(kept), "desc") == [
        "LoRA 12.8 MB, gradients 12.8 MB, Adam's state 25.5 MB in 32 bits and 6.48 MB in 8"
    ]
    assert svg_memory(None) == "" and "▸ 32-bit Adam" in texts(svg_memory(kept))


def test_every_element_of_lines():
    svg = svg_lines([("a", [(0, 1.0), (10, 2.0)]), ("b <", [(5, 1.5)])], "loss <", "updates", 10)
    # 5% of room above and below: from 0.95 to 2.05, over 150 pixels
    assert elements(svg)[3:] == [
        ("text", {"x": "86", "y": "18"}, "loss <"),
        ("path", {"d": "M86 173.2H550", "stroke": "currentColor", "stroke-opacity": "0.2"}, ""),
        ("text", {"x": "78", "y": "177.2", "text-anchor": "end"}, "1"),
        ("path", {"d": "M86 105.0H550", "stroke": "currentColor", "stroke-opacity": "0.2"}, ""),
        ("text", {"x": "78", "y": "109.0", "text-anchor": "end"}, "1.5"),
        ("path", {"d": "M86 36.8H550", "stroke": "currentColor", "stroke-opacity": "0.2"}, ""),
        ("text", {"x": "78", "y": "40.8", "text-anchor": "end"}, "2"),
        (
            "polyline",
            {
                "points": "318.0,105.0", "fill": "none", "stroke": "#D55E00", "stroke-width": "2",
                "stroke-linejoin": "round", "stroke-dasharray": "7 4",
            },
            "",
        ),
        ("circle", {"cx": "318.0", "cy": "105.0", "r": "3", "fill": "#D55E00"}, ""),
        (
            "polyline",
            {
                "points": "86.0,173.2 550.0,36.8", "fill": "none", "stroke": "#0072B2", "stroke-width": "2",
                "stroke-linejoin": "round",
            },
            "",
        ),
        ("circle", {"cx": "86.0", "cy": "173.2", "r": "3", "fill": "#0072B2"}, ""),
        ("circle", {"cx": "550.0", "cy": "36.8", "r": "3", "fill": "#0072B2"}, ""),
        *(
            element
            for x, number in (
                ("86.0", "0"), ("178.8", "2"), ("271.6", "4"), ("364.4", "6"), ("457.2", "8"), ("550.0", "10")
            )
            for element in (
                ("path", {"d": f"M{x} 180v5", "stroke": "currentColor"}, ""),
                ("text", {"x": x, "y": "199", "text-anchor": "middle"}, number),
            )
        ),
        ("path", {"d": "M86 30V180H550", "fill": "none", "stroke": "currentColor"}, ""),
        ("text", {"x": "318.0", "y": "218", "text-anchor": "middle"}, "updates"),
        ("text", {"transform": "translate(13 105.0) rotate(-90)", "text-anchor": "middle"}, ""),
        ("path", {"d": "M86 238h34", "stroke": "#0072B2", "stroke-width": "2.5", "stroke-dasharray": "none"}, ""),
        ("text", {"x": "128", "y": "242"}, "a: 2"),
        ("path", {"d": "M86 255h34", "stroke": "#D55E00", "stroke-width": "2.5", "stroke-dasharray": "7 4"}, ""),
        ("text", {"x": "128", "y": "259"}, "b <: 1.5"),
    ]  # fmt: skip
    assert elements(svg)[0][1]["aria-label"] == "loss <: a: 2; b <: 1.5" and elements(svg)[0][1]["height"] == "268"


def test_lines_from_zero():
    svg = svg_lines([("a", [(0, 1.0), (10, 2.0)])], "loss", "x", 10, from_zero=True)
    assert lines(svg)[BLUE] == [(86, 108.6), (550, 37.1)]  # of 2.1: 180 - 150 / 2.1
    assert texts(svg)[1:6] == ["0", "0.5", "1", "1.5", "2"]
    assert lines(svg_lines([("a", [(0, -1.0)])], "loss", "x", 1, from_zero=True))[BLUE] == [(86, 180)]


def test_lines_all_at_one_height():
    assert lines(svg_lines([("a", [(0, 4.0), (1, 4.0)])], "loss", "x", 1))[BLUE] == [(86, 105), (550, 105)]
    assert texts(svg_lines([("a", [(0, 4.0)])], "loss", "x", 1))[1:6] == ["3.8", "3.9", "4", "4.1", "4.2"]
    assert texts(svg_lines([("a", [(0, 0.0)])], "loss", "x", 1))[1:4] == ["-0.04", "-0.02", "0"]
    assert texts(svg_lines([("a", [(0, -4.0)])], "loss", "x", 1))[1:3] == ["-4.2", "-4.1"]


def test_what_is_no_number_is_left_out_and_a_curve_keeps_its_look():
    points = [(0, None), (5, math.nan), (6, math.inf), (7, -math.inf), (8, 1e300), (10, 1.0)]
    svg = svg_lines([("none", [(0, None)]), ("a", points)], "loss", "x", 10)
    assert [*lines(svg)] == [VERMILION] and [x for x, _ in lines(svg)[VERMILION]] == [550]
    assert texts(svg)[-1] == "a: 1" and texts(svg, "desc") == ["a: 1"]
    assert svg_lines([("a", []), ("b", [(0, math.nan)])], "loss", "x", 10) == ""


@given(some.lists(some.floats(), min_size=1, max_size=6), some.booleans())
def test_any_numbers_can_be_drawn(values, from_zero):
    svg = svg_lines([("a", list(enumerate(values)))], "loss", "x", len(values), from_zero)
    drawable = [value for value in values if abs(value) < 1e300]
    heights = [y for points in lines(svg).values() for _, y in points] if svg else []
    assert len(heights) == len(drawable) and all(30 <= y <= 180 for y in heights)


def test_a_heat_map_by_hand():
    values = {(1, 0.1): 0.5, (1, 0.2): 0.25, (4, 0.1): None, (4, 0.2): 1.25}
    drawn = html_heat_map([1, 4], [0.1, 0.2], values, "rank", "rate", "loss < 2 (★: the lowest)")
    # the darkest is (0, 68, 110); 0.5 is a quarter of the way from white to it
    assert table(drawn, "background", "color") == [
        [("rank ↓ rate →", None, None), ("0.1", None, None), ("0.2", None, None)],
        [("1", None, None), ("0.5000", "rgb(191,208,219)", "#000000"), ("★ 0.2500", "rgb(255,255,255)", "#000000")],
        [("4", None, None), ("…", None, None), ("1.2500", "rgb(0,68,110)", "#ffffff")],
    ]
    assert words(drawn).startswith("loss < 2 (★: the lowest)rank ↓")
    assert table(drawn, "text-align", "padding")[1] == [
        ("1", "left", "1px 1.2em 1px 0"), ("0.5000", "center", "3px 10px"), ("★ 0.2500", "center", "3px 10px"),
    ]  # fmt: skip


def test_a_heat_map_with_what_is_no_number():
    values = {(1, 1): math.nan, (1, 2): math.inf, (1, 3): -math.inf, (1, 4): None, (1, 5): 0.5, (1, 6): 1.0}
    drawn = html_heat_map([1, 2], [1, 2, 3, 4, 5, 6], values, "rank", "rate", "loss")
    assert table(drawn)[1] == ["1", "no number", "no number", "no number", "…", "★ 0.5000", "1.0000"]
    assert table(drawn)[2] == ["2", "…", "…", "…", "…", "…", "…"]  # not even named in `values`
    for lonely in (math.nan, None):
        assert table(html_heat_map([1], [1], {(1, 1): lonely}, "a", "b", "c"))[1][1] == ("no number" if lonely else "…")


def test_a_heat_map_of_one_number_is_white():
    assert table(html_heat_map([1], [1e-3], {(1, 1e-3): 2.0}, "a", "b", "c"), "background")[1][1] == (
        "★ 2.0000", "rgb(255,255,255)",
    )  # fmt: skip


def test_very_large_numbers_of_a_heat_map_are_short():
    values = {(1, 1): 999_999.0, (1, 2): 1e6, (1, 3): -1.5e308, (1, 4): 1.5e308, (1, 5): 0.0}
    drawn = html_heat_map([1], [1, 2, 3, 4, 5], values, "a", "b", "c")
    assert table(drawn)[1][1:] == ["999999.0000", "1e+06", "★ -1.5e+308", "1.5e+308", "0.0000"]
    assert table(drawn, "background")[1][5][1] == "rgb(128,162,182)"  # half-way


@given(some.lists(some.none() | some.floats(), min_size=1, max_size=6))
def test_any_heat_map_can_be_drawn(values):
    cells = dict(zip(((1, column) for column in range(6)), values, strict=False))
    assert len(table(html_heat_map([1], range(6), cells, "a", "b", "c"))[1]) == 7


def luminance(colour):
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one, other):
    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("share", range(0, 101, 5))
def test_every_shade_of_the_heat_map_can_be_read(share):
    values = {(1, 1): 0.0, (1, 2): share / 100, (1, 3): 1.0}
    cells = table(html_heat_map([1], [1, 2, 3], values, "a", "b", "c"), "background", "color")[1][1:]
    assert len(cells) == 3
    for _, background, ink in cells:
        red, green, blue = re.search(r"rgb\((\d+),(\d+),(\d+)\)", background).groups()
        assert contrast(f"#{int(red):02x}{int(green):02x}{int(blue):02x}", ink) >= 4.5


@pytest.mark.parametrize("background", ["#ffffff", "#111111"])
def test_lines_stand_out_on_light_and_dark(background):
    assert [colour for colour in COLOURS if contrast(colour, background) < 3] == []
