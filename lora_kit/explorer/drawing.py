"""Pictures of a summary as SVG and HTML text, for any page: core widgets, voila, a browser alone.

Text and axes take the colour of the text around them, so light and dark pages both do. A curve has its colour, its dashes and
its name; each picture says in words what it shows, and a pointer that rests on it reads the values there.
"""

import bisect
import html
import math
import textwrap

from lora_kit.explorer.summary import AXES

# at least 3:1 on white and on JupyterLab's dark background, far apart for colour-blind eyes; (colour, dashes)
LOOKS = (
    ("#0072B2", ""),
    ("#D55E00", "7 4"),
    ("#009E73", "2 3"),
    ("#B5518B", "10 3 2 3"),
    ("#8C7A00", "4 2"),
    ("#7A6FD0", "5 2 2 2"),
    ("#808080", "12 4"),
    ("#C4472B", "6 2 1 2"),
    ("#2E8B8B", "3 6"),
    ("#A8642A", "9 2 2 2 2 2"),
    ("#4A7FC0", "5 5"),
)
SHADE = "#E69F00"
AXIS_NAMES = {"updates": "update", "micro_steps": "micro-step", "epochs": "epoch", "images": "image"}
FONT = 'font-family="DejaVu Sans, Verdana, sans-serif" font-size="12" fill="currentColor"'
# the themes' own text colour in JupyterLab, VS Code and Colab
TEXT_COLOUR = "var(--jp-ui-font-color1, var(--vscode-foreground, var(--colab-primary-text-color, inherit)))"
WIDTH, LEFT, RIGHT = 576, 86, 550
LEGEND = 56  # letters in a line of it
STRIPS = 48  # places where a resting pointer reads the values


def ticks(high, count=5, low=0.0):
    """Round numbers from `low` to at most `high`, about `count` of them."""
    rough = (high - low) / count
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(unit * factor for factor in (1, 2, 5, 10) if unit * factor >= rough * 0.999)
    return [index * step for index in range(math.ceil(low / step - 0.001), int(high / step * 1.001) + 1)]


def short(number):
    """A number as an axis shows it: 1200 as 1,200, 0.0001 as 0.0001, 2500000 as 2.5M."""
    for size, unit in ((1e9, "G"), (1e6, "M")):
        if abs(number) >= size:
            return f"{number / size:.4g}{unit}"
    return f"{number:,.0f}" if abs(number) >= 1000 or number == int(number) else f"{number:.3g}"


def table(rows, head=()):
    """An HTML table of rows of texts and numbers. All columns but the first and, where they hold text, the last stand right."""

    def cell(value, column, columns, tag="td"):
        number = isinstance(value, int)
        right = column > 0 and (number or tag == "th" or column < columns - 1)
        text = f"{value:,}" if number else html.escape(str(value))
        style = f"padding: 1px 1.2em 1px 0; text-align: {'right' if right else 'left'}"
        style += "" if column == columns - 1 or tag == "th" else "; white-space: nowrap"
        return f'<{tag} style="{style}">{text}</{tag}>'

    def line(row, tag="td"):
        return f"<tr>{''.join(cell(value, column, len(row), tag) for column, value in enumerate(row))}</tr>"

    top = line(head, "th") if head else ""
    body = "".join(map(line, rows))
    return f'<div style="overflow-x: auto"><table style="line-height: 1.4; border-collapse: collapse; white-space: normal; table-layout: auto; width: auto">{top}{body}</table></div>'


def page(*parts):
    """Parts of a page in the theme's text colour."""
    return f'<div style="color: {TEXT_COLOUR}; line-height: 1.4; white-space: normal">{"".join(parts)}</div>'


def thinned(points, tolerance=0.1):
    """Those of a curve's points whose straight joins pass all others within `tolerance`, upwards or downwards.

    >>> thinned([(0, 0.0), (1, 1.0), (2, 2.0), (3, 0.0)])
    [(0, 0.0), (2, 2.0), (3, 0.0)]
    """
    if len(points) < 3:
        return points
    kept, before = [points[0]], points[0]
    lowest, highest = -math.inf, math.inf  # slopes of a line from the point kept last that pass all points since
    for point in points[1:]:
        x, y = kept[-1]
        run = point[0] - x
        if run <= 0 or not lowest <= (point[1] - y) / run <= highest:
            if before is not kept[-1]:
                kept.append(before)
            x, y = before
            run, lowest, highest = point[0] - x, -math.inf, math.inf
        if run > 0:
            lowest = max(lowest, (point[1] - tolerance - y) / run)
            highest = min(highest, (point[1] + tolerance - y) / run)
        else:
            lowest, highest = math.inf, -math.inf  # straight up or down: the next point starts anew
        before = point
    return [*kept, before]


