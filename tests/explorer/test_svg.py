import pytest
from hypothesis import given
from hypothesis import strategies as some
from parsed import attributes, elements, texts

from lora_kit.explorer.svg import Frame, legend, megabytes, short, svg, thinned, ticks

# the frame is 464 pixels wide, from 86 to 550, and 200 high, from 30 down to 230


def test_places_along_the_frame():
    frame = Frame(10, 0.0, 2.0)
    assert [frame.x(place) for place in (0, 1, 5, 10)] == [86.0, 132.4, 318.0, 550.0]
    assert frame.x(1 / 3) == 101.5  # 86 + 15.47
    assert [frame.y(value) for value in (0, 0.5, 1, 2)] == [230.0, 180.0, 130.0, 30.0]
    assert frame.y(0.3333) == 196.7


def test_what_lies_beyond_the_frame_lies_on_its_edge():
    frame = Frame(10, 1.0, 3.0)
    assert [frame.y(value) for value in (0, 1, 1.5, 3, 4)] == [230.0, 230.0, 180.0, 30.0, 30.0]


def test_powers_of_ten_are_equally_far_apart():
    frame = Frame(10, 1e-3, 1.0, log=True)
    assert [frame.y(value) for value in (0, 1e-4, 1e-3, 1e-2, 1e-1, 1, 10)] == [230, 230, 230, 163.3, 96.7, 30, 30]


def test_a_frame_of_another_height():
    frame = Frame(4, 0.0, 1.0, top=10, bottom=110)
    assert [frame.y(value) for value in (0, 0.25, 1)] == [110, 85, 10]
    assert elements("".join(frame.axes("x", "y")))[-3:] == [
        ("path", {"d": "M86 10V110H550", "fill": "none", "stroke": "currentColor"}, ""),
        ("text", {"x": "318.0", "y": "148", "text-anchor": "middle"}, "x"),
        ("text", {"transform": "translate(13 60.0) rotate(-90)", "text-anchor": "middle"}, "y"),
    ]


def test_the_grid_has_round_numbers():
    frame = Frame(10, 0.0, 1.05)  # a fifth of it is 0.21, so the step is 0.5
    assert elements("".join(frame.grid())) == [
        ("path", {"d": "M86 230.0H550", "stroke": "currentColor", "stroke-opacity": "0.2"}, ""),
        ("text", {"x": "78", "y": "234.0", "text-anchor": "end"}, "0"),
        ("path", {"d": "M86 134.8H550", "stroke": "currentColor", "stroke-opacity": "0.2"}, ""),  # 230 - 200 * 0.4762
        ("text", {"x": "78", "y": "138.8", "text-anchor": "end"}, "0.5"),
        ("path", {"d": "M86 39.5H550", "stroke": "currentColor", "stroke-opacity": "0.2"}, ""),
        ("text", {"x": "78", "y": "43.5", "text-anchor": "end"}, "1"),
    ]


def test_the_grid_begins_where_the_frame_does():
    assert texts("".join(Frame(10, 1.13, 1.24).grid())) == ["1.15", "1.2"]


@pytest.mark.parametrize(
    ("low", "high", "numbers"),
    [
        (1.05e-6, 1.05e-3, [("1e-05", "168.7"), ("0.0001", "102.1"), ("0.001", "35.4")]),
        (1e-3, 1.0, [("0.001", "234.0"), ("0.01", "167.3"), ("0.1", "100.7"), ("1", "34.0")]),
    ],
)
def test_a_logarithmic_grid_has_powers_of_ten(low, high, numbers):
    grid = "".join(Frame(10, low, high, log=True).grid())
    assert [*zip(texts(grid), attributes(grid, "text", "y"), strict=True)] == numbers


