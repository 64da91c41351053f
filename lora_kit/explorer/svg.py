"""The frame of a picture as SVG text: places for numbers, axes, curves, a legend, and round numbers to label them.

Text and axes take the colour of the text around them, so light and dark pages both do. A curve has its colour, its dashes and
its name.
"""

import html
import math
import textwrap
from collections.abc import Iterable, Iterator, Sequence

from lora_kit.system.looks import LOOKS

FONT = 'font-family="DejaVu Sans, Verdana, sans-serif" font-size="12" fill="currentColor"'
WIDTH, LEFT, RIGHT = 576, 86, 550
LEGEND = 56  # letters in a line of it
MARKED = 40  # a curve of at most so many points has a dot at each


def ticks(high: float, count: int = 5, low: float = 0.0) -> list[float]:
    """Round numbers from `low` to at most `high`, about `count` of them.

    >>> ticks(1200)
    [0.0, 500.0, 1000.0]
    """
    rough = (high - low) / count
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(unit * factor for factor in (1, 2, 5, 10) if unit * factor >= rough * 0.999)
    return [index * step for index in range(math.ceil(low / step - 0.001), int(high / step * 1.001) + 1)]


def short(number: float) -> str:
    """A number as an axis shows it: 1200 as 1,200, 0.0001 as 0.0001, 2500000 as 2.5M."""
    for size, unit in ((1e9, "G"), (1e6, "M")):
        if abs(number) >= size:
            return f"{number / size:.4g}{unit}"
    return f"{number:,.0f}" if abs(number) >= 1000 or number == int(number) else f"{number:.3g}"


def megabytes(size: int) -> str:
    """Bytes in words, three digits: 448 B, 0.373 MB, 6.38 MB, 3.44 GB."""
    for unit, name in ((1e9, "GB"), (1e5, "MB"), (1e3, "kB")):
        if size >= unit:
            return f"{size / (1e6 if name == 'MB' else unit):.3g} {name}"
    return f"{size} B"


def thinned(points: list[tuple[float, float]], tolerance: float = 0.1) -> list[tuple[float, float]]:
    """Those of a curve's points whose straight joins pass all others within `tolerance`, upwards or downwards.

    >>> thinned([(0, 0.0), (1, 1.0), (2, 2.0), (3, 0.0)])
    [(0, 0.0), (2, 2.0), (3, 0.0)]
    """
    if len(points) < 3:
        return points
    corners, before = [points[0]], points[0]
    lowest, highest = -math.inf, math.inf  # slopes of a line from the latest corner that pass all points since
    for point in points[1:]:
        x, y = corners[-1]
        run = point[0] - x
        if run <= 0 or not lowest <= (point[1] - y) / run <= highest:
            if before is not corners[-1]:
                corners.append(before)
            x, y = before
            run, lowest, highest = point[0] - x, -math.inf, math.inf
        if run > 0:
            lowest = max(lowest, (point[1] - tolerance - y) / run)
            highest = min(highest, (point[1] + tolerance - y) / run)
        else:
            lowest, highest = math.inf, -math.inf  # straight up or down: the next point starts anew
        before = point
    return [*corners, before]


class Frame:
    """A plot's frame: numbers in, SVG text out.

    right_end: the number at the right edge, 0 being at the left. low, high: those at bottom and top. log: whether heights are
    powers. top, bottom: pixels from the top of the picture.
    """

    def __init__(
        self, right_end: float, low: float, high: float, log: bool = False, top: int = 30, bottom: int = 230
    ) -> None:
        self.end, self.low, self.high, self.log, self.top, self.bottom = right_end, low, high, log, top, bottom

    def x(self, position: float) -> float:
        """Pixels from the left of the picture."""
        return round(LEFT + (RIGHT - LEFT) * position / self.end, 1)

    def y(self, value: float) -> float:
        """Pixels from the top of the picture; values beyond the frame lie on its edge."""
        if self.log:
            share = math.log(max(value, self.low) / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return round(self.bottom - (self.bottom - self.top) * min(max(share, 0.0), 1.0), 1)

    def grid(self) -> Iterator[str]:
        """A faint line and a number at each round height."""
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

    def axes(self, x_label: str, y_label: str) -> Iterator[str]:
        """Both axes with their names, and marks along the lower one."""
        for place in ticks(self.end):
            yield (
                f'<path d="M{self.x(place)} {self.bottom}v5" stroke="currentColor"/>'
                f'<text x="{self.x(place)}" y="{self.bottom + 19}" text-anchor="middle">{short(place)}</text>'
            )
        middle = (self.top + self.bottom) / 2
        yield f'<path d="M{LEFT} {self.top}V{self.bottom}H{RIGHT}" fill="none" stroke="currentColor"/>'
        yield f'<text x="{(LEFT + RIGHT) / 2}" y="{self.bottom + 38}" text-anchor="middle">{x_label}</text>'
        yield f'<text transform="translate(13 {middle}) rotate(-90)" text-anchor="middle">{y_label}</text>'

    def line(self, points: Iterable[tuple[float, float]], look: int, width: float = 2.5) -> str:
        """A curve in the look of this number, with a dot at each point where they are few."""
        colour, dashes, _ = LOOKS[look % len(LOOKS)]
        placed = [(self.x(x), self.y(y)) for x, y in points]
        marked = len(placed) <= MARKED
        placed = placed if marked else thinned(placed)
        if not placed:
            return ""
        text = " ".join(f"{x},{y}" for x, y in placed)
        dash = f' stroke-dasharray="{dashes}"' if dashes else ""
        line = f'<polyline points="{text}" fill="none" stroke="{colour}" stroke-width="{width}" stroke-linejoin="round"{dash}/>'
        dots = (f'<circle cx="{x}" cy="{y}" r="3" fill="{colour}"/>' for x, y in placed if marked)
        return line + "".join(dots)


def legend(labels: Iterable[tuple[str, int]], top: int) -> tuple[list[str], int]:
    """Lines with their names, one under the other, from `top` on, and where they end. labels: (name, number of the look)."""
    parts, y = [], top
    for label, look in labels:
        colour, dashes, _ = LOOKS[look % len(LOOKS)]
        parts.append(
            f'<path d="M{LEFT} {y - 4}h34" stroke="{colour}" stroke-width="2.5" stroke-dasharray="{dashes or "none"}"/>'
        )
        for part in textwrap.wrap(label, LEGEND, break_on_hyphens=False) or [""]:
            parts.append(f'<text x="{LEFT + 42}" y="{y}">{html.escape(part)}</text>')
            y += 17
    return parts, y - 8


def svg(title: str, words: str, parts: Sequence[str], height: int) -> str:
    """The picture: its parts in an element that says in words what they show."""
    words, title = html.escape(words), html.escape(title)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
        f'style="max-width: 100%; height: auto" role="img" {FONT} aria-label="{title}: {words}">'
        f"<title>{title}</title><desc>{words}</desc>{''.join(parts)}</svg>"
    )