class _Frame:
    """A plot's frame: places of numbers, axes, labels. Numbers in, SVG text out."""

    def __init__(self, right_end, low, high, log, top=30, bottom=230):
        self.end, self.low, self.high, self.log, self.top, self.bottom = right_end, low, high, log, top, bottom

    def x(self, position):
        return round(LEFT + (RIGHT - LEFT) * position / self.end, 1)

    def y(self, value):
        if self.log:
            share = math.log(max(value, self.low) / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return round(self.bottom - (self.bottom - self.top) * min(max(share, 0.0), 1.0), 1)

    def grid(self):
        if self.log:
            powers = range(math.ceil(math.log10(self.low)), math.floor(math.log10(self.high)) + 1)
            values = [10.0**power for power in powers]
        else:
            values = ticks(self.high, low=self.low)
        for value in values:
            yield (
                f'<path d="M{LEFT} {self.y(value)}H{RIGHT}" stroke="currentColor" stroke-opacity="0.2"/>'
                f'<text x="{LEFT - 8}" y="{self.y(value) + 4}" text-anchor="end">{value:.3g}</text>'
            )

    def axes(self, x_label, y_label, whole=True):
        middle = (self.top + self.bottom) / 2
        places = ticks(self.end)
        for place in sorted({round(one) for one in places} if whole and self.end >= 5 else set(places)):
            yield (
                f'<path d="M{self.x(place)} {self.bottom}v5" stroke="currentColor"/>'
                f'<text x="{self.x(place)}" y="{self.bottom + 19}" text-anchor="middle">{short(place)}</text>'
            )
        yield f'<path d="M{LEFT} {self.top}V{self.bottom}H{RIGHT}" fill="none" stroke="currentColor"/>'
        yield f'<text x="{(LEFT + RIGHT) / 2}" y="{self.bottom + 38}" text-anchor="middle">{x_label}</text>'
        yield f'<text transform="translate(13 {middle}) rotate(-90)" text-anchor="middle">{y_label}</text>'

    def line(self, points, look, width=2.5, tip=""):
        """A curve; `tip` is what a resting pointer is told."""
        colour, dashes = LOOKS[look % len(LOOKS)]
        placed, marked = [(self.x(a), self.y(b)) for a, b in points], len(points) <= 40
        placed = placed if marked else thinned(placed)
        if not placed:
            return ""
        text = " ".join(f"{a},{b}" for a, b in placed)
        dash = f' stroke-dasharray="{dashes}"' if dashes else ""
        tip = f"<title>{html.escape(tip)}</title>" if tip else ""
        found = (
            f'<polyline points="{text}" fill="none" stroke="{colour}" stroke-width="{width}" '
            f'stroke-linejoin="round"{dash}>{tip}</polyline>'
        )
        if marked:
            found += "".join(f'<circle cx="{a}" cy="{b}" r="3" fill="{colour}"/>' for a, b in placed)
        return found

    def strips(self, read):
        """Unseen strips side by side over the whole frame, each with what `read` says of its middle on the x axis."""
        width = (RIGHT - LEFT) / STRIPS
        for index in range(STRIPS):
            words = html.escape(read(self.end * (index + 0.5) / STRIPS))
            yield (
                f'<rect x="{LEFT + index * width:.1f}" y="{self.top}" width="{width:.1f}" height="{self.bottom - self.top}" '
                f'fill-opacity="0"><title>{words}</title></rect>'
            )


def _legend(labels, top):
    """Lines with their names, one under the other, as (SVG texts, where they end). labels: [(name, look)]."""
    parts, y = [], top
    for label, look in labels:
        colour, dashes = LOOKS[look % len(LOOKS)]
        parts.append(
            f'<path d="M{LEFT} {y - 4}h34" stroke="{colour}" stroke-width="2.5" stroke-dasharray="{dashes or "none"}"/>'
        )
        for part in textwrap.wrap(label, LEGEND, break_on_hyphens=False) or [""]:
            parts.append(f'<text x="{LEFT + 42}" y="{y}">{html.escape(part)}</text>')
            y += 17
    return parts, y - 8


def _svg(title, words, parts, height):
    words, title = html.escape(words), html.escape(title)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
        f'style="max-width: 100%; height: auto" role="img" {FONT} aria-label="{title}: {words}">'
        f"<title>{title}</title><desc>{words}</desc>{''.join(parts)}</svg>"
    )


