import math
import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as some
from lora_kit.explorer.drawing import (
    LEFT,
    LEGEND,
    LOOKS,
    RIGHT,
    html_heat_map,
    megabytes,
    rate_at,
    short,
    svg_learning_rates,
    svg_lines,
    svg_memory,
    table,
    thinned,
    ticks,
)

from lora_kit.config import LR_SCHEDULERS
from lora_kit.explorer.summary import AXES, summarize
from lora_kit.memory import memory
from lora_kit.trainers.rosetta import TRAINERS

SVG = "{http://www.w3.org/2000/svg}"


def summary(num_processes=1, trainers=(), cursor=None, num_examples=400, **changes):
    base = dict(style="outlined", learning_rate=1e-3, train_batch_size=4, num_train_epochs=12, lr_scheduler="cosine")
    base |= changes
    if base["lr_scheduler"] == "piecewise_constant":
        base["lr_step_rules"] = "1:100,0.1:200,0.01"
    return summarize(base, num_examples, num_processes, trainers, cursor)


def texts(svg):
    return [one.text for one in ElementTree.fromstring(svg).iter(f"{SVG}text")]


def lines(svg):
    """The points of each polyline, by its colour."""
    found = {}
    for one in ElementTree.fromstring(svg).iter(f"{SVG}polyline"):
        found[one.get("stroke")] = [tuple(map(float, point.split(","))) for point in one.get("points").split()]
    return found


@pytest.mark.parametrize("lr_scheduler", LR_SCHEDULERS)
def test_well_formed_with_a_text_alternative(lr_scheduler):
    svg = svg_learning_rates(summary(lr_scheduler=lr_scheduler))
    root = ElementTree.fromstring(svg)
    assert root.tag == f"{SVG}svg" and root.get("role") == "img"
    assert root.find(f"{SVG}title").text == "Learning rate as applied"
    assert root.find(f"{SVG}desc").text.startswith("as applied: 1200 updates; the rate is 0.001 at update 0")
    assert root.find(f"{SVG}desc").text in root.get("aria-label")
    assert {"optimizer updates (0 is the first)", "learning rate", "0", "0.001", "1,000"} <= set(texts(svg))
    assert root.find(f"{SVG}rect") is None  # no warm-up


def test_shades_the_warmup_and_stays_inside_its_frame():
    svg = svg_learning_rates(summary(lr_warmup_steps=300))
    root = ElementTree.fromstring(svg)
    shade, points = root.find(f"{SVG}rect"), lines(svg)[LOOKS[0][0]]
    left, edge = float(shade.get("x")), float(shade.get("x")) + float(shade.get("width"))
    assert points[0] == (left, 230.0)  # update 0, rate 0: where the axes meet
    assert left + (RIGHT - left) * 1199 / 1200 == pytest.approx(points[-1][0], abs=0.1)
    assert min(points, key=lambda point: point[1])[0] == pytest.approx(edge, abs=0.2)
    assert min(y for _, y in points) > 30
    assert "warm-up, 300 updates" in texts(svg)


def test_a_warm_up_longer_than_the_run_is_shaded_to_its_end_only():
    svg = svg_learning_rates(summary(lr_warmup_steps=5000))
    shade = ElementTree.fromstring(svg).find(f"{SVG}rect")
    assert float(shade.get("x")) + float(shade.get("width")) == RIGHT


@pytest.mark.parametrize("axis", AXES)
def test_every_axis_places_updates_where_they_are(axis):
    made = summary(3, num_examples=397, gradient_accumulation_steps=4, lr_warmup_steps=10)
    svg = svg_learning_rates(made, axis)
    run, expected = made["curves"]
    end = max(run["ends"][axis], expected["ends"][axis])
    high = max(max(run["rates"]), max(expected["rates"])) * 1.05
    for curve, (colour, _) in zip((run, expected), LOOKS, strict=False):
        x = [LEFT + (RIGHT - LEFT) * place / end for place in curve["passed"][axis]]
        y = [230 - 200 * rate / high for rate in curve["rates"]]
        drawn = lines(svg)[colour]
        assert {place for place, _ in drawn} <= {round(place, 1) for place in x}
        near = [np.interp(np.array(x) + shift, *zip(*drawn, strict=True)) for shift in np.linspace(-0.1, 0.1, 41)]
        assert np.abs(np.array(near) - y).min(axis=0).max() < 0.5
        assert (drawn[0][0], drawn[-1][0]) == pytest.approx((x[0], x[-1]), abs=0.06)
    assert AXES[axis] in texts(svg)