def test_axes_are_marked_and_named():
    assert elements("".join(Frame(12, 0.0, 1.0).axes("updates", "rate"))) == [
        ("path", {"d": "M86.0 230v5", "stroke": "currentColor"}, ""),
        ("text", {"x": "86.0", "y": "249", "text-anchor": "middle"}, "0"),
        ("path", {"d": "M279.3 230v5", "stroke": "currentColor"}, ""),
        ("text", {"x": "279.3", "y": "249", "text-anchor": "middle"}, "5"),
        ("path", {"d": "M472.7 230v5", "stroke": "currentColor"}, ""),
        ("text", {"x": "472.7", "y": "249", "text-anchor": "middle"}, "10"),
        ("path", {"d": "M86 30V230H550", "fill": "none", "stroke": "currentColor"}, ""),
        ("text", {"x": "318.0", "y": "268", "text-anchor": "middle"}, "updates"),
        ("text", {"transform": "translate(13 130.0) rotate(-90)", "text-anchor": "middle"}, "rate"),
    ]


@pytest.mark.parametrize(
    ("end", "marks"),
    [
        (5, ["0", "1", "2", "3", "4", "5"]),
        (4, ["0", "1", "2", "3", "4"]),
        (2, ["0", "0.5", "1", "1.5", "2"]),
        (6.2, ["0", "2", "4", "6"]),
        (1, ["0", "0.2", "0.4", "0.6", "0.8", "1"]),
        (2_500_000, ["0", "500,000", "1M", "1.5M", "2M", "2.5M"]),
    ],
)
def test_marks_along_the_axis(end, marks):
    assert texts("".join(Frame(end, 0.0, 1.0).axes("x", "y")))[:-2] == marks


def test_a_short_curve_has_dots():
    line = Frame(10, 0.0, 2.0).line([(0, 0.0), (5, 2.0), (10, 1.0)], look=1)
    assert elements(line) == [
        (
            "polyline",
            {
                "points": "86.0,230.0 318.0,30.0 550.0,130.0", "fill": "none", "stroke": "#D55E00", "stroke-width": "2.5",
                "stroke-linejoin": "round", "stroke-dasharray": "7 4",
            },
            "",
        ),
        ("circle", {"cx": "86.0", "cy": "230.0", "r": "3", "fill": "#D55E00"}, ""),
        ("circle", {"cx": "318.0", "cy": "30.0", "r": "3", "fill": "#D55E00"}, ""),
        ("circle", {"cx": "550.0", "cy": "130.0", "r": "3", "fill": "#D55E00"}, ""),
    ]  # fmt: skip


def test_the_first_look_is_solid_and_the_twelfth_is_the_first_again():
    frame = Frame(10, 0.0, 2.0)
    ((_, solid, _), *_) = elements(frame.line([(0, 1.0)], look=0, width=2))
    assert (solid["stroke"], solid["stroke-width"]) == ("#0072B2", "2") and "stroke-dasharray" not in solid
    assert frame.line([(0, 1.0)], look=11) == frame.line([(0, 1.0)], look=0)


def test_a_long_curve_is_thinned_and_has_no_dots():
    frame = Frame(40, 0.0, 40.0)
    forty = frame.line([(x, x) for x in range(40)], look=0)
    assert forty.count("<circle") == 40
    longer = frame.line([(x, x) for x in range(41)], look=0)
    assert longer.count("<circle") == 0 and attributes(longer, "polyline", "points") == ["86.0,230.0 550.0,30.0"]


def test_a_curve_without_points_is_nothing():
    assert Frame(10, 0.0, 2.0).line([], look=0) == ""


def test_the_legend_lists_names_with_their_lines():
    parts, bottom = legend([("a < b", 0), ("c", 2)], top=100)
    assert elements("".join(parts)) == [
        ("path", {"d": "M86 96h34", "stroke": "#0072B2", "stroke-width": "2.5", "stroke-dasharray": "none"}, ""),
        ("text", {"x": "128", "y": "100"}, "a < b"),
        ("path", {"d": "M86 113h34", "stroke": "#009E73", "stroke-width": "2.5", "stroke-dasharray": "2 3"}, ""),
        ("text", {"x": "128", "y": "117"}, "c"),
    ]
    assert bottom == 126  # 8 below the last name