def rate_at(curve, axis, position):
    """The rate of the last of a curve's updates that begins at or before a position on an axis; None where it has ended."""
    places = curve["passed"][axis]
    if not places or position >= curve["ends"][axis]:
        return None
    return curve["rates"][max(bisect.bisect_right(places, position) - 1, 0)]


def svg_learning_rates(summary, axis="updates", log=False, cursor=None, pinned=()):
    """The learning rates of a summary's curves and of pinned ones, as the text of an SVG; "" where there is none.

    summary: from `summarize`. axis: one of `AXES`. log: rates on a logarithmic scale, three powers of ten deep. cursor: an
    update of the run, marked by a line; the rates there stand in the legend, and those of any place are told to a pointer that
    rests there. pinned: [(label, curve)], from an earlier
    summary's curves. The warm-up is shaded and epochs are marked, as far as they are fewer than 60.
    """
    if not summary["curves"]:
        return ""
    shown = _shown(summary["curves"], pinned, axis)
    run = summary["curves"][0]
    end = max(curve["ends"][axis] for _, curve, _ in shown)
    high = (max(max(curve["rates"]) for _, curve, _ in shown) or summary["peak"]) * 1.05
    frame = _Frame(end, high / 1e3 if log else 0.0, high, log)
    place = None if cursor is None else run["passed"][axis][run["updates"].index(cursor)]
    words = _rates_in_words(summary, shown)
    parts, warmup = [], summary["warmup"]
    if warmup:
        edge = frame.x(min(_position(run, axis, warmup), run["ends"][axis]))
        parts.append(
            f'<rect x="{LEFT}" y="{frame.top}" width="{edge - LEFT:.1f}" height="{frame.bottom - frame.top}" fill="{SHADE}" '
            f'fill-opacity="0.25"/><text x="{LEFT}" y="{frame.top - 10}">warm-up, {warmup:,} updates</text>'
        )
    epochs = run["ends"]["epochs"]
    if 1 < epochs <= 60:
        per_epoch = run["ends"][axis] / epochs if axis != "updates" else summary["updates_per_epoch"]
        lines = "".join(
            f"M{frame.x(per_epoch * epoch)} {frame.top}V{frame.bottom}" for epoch in range(1, math.ceil(epochs))
        )
        parts.append(f'<path d="{lines}" stroke="currentColor" stroke-opacity="0.35" stroke-dasharray="1 3"/>')
        parts.append(f'<text x="{RIGHT}" y="{frame.top - 10}" text-anchor="end">dotted: epochs</text>')
    parts += frame.grid()
    for _, curve, look in reversed(shown):
        points = [*zip(curve["passed"][axis], curve["rates"], strict=True)]
        parts.append(frame.line(points, look))
    if place is not None:
        parts.append(
            f'<path d="M{frame.x(place)} {frame.top}V{frame.bottom}" stroke="currentColor" stroke-width="1.5"/>'
            f'<text x="{LEFT}" y="285">read at update {cursor:,}</text>'
        )
    labels = []
    for label, curve, look in shown:
        if place is not None:
            rate = rate_at(curve, axis, place)
            label = "ended: " + label if rate is None else f"{rate:.4g}: {label}"
        labels.append((label, look))
    parts += frame.axes(AXES[axis], "learning rate", whole=axis != "epochs")
    legend, height = _legend(labels, 302)
    parts += legend

    def read(position):
        found = [(label, rate_at(curve, axis, position)) for label, curve, _ in shown]
        there = f"{position:,.2f}" if axis == "epochs" else f"{int(position):,}"
        rates = ("ended" if rate is None else f"{rate:.4g}" for _, rate in found)
        return f"{AXIS_NAMES[axis]} {there}: " + "; ".join(
            f"{rate} {label}" for rate, (label, _) in zip(rates, found, strict=True)
        )

    parts += ["<g>", *frame.strips(read), "</g>"]
    return _svg("Learning rate as applied", words, parts, height)


