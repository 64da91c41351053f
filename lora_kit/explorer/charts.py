"""Pictures of a summary and of runs, for any page: curves and bars as SVG text, and a heat map as an HTML table."""

import html
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lora_kit.explorer.curves import position_of, rate_at
from lora_kit.explorer.svg import LEFT, RIGHT, Frame, legend, megabytes, svg
from lora_kit.steps import AXES
from lora_kit.system.html import Html, html_table
from lora_kit.system.looks import COLOURS, SHADE

SMALLEST = 1e-300  # the least height of a frame
LARGEST = 1e300  # numbers beyond are left out of a frame whose numbers are not checked
BARS = ((0, 0.55), (2, 0.35), (3, 0.55))  # LoRA, gradients, Adam's state: number of the colour, opacity


def svg_learning_rates(
    summary: Mapping[str, Any],
    axis: str = "updates",
    log: bool = False,
    cursor: int | None = None,
    pinned: Sequence[tuple[str, Mapping[str, Any]]] = (),
) -> str:
    """The learning rates of a summary's curves and of pinned ones, as the text of an SVG; "" where there is none.

    summary: from `summarize`. axis: one of `AXES`. log: rates on a logarithmic scale, three powers of ten deep. cursor: an
    update of the run, marked by a line, which says for one who drags it where the run begins and ends; the rates there stand in
    the legend. pinned: (label, curve), from an earlier
    summary's curves. The warm-up is shaded and epochs are marked, as far as they are at most 60.
    """
    if not summary["curves"]:
        return ""
    shown = shown_curves(summary["curves"], axis, pinned)
    run = summary["curves"][0]
    end = max(curve["ends"][axis] for _, curve, _ in shown)
    high = frame_top(max(max(curve["rates"]) for _, curve, _ in shown) or summary["peak"])
    frame = Frame(end, high / 1e3 if log else 0.0, high, log)
    parts = [*_warmup(frame, summary, axis), *_epochs(frame, summary, axis), *frame.grid()]
    parts += [
        frame.line(zip(curve["passed"][axis], curve["rates"], strict=True), look) for _, curve, look in reversed(shown)
    ]
    labels = [(label, look) for label, _, look in shown]
    if cursor is not None:
        place, updates = position_of(run, axis, cursor), run["ends"]["updates"]
        span = f'data-from="{frame.x(0)}" data-to="{frame.x(run["ends"][axis])}" data-updates="{updates}"'
        parts.append(
            f'<path {span} d="M{frame.x(place)} {frame.top}V{frame.bottom}" stroke="currentColor" stroke-width="1.5"/>'
            f'<text x="{LEFT}" y="285">read at update {cursor:,}</text>'
        )
        rates = [rate_at(curve, axis, place) for _, curve, _ in shown]
        labels = [
            (f"ended: {label}" if rate is None else f"{rate:.4g}: {label}", look)
            for rate, (label, look) in zip(rates, labels, strict=True)
        ]
    parts += frame.axes(AXES[axis], "learning rate")
    names, height = legend(labels, 302)
    return svg(f"Learning rate {run['label']}", _rates_in_words(summary, shown), [*parts, *names], height)


def frame_top(peak: float) -> float:
    """The height of a frame for curves up to `peak`: a round number at least 5% above it, so that a rate which is turned moves
    its curve and not only the numbers beside it.

    >>> frame_top(10), frame_top(14.5), frame_top(2000)
    (15.0, 20.0, 3000.0)
    """
    high = min(max(1.05 * peak, SMALLEST), sys.float_info.max)
    unit = 10.0 ** math.floor(math.log10(high))
    return min(
        next(unit * factor for factor in (1, 1.5, 2, 3, 4, 6, 8, 10) if unit * factor >= high * 0.999),
        sys.float_info.max,
    )