@given(some.lists(some.tuples(some.integers(0, 60), some.floats(0, 200)), min_size=1, max_size=80))
def test_a_thinned_curve_passes_the_points_left_out(points):
    points.sort(key=lambda point: point[0])
    kept = thinned(points, 0.5)
    assert kept[0] == points[0] and kept[-1] == points[-1]
    places = iter(points)
    assert all(one in places for one in kept)  # in their order
    alone = [point for point in points if sum(x == point[0] for x, _ in points) == 1]
    for x, y in alone:
        if [one for one, _ in kept].count(x) == 0:
            left = max((point for point in kept if point[0] < x), key=lambda point: point[0])
            left = [point for point in kept if point[0] == left[0]][-1]
            right = next(point for point in kept if point[0] > x)
            there = left[1] + (right[1] - left[1]) * (x - left[0]) / (right[0] - left[0])
            assert abs(there - y) <= 1.01 * 0.5


def test_a_long_run_is_drawn_with_few_points():
    made = summary(max_train_steps=100_000, lr_scheduler="cosine_with_restarts", lr_num_cycles=3, lr_warmup_steps=2000)
    assert len(made["updates"]) > 390 and len(lines(svg_learning_rates(made))[LOOKS[0][0]]) < 200


def test_a_resting_pointer_reads_the_rates():
    made = summary(4, cursor=150, lr_warmup_steps=100)
    svg = svg_learning_rates(made, cursor=150, pinned=[("A", summary(num_train_epochs=1)["curves"][0])])
    strips = [one for one in ElementTree.fromstring(svg).find(f"{SVG}g").iter(f"{SVG}rect")]
    edges = [(float(one.get("x")), float(one.get("width"))) for one in strips]
    assert edges[0][0] == LEFT and edges[-1][0] + edges[-1][1] == pytest.approx(RIGHT, abs=0.2)
    words = [one.find(f"{SVG}title").text for one in strips]
    place = int(1200 * 0.5 / len(strips))
    run, expected = made["curves"]
    rates = [rate_at(curve, "updates", place) for curve in (run, expected)]
    assert words[0].startswith(
        f"update {place}: {rates[0]:.4g} as applied; {rates[1]:.4g} one process, no accumulation"
    )
    assert words[-1].startswith("update 1,187: ended as applied; ") and words[-1].endswith("; ended A")
    assert "epoch 0.12: " in svg_learning_rates(summary(), "epochs")
    assert "<title>a</title>" in svg_lines([("a", [(0, 1.0), (10, 0.5)])], "loss", "x", 10)


def test_names_of_the_axis_stand_clear_of_its_numbers():
    for rate in (1.25e-4, 2.5e-5, 3e-3, 1.3e-5):
        root = ElementTree.fromstring(svg_learning_rates(summary(learning_rate=rate)))
        numbers = [one for one in root.iter(f"{SVG}text") if one.get("text-anchor") == "end" and one.text[0].isdigit()]
        widest = max(len(one.text) for one in numbers) * 7.3  # DejaVu Sans at 12 pixels: 7.6 a digit, 3.8 a point
        assert LEFT - 8 - widest > 16