def _shown(curves, pinned, axis):
    """The curves that have points, as (label, curve, look): the run first, then what was expected where it lies elsewhere on
    this axis, then pinned ones, then other trainers. A curve keeps its look whatever stands beside it."""
    run, others = curves[0], [one for one in curves[1:] if one["rates"]]
    shown = [(run["label"], run, 0)]
    for one in others:
        if one["kind"] == "expected" and (one["passed"][axis], one["rates"]) != (run["passed"][axis], run["rates"]):
            shown.append((one["label"], one, 1))
    shown += [(label, curve, 2 + index) for index, (label, curve) in enumerate(pinned)]
    others = [one for one in others if one["kind"] != "expected"]
    return shown + [(one["label"], one, 5 + index) for index, one in enumerate(others)]


def _position(curve, axis, update):
    """Where an update of a curve lies on an axis; updates that are not among its samples lie between their neighbours."""
    updates, places = [*curve["updates"], curve["ends"]["updates"]], [*curve["passed"][axis], curve["ends"][axis]]
    if update >= updates[-1]:
        return places[-1]
    right = next(index for index, one in enumerate(updates) if one >= update)
    if updates[right] == update:
        return places[right]
    share = (update - updates[right - 1]) / (updates[right] - updates[right - 1])
    return places[right - 1] + share * (places[right] - places[right - 1])


def _rates_in_words(summary, shown):
    found = []
    for label, curve, _ in shown:
        first, highest, last = curve["rates"][0], max(curve["rates"]), curve["rates"][-1]
        total = curve["ends"]["updates"]
        found.append(
            f"{label}: {total} updates; the rate is {first:.3g} at update 0, at most {highest:.3g}, {last:.3g} at the last"
        )
    warmup = f"Warm-up: {summary['warmup']} updates" if summary["warmup"] else "No warm-up"
    return "; ".join(found) + f". {warmup}."


def svg_memory(memory, use_8bit_adam=False):
    """What a training keeps, from `lora_kit.memory.memory`, as the text of an SVG: the base as a number, the rest as bars.

    Bars: the LoRA's weights, their gradients and Adam's state, in 32 and in 8 bits; the chosen one is bold and has a mark.
    """
    if memory is None:
        return ""
    parts, height = [], 132
    whole = memory["lora"] + memory["gradients"] + max(memory["adam_32"], memory["adam_8"])
    rows = (("32-bit Adam", memory["adam_32"]), ("8-bit Adam", memory["adam_8"]))
    for row, (name, adam) in enumerate(rows):
        left, y = float(LEFT + 34), 30 + 36 * row
        for look, part, size in (
            (0, "LoRA", memory["lora"]),
            (2, "gradients", memory["gradients"]),
            (3, "Adam's state", adam),
        ):
            width = (RIGHT - LEFT - 104) * size / whole
            colour = LOOKS[look][0]
            parts.append(
                f'<rect x="{left:.1f}" y="{y}" width="{width:.1f}" height="22" fill="{colour}" '
                f'fill-opacity="{0.35 + 0.2 * (look != 2)}" stroke="{colour}" stroke-width="1.5">'
                f"<title>{html.escape(f'{part}: {megabytes(size)}')}</title></rect>"
            )
            left += width
        mark = row == use_8bit_adam
        weight = ' font-weight="bold"' if mark else ""
        parts.append(
            f'<text x="{LEFT + 28}" y="{y + 15}" text-anchor="end"{weight}>{"▸ " if mark else ""}{name}</text>'
        )
        total = memory["lora"] + memory["gradients"] + adam
        parts.append(f'<text x="{left + 6:.1f}" y="{y + 15}"{weight}>{megabytes(total)}</text>')
    left = LEFT + 34
    names = (f"LoRA {megabytes(memory['lora'])}", f"gradients {megabytes(memory['gradients'])}", "Adam's state")
    for look, name in zip((0, 2, 3), names, strict=True):
        colour = LOOKS[look][0]
        parts.append(
            f'<rect x="{left}" y="106" width="12" height="12" fill="{colour}" fill-opacity="{0.35 + 0.2 * (look != 2)}" '
            f'stroke="{colour}"/><text x="{left + 17}" y="117">{name}</text>'
        )
        left += 40 + 8 * len(name)
    words = (
        f"LoRA {megabytes(memory['lora'])}, gradients {megabytes(memory['gradients'])}, Adam's state {megabytes(memory['adam_32'])} "
        f"in 32 bits and {megabytes(memory['adam_8'])} in 8"
    )
    parts.insert(
        0, f'<text x="{LEFT + 34}" y="18">what the LoRA adds to {megabytes(memory["base"])} of frozen UNet</text>'
    )
    return _svg("Memory", words, parts, height)