def shown_curves(
    curves: Sequence[Mapping[str, Any]], axis: str, pinned: Sequence[tuple[str, Mapping[str, Any]]] = ()
) -> list[tuple[str, Mapping[str, Any], int]]:
    """The curves that have points, as (label, curve, number of the look).

    The run first, then what was expected where it lies elsewhere on this axis, then pinned ones, then other trainers. A curve
    keeps its look whatever stands beside it.
    """
    run, others = curves[0], [curve for curve in curves[1:] if curve["rates"]]
    shown = [(run["label"], run, 0)]
    for curve in others:
        if curve["kind"] == "expected" and (curve["passed"][axis], curve["rates"]) != (
            run["passed"][axis],
            run["rates"],
        ):
            shown.append((curve["label"], curve, 1))
    shown += [(label, curve, 2 + index) for index, (label, curve) in enumerate(pinned)]
    trainers = [curve for curve in others if curve["kind"] != "expected"]
    return shown + [(curve["label"], curve, 5 + index) for index, curve in enumerate(trainers)]


def _warmup(frame, summary, axis):
    """The warm-up as a shade, as far as the run goes."""
    if not summary["warmup"]:
        return []
    edge = frame.x(position_of(summary["curves"][0], axis, summary["warmup"]))
    return [
        f'<rect x="{LEFT}" y="{frame.top}" width="{edge - LEFT:.1f}" height="{frame.bottom - frame.top}" fill="{SHADE}" '
        f'fill-opacity="0.25"/><text x="{LEFT}" y="{frame.top - 10}">warm-up, {summary["warmup"]:,} updates</text>'
    ]


def _epochs(frame, summary, axis):
    """A dotted line where each epoch but the first begins, while they are few."""
    ends = summary["curves"][0]["ends"]
    if not 1 < ends["epochs"] <= 60:
        return []
    each = summary["updates_per_epoch"] if axis == "updates" else ends[axis] / ends["epochs"]
    lines = "".join(
        f"M{frame.x(each * epoch)} {frame.top}V{frame.bottom}" for epoch in range(1, math.ceil(ends["epochs"]))
    )
    return [
        f'<path d="{lines}" stroke="currentColor" stroke-opacity="0.35" stroke-dasharray="1 3"/>',
        f'<text x="{RIGHT}" y="{frame.top - 10}" text-anchor="end">dotted: epochs</text>',
    ]


def _rates_in_words(summary, shown):
    sentences = [
        f"{label}: {curve['ends']['updates']} updates; the rate is {curve['rates'][0]:.3g} at update 0, at most "
        f"{max(curve['rates']):.3g}, {curve['rates'][-1]:.3g} at the last"
        for label, curve, _ in shown
    ]
    warmup = f"Warm-up: {summary['warmup']} updates" if summary["warmup"] else "No warm-up"
    return "; ".join(sentences) + f". {warmup}."


def svg_memory(memory: Mapping[str, Any] | None, use_8bit_adam: bool = False) -> str:
    """What a training keeps, from `lora_kit.memory.memory`, as the text of an SVG: the base as a number, the rest as bars.

    Bars: the LoRA's weights, their gradients and Adam's state, in 32 and in 8 bits; the chosen one is bold and has a mark.
    "" for None.
    """
    if memory is None:
        return ""
    lora, gradients, states = memory["lora"], memory["gradients"], (memory["adam_32"], memory["adam_8"])
    whole = lora + gradients + max(states)
    parts = [f'<text x="{LEFT + 34}" y="18">what the LoRA adds to {megabytes(memory["base"])} of frozen UNet</text>']
    for row, (name, adam) in enumerate(zip(("32-bit Adam", "8-bit Adam"), states, strict=True)):
        left, y = float(LEFT + 34), 30 + 36 * row
        for (look, opacity), part, size in zip(
            BARS, ("LoRA", "gradients", "Adam's state"), (lora, gradients, adam), strict=True
        ):
            width = (RIGHT - LEFT - 104) * (size / whole)
            parts.append(
                f'<rect x="{left:.1f}" y="{y}" width="{width:.1f}" height="22" fill="{COLOURS[look]}" fill-opacity="{opacity}" '
                f'stroke="{COLOURS[look]}" stroke-width="1.5"><title>{html.escape(f"{part}: {megabytes(size)}")}</title></rect>'
            )
            left += width
        mark, weight = ("▸ ", ' font-weight="bold"') if row == use_8bit_adam else ("", "")
        total = megabytes(lora + gradients + adam)
        parts += [
            f'<text x="{LEFT + 28}" y="{y + 15}" text-anchor="end"{weight}>{mark}{name}</text>',
            f'<text x="{left + 6:.1f}" y="{y + 15}"{weight}>{total}</text>',
        ]
    left = LEFT + 34
    names = (f"LoRA {megabytes(lora)}", f"gradients {megabytes(gradients)}", "Adam's state")
    for (look, opacity), name in zip(BARS, names, strict=True):
        parts.append(
            f'<rect x="{left}" y="106" width="12" height="12" fill="{COLOURS[look]}" fill-opacity="{opacity}" '
            f'stroke="{COLOURS[look]}"/><text x="{left + 17}" y="117">{html.escape(name)}</text>'
        )
        left += 40 + 8 * len(name)
    words = f"{names[0]}, {names[1]}, Adam's state {megabytes(states[0])} in 32 bits and {megabytes(states[1])} in 8"
    return svg("Memory", words, parts, 132)