def test_a_long_name_in_the_legend_has_several_lines():
    name = "pinned A: cosine_with_restarts, rate 0.001, warm-up 100, rank 4, 4 processes"
    svg = svg_learning_rates(summary(), pinned=[(name, summary(learning_rate=2e-3)["curves"][0])])
    found = texts(svg)
    first = next(index for index, one in enumerate(found) if one.startswith("pinned A"))
    assert " ".join(found[first : first + 2]) == name and max(map(len, found)) <= LEGEND
    root = ElementTree.fromstring(svg)
    assert max(float(one.get("y", 0)) for one in root.iter(f"{SVG}text")) < float(root.get("height"))


def test_the_expected_curve_is_left_out_where_it_is_the_same():
    made = summary(gradient_accumulation_steps=2, max_train_steps=300)
    assert len(lines(svg_learning_rates(made, "updates"))) == 1
    assert len(lines(svg_learning_rates(made, "images"))) == 2


def test_logarithmic_rates():
    made = summary(lr_scheduler="piecewise_constant")
    points = lines(svg_learning_rates(made, log=True))[LOOKS[0][0]]
    heights = sorted({y for _, y in points})
    assert len(heights) == 3
    assert heights[1] - heights[0] == pytest.approx(heights[2] - heights[1], abs=0.11)  # 1, 0.1, 0.01
    flat = lines(svg_learning_rates(summary(), log=True))[LOOKS[0][0]]
    assert max(y for _, y in flat) == 230.0  # a rate of 0 lies on the axis


def test_the_cursor_reads_every_curve():
    made = summary(4, cursor=150, lr_warmup_steps=100)
    svg = svg_learning_rates(
        made, "images", cursor=150, pinned=[("pinned A", summary(num_train_epochs=1)["curves"][0])]
    )
    run, expected = made["curves"]
    rate = run["rates"][run["updates"].index(150)]
    there = rate_at(expected, "images", 150 * 16)
    assert "read at update 150" in texts(svg) and f"{rate:.4g}: as applied" in texts(svg)
    assert f"{there:.4g}: one process, no accumulation" in texts(svg)
    assert "ended: pinned A" in texts(svg)  # 400 images are seen by then


def test_rate_at_takes_the_update_that_is_under_way():
    curve = summary(num_examples=16, num_train_epochs=1, lr_scheduler="linear")["curves"][0]
    assert curve["updates"] == [0, 1, 2, 3]
    assert [rate_at(curve, "images", place) for place in (0, 3, 4, 15)] == pytest.approx([1e-3, 1e-3, 0.75e-3, 0.25e-3])
    assert rate_at(curve, "images", 16) is None


def test_epochs_are_marked_while_they_are_few():
    def marks(svg):
        return re.findall(r'd="([MV\d. ]+)" stroke="currentColor" stroke-opacity="0.35"', svg)

    (found,) = marks(svg_learning_rates(summary(num_train_epochs=12)))
    assert found.count("M") == 11
    assert marks(svg_learning_rates(summary(num_train_epochs=61))) == []


def test_a_curve_keeps_its_look_beside_others():
    pinned = [("A", summary(learning_rate=2e-3)["curves"][0]), ("B", summary(learning_rate=3e-3)["curves"][0])]
    alone = lines(svg_learning_rates(summary(), pinned=pinned))
    beside = lines(svg_learning_rates(summary(4, tuple(TRAINERS)), pinned=pinned))
    assert list(alone) == [LOOKS[look][0] for look in (3, 2, 0)]
    assert set(alone) < set(beside) and len(LOOKS) == 5 + len(TRAINERS)  # the run, what was expected, three pinned


def luminance(colour):
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one, other):
    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("background", ["#ffffff", "#111111"])
def test_lines_stand_out_on_light_and_dark(background):
    assert [colour for colour, _ in LOOKS if contrast(colour, background) < 3] == []


def test_colour_is_never_the_only_sign():
    assert len({dashes for _, dashes in LOOKS}) == len({colour for colour, _ in LOOKS}) == len(LOOKS)