def test_a_long_name_has_several_lines_which_break_at_blanks():
    name = "pinned A: cosine_with_restarts, rate 0.001, warm-up 100, rank 4, 4 processes"
    parts, bottom = legend([(name, 12), ("", 1)], top=100)
    drawn = "".join(parts)
    assert texts(drawn) == ["pinned A: cosine_with_restarts, rate 0.001, warm-up 100,", "rank 4, 4 processes", ""]
    assert attributes(drawn, "text", "y") == ["100", "117", "134"] and bottom == 143
    assert attributes(drawn, "path", "d", "stroke") == [("M86 96h34", "#D55E00"), ("M86 130h34", "#D55E00")]


@pytest.mark.parametrize(("letters", "lines"), [(28, 1), (29, 2)])
def test_a_line_of_the_legend_has_56_letters(letters, lines):
    parts, _ = legend([("a" * 27 + " " + "b" * letters, 0)], top=100)
    assert len(texts("".join(parts))) == lines


def test_a_name_never_breaks_at_a_hyphen():
    parts, _ = legend([("a" * 50 + " warm-ups", 0)], top=100)
    assert texts("".join(parts)) == ["a" * 50, "warm-ups"]


def test_a_picture_says_what_it_shows():
    assert elements(svg("Rates", 'a < b, "c"', ["<path/>", "<g/>"], 120)) == [
        (
            "svg",
            {
                "ns": "http://www.w3.org/2000/svg", "viewBox": "0 0 576 120", "width": "576", "height": "120",
                "style": "max-width: 100%; height: auto", "role": "img",
                "font-family": "DejaVu Sans, Verdana, sans-serif", "font-size": "12", "fill": "currentColor",
                "aria-label": 'Rates: a < b, "c"',
            },
            "",
        ),
        ("title", {}, "Rates"), ("desc", {}, 'a < b, "c"'), ("path", {}, ""), ("g", {}, ""),
    ]  # fmt: skip
    assert elements(svg("<b>", "", [], 1))[0][1]["aria-label"] == "<b>: "


@pytest.mark.parametrize(
    ("high", "low", "numbers"),
    [
        (1200, 0, [0, 500, 1000]),
        (9, 0, [0, 2, 4, 6, 8]),
        (5, 0, [0, 1, 2, 3, 4, 5]),  # a step of exactly a power of ten
        (10, 0, [0, 2, 4, 6, 8, 10]),
        (25, 0, [0, 5, 10, 15, 20, 25]),
        (26, 0, [0, 10, 20]),
        (0.3, 0, [0, 0.1, 0.2, 0.3]),
        (1.24, 1.13, [1.15, 1.2]),
        (3, -2, [-2, -1, 0, 1, 2, 3]),
        (1e308, 0, [0, 2e307, 4e307, 6e307, 8e307, 1e308]),
        (1e-300, 0, [0, 2e-301, 4e-301, 6e-301, 8e-301, 1e-300]),
    ],
)
def test_round_numbers_on_an_axis(high, low, numbers):
    assert ticks(high, low=low) == pytest.approx(numbers, rel=1e-12, abs=0)


def test_a_rounding_error_costs_no_number_at_an_end():
    assert ticks(0.7 - 1e-9, low=0.2 + 1e-9)[0] == 0.2 and len(ticks(0.7 - 1e-9, low=0.2 + 1e-9)) == 6
    assert ticks(5 * 0.2 * (1 + 1e-9)) == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1.0])  # a fifth is 0.2 and a bit


def test_more_numbers_on_request():
    assert ticks(100, count=10) == [0, 10, 20, 30, 40, 50, 60, 70, 80, 90, 100]


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0"), (40, "40"), (999, "999"), (1000, "1,000"), (1200, "1,200"), (999_999, "999,999"), (1_000_000, "1M"),
        (2_500_000, "2.5M"), (1_234_567, "1.235M"), (1e9, "1G"), (3e9, "3G"), (0.0002, "0.0002"), (0.12345, "0.123"),
        (1234.5, "1,234"), (1000.5, "1,000"), (999.5, "1e+03"), (-2e6, "-2M"), (-1500, "-1,500"), (7.0, "7"),
    ],
)  # fmt: skip
def test_numbers_as_an_axis_shows_them(number, text):
    assert short(number) == text


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"), (448, "448 B"), (999, "999 B"), (1000, "1 kB"), (4_480, "4.48 kB"), (99_999, "100 kB"),
        (100_000, "0.1 MB"), (372_700, "0.373 MB"), (6_377_472, "6.38 MB"), (999_000_000, "999 MB"),
        (1_000_000_000, "1 GB"), (1_719_041_928, "1.72 GB"), (6_374_990, "6.37 MB"),
    ],
)  # fmt: skip
def test_bytes_in_words(size, text):
    assert megabytes(size) == text