def megabytes(size):
    """Bytes in words, three digits: 448 B, 0.373 MB, 6.38 MB, 3.44 GB."""
    for unit, name in ((1e9, "GB"), (1e5, "MB"), (1e3, "kB")):
        if size >= unit:
            return f"{size / (1e6 if name == 'MB' else unit):.3g} {name}"
    return f"{size} B"


def svg_lines(curves, title, x_label, end, from_zero=False):
    """Several curves in one frame, as the text of an SVG. curves: [(label, [(x, y)])], where a y that is None or no number is
    left out; end: the x at the right edge; from_zero: the y axis begins there, not at the lowest y."""
    curves = [(label, [(x, y) for x, y in points if y is not None and math.isfinite(y)]) for label, points in curves]
    values = [y for _, points in curves for _, y in points]
    if not values:
        return ""
    low, high = 0.0 if from_zero else min(values), max(values)
    room = 0.05 * ((high - low) or abs(high) or 1.0)
    frame = _Frame(end, low if from_zero else low - room, high + room, False, bottom=180)
    parts = [*frame.grid()]
    for look, (label, points) in reversed(list(enumerate(curves))):
        parts.append(frame.line(points, look, 2, tip=label))
    parts += frame.axes(x_label, "")
    names = [(f"{label}: {points[-1][1]:.4g}", look) for look, (label, points) in enumerate(curves) if points]
    legend, height = _legend(names, 242)
    parts += legend
    words = "; ".join(name for name, _ in names)
    parts.append(f'<text x="{LEFT}" y="18">{html.escape(title)}</text>')
    return _svg(title, words, parts, height)


def html_heat_map(rows, columns, values, row_name, column_name, title):
    """A grid of numbers as an HTML table, coloured from light (lowest, best) to dark. values: {(row, column): number or None}."""
    numbers = [value for value in values.values() if value is not None]
    low, high = (min(numbers), max(numbers)) if numbers else (0.0, 0.0)
    lines = [f'<caption style="text-align: left; padding: 4px 0">{html.escape(title)}</caption>']
    head = "".join(f'<th scope="col" style="padding: 4px 10px">{column:g}</th>' for column in columns)
    lines.append(f'<tr><th style="padding: 4px 10px">{row_name} ↓ {column_name} →</th>{head}</tr>')
    for row in rows:
        cells = [f'<th scope="row" style="padding: 4px 10px; text-align: right">{row:g}</th>']
        for column in columns:
            value = values.get((row, column))
            if value is None:
                cells.append('<td style="padding: 4px 10px; text-align: center">…</td>')
                continue
            share = (value - low) / (high - low) if high > low else 0.0
            # Okabe and Ito's blue, mixed with white; the text is black or white, whichever is read better
            red, green, blue = (round(255 + (end - 255) * share) for end in (0, 68, 110))
            ink = "#ffffff" if share > 0.7 else "#000000"
            best = "★ " if value == low else ""
            cells.append(
                f'<td style="padding: 4px 10px; text-align: center; background: rgb({red},{green},{blue}); color: {ink}">'
                f"{best}{value:.4f}</td>"
            )
        lines.append(f"<tr>{''.join(cells)}</tr>")
    return f'<table style="border-collapse: collapse">{"".join(lines)}</table>'