def test_memory_bars_have_the_sizes():
    kept = memory("stable-diffusion-v1-5/stable-diffusion-v1-5", 16)
    root = ElementTree.fromstring(svg_memory(kept, use_8bit_adam=True))
    widths = [float(one.get("width")) for one in root.iter(f"{SVG}rect")][:6]
    sizes = [kept["lora"], kept["gradients"], kept["adam_32"], kept["lora"], kept["gradients"], kept["adam_8"]]
    assert widths == pytest.approx([size * widths[2] / kept["adam_32"] for size in sizes], abs=0.1)
    bold = [one.text for one in root.iter(f"{SVG}text") if one.get("font-weight") == "bold"]
    assert bold == ["▸ 8-bit Adam", megabytes(kept["lora"] + kept["gradients"] + kept["adam_8"])]
    assert "what the LoRA adds to 3.44 GB of frozen UNet" in texts(svg_memory(kept))
    assert svg_memory(None) == ""


def test_lines_of_runs():
    svg = svg_lines([("a", [(0, 1.0), (10, 0.5)]), ("b <", [(0, 2.0), (5, None), (10, math.nan)])], "loss", "x", 10)
    assert {"a: 0.5", "loss", "x", "0.5", "1.5"} <= set(texts(svg)) and "b &lt;" in svg
    assert lines(svg)[LOOKS[0][0]][-1][0] == RIGHT
    assert "0" in texts(svg_lines([("a", [(0, 1.0), (10, 1.1)])], "loss", "x", 10, from_zero=True))
    assert svg_lines([("a", [])], "loss", "x", 10) == ""


def test_heat_map():
    values = {(1, 0.1): 0.5, (1, 0.2): 0.25, (4, 0.1): None, (4, 0.2): 1.0}
    root = ElementTree.fromstring(html_heat_map([1, 4], [0.1, 0.2], values, "rank", "rate", "loss"))
    cells = ["".join(cell.itertext()) for cell in root.iter("td")]
    assert cells == ["0.5000", "★ 0.2500", "…", "1.0000"]
    for cell in root.iter("td"):
        if "background" in cell.get("style"):
            red, green, blue = re.search(r"rgb\((\d+),(\d+),(\d+)\)", cell.get("style")).groups()
            ink = re.search(r"(?<!-)color: (#\w+)", cell.get("style"))[1]
            assert contrast(f"#{int(red):02x}{int(green):02x}{int(blue):02x}", ink) >= 4.5
    assert [one.get("scope") for one in root.iter("th")].count("row") == 2


@pytest.mark.parametrize("share", range(0, 101, 5))
def test_every_shade_of_the_heat_map_can_be_read(share):
    values = {(1, 1): 0.0, (1, 2): share / 100, (1, 3): 1.0}
    for cell in ElementTree.fromstring(html_heat_map([1], [1, 2, 3], values, "a", "b", "c")).iter("td"):
        red, green, blue = re.search(r"rgb\((\d+),(\d+),(\d+)\)", cell.get("style")).groups()
        ink = re.search(r"(?<!-)color: (#\w+)", cell.get("style"))[1]
        assert contrast(f"#{int(red):02x}{int(green):02x}{int(blue):02x}", ink) >= 4.5


def test_numbers():
    assert ticks(1200) == [0, 500, 1000] and ticks(9) == [0, 2, 4, 6, 8]
    assert ticks(1.24, low=1.13) == pytest.approx([1.15, 1.2])
    assert ticks(3, low=-2) == [-2, -1, 0, 1, 2, 3]
    assert [short(one) for one in (0, 40, 1200, 2_500_000, 0.0002, 3e9)] == ["0", "40", "1,200", "2.5M", "0.0002", "3G"]
    assert [megabytes(one) for one in (6_377_472, 1_719_041_928, 372_700, 4_480, 448)] == [
        "6.38 MB", "1.72 GB", "0.373 MB", "4.48 kB", "448 B",
    ]  # fmt: skip
    assert "&lt;b&gt;" in table([("<b>", 1200)]) and "1,200" in table([("a", 1200)])