@pytest.mark.parametrize(
    ("points", "corners"),
    [
        ([], []),
        ([(0, 1.0)], [(0, 1.0)]),
        ([(0, 0.0), (1, 0.0)], [(0, 0.0), (1, 0.0)]),
        ([(0, 0.0), (1, 1.0), (2, 2.0), (3, 0.0)], [(0, 0.0), (2, 2.0), (3, 0.0)]),
        ([(0, 0.0), (1, 0.0), (2, 0.0), (3, 0.0)], [(0, 0.0), (3, 0.0)]),
        ([(0, 0.0), (1, 0.4), (2, 0.0)], [(0, 0.0), (2, 0.0)]),  # 0.4 is within 0.5
        ([(0, 0.0), (1, -0.4), (2, 0.0)], [(0, 0.0), (2, 0.0)]),
        ([(0, 0.0), (1, 0.6), (2, 0.0)], [(0, 0.0), (1, 0.6), (2, 0.0)]),
        ([(0, 0.0), (1, -0.6), (2, 0.0)], [(0, 0.0), (1, -0.6), (2, 0.0)]),
        # a jump straight up stays a jump, whatever comes after it
        ([(0, 0.0), (1, 0.0), (1, 9.0), (2, 9.0), (3, 9.0)], [(0, 0.0), (1, 0.0), (1, 9.0), (3, 9.0)]),
        ([(5, 0.0), (5, 9.0), (6, 9.0)], [(5, 0.0), (5, 9.0), (6, 9.0)]),
        ([(0, 0.0), (0.5, 0.0), (1, 0.0), (1.5, 0.0)], [(0, 0.0), (1.5, 0.0)]),
        # exactly half a pixel below, and above
        ([(0, 0.0), (1, 0.5), (2, 2.0)], [(0, 0.0), (2, 2.0)]),
        ([(0, 0.0), (1, 0.5), (2, 0.0)], [(0, 0.0), (2, 0.0)]),
        # from a corner on slopes are those from there
        ([(0, 0.0), (10, 0.0), (11, 5.0), (12, 11.0), (13, 15.0)], [(0, 0.0), (10, 0.0), (12, 11.0), (13, 15.0)]),
        # each step of 0.4 is small, but their sum is not
        ([(0, 0.0), (1, 0.4), (2, 1.2), (3, 2.4), (4, 4.0)], [(0, 0.0), (3, 2.4), (4, 4.0)]),
    ],
)
def test_a_curve_is_thinned_to_its_corners(points, corners):
    assert thinned(points, 0.5) == corners


def test_a_tenth_of_a_pixel_is_not_seen():
    assert thinned([(0, 0.0), (1, 0.1), (2, 0.0)]) == [(0, 0.0), (2, 0.0)]
    assert len(thinned([(0, 0.0), (1, 0.11), (2, 0.0)])) == 3


@given(some.lists(some.tuples(some.integers(0, 60), some.floats(0, 200)), min_size=1, max_size=80))
def test_a_thinned_curve_passes_the_points_left_out(points):
    points.sort(key=lambda point: point[0])
    corners = thinned(points, 0.5)
    assert corners[0] == points[0] and corners[-1] == points[-1]
    places = iter(points)
    assert all(corner in places for corner in corners)  # in their order
    alone = [point for point in points if sum(x == point[0] for x, _ in points) == 1]
    for x, y in alone:
        if [place for place, _ in corners].count(x) == 0:
            left = max((point for point in corners if point[0] < x), key=lambda point: point[0])
            left = [point for point in corners if point[0] == left[0]][-1]
            right = next(point for point in corners if point[0] > x)
            there = left[1] + (right[1] - left[1]) * (x - left[0]) / (right[0] - left[0])
            assert abs(there - y) <= 1.01 * 0.5