def svg_lines(
    curves: Iterable[tuple[str, Iterable[tuple[float, float | None]]]],
    title: str,
    x_label: str,
    end: float,
    from_zero: bool = False,
) -> str:
    """Several curves in one frame, as the text of an SVG; "" where none has a point.

    curves: (label, points (x, y)), where a y that is None or no finite number is left out. end: the x at the right edge.
    from_zero: 0 is on the y axis, too.
    """
    drawn = [
        (label, [(x, y) for x, y in points if y is not None and abs(y) < LARGEST], look)
        for look, (label, points) in enumerate(curves)
    ]
    drawn = [(label, points, look) for label, points, look in drawn if points]
    if not drawn:
        return ""
    values = [y for _, points, _ in drawn for _, y in points] + [0.0] * from_zero
    low, high = min(values), max(values)
    room = max(0.05 * ((high - low) or abs(high) or 1.0), SMALLEST)
    frame = Frame(end, low if from_zero else low - room, high + room, bottom=180)
    parts = [f'<text x="{LEFT}" y="18">{html.escape(title)}</text>', *frame.grid()]
    parts += [frame.line(points, look, 2) for _, points, look in reversed(drawn)]
    parts += frame.axes(x_label, "")
    labels = [(f"{label}: {points[-1][1]:.4g}", look) for label, points, look in drawn]
    names, height = legend(labels, 242)
    return svg(title, "; ".join(label for label, _ in labels), [*parts, *names], height)


def html_heat_map(
    rows: Sequence[float],
    columns: Sequence[float],
    values: Mapping[tuple[float, float], float | None],
    row_name: str,
    column_name: str,
    title: str,
) -> str:
    """A grid of numbers as an HTML table, coloured from light (lowest, best) to dark.

    values: {(row, column): a number, or None while there is none}. What is no finite number has no colour.
    """
    numbers = [value for value in values.values() if value is not None and math.isfinite(value)]
    low, high = min(numbers, default=0.0), max(numbers, default=0.0)
    span = high / 2 - low / 2  # halves, since the difference of two floats may be no float

    def cell(value):
        if value is None:
            return "…"
        if not math.isfinite(value):
            return "no number"
        share = (value / 2 - low / 2) / span if span > 0 else 0.0
        # Okabe and Ito's blue, mixed with white; the text is black or white, whichever is read better
        colour = ",".join(str(round(255 + (end - 255) * share)) for end in (0, 68, 110))
        ink = "#ffffff" if share > 0.7 else "#000000"
        text = f"{value:.4f}" if abs(value) < 1e6 else f"{value:.4g}"
        style = f"background: rgb({colour}); color: {ink}; padding: 3px 10px; text-align: center"
        return Html(f'<div style="{style}">{"★ " if value == low else ""}{text}</div>')

    head = [f"{row_name} ↓ {column_name} →", *(f"{column:g}" for column in columns)]
    lines = [[f"{row:g}", *(cell(values.get((row, column))) for column in columns)] for row in rows]
    return f'<div style="padding: 4px 0">{html.escape(title)}</div>{html_table(lines, head)}'
