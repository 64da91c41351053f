"""The atlas: what LoRAs of the embedded model draw, and their losses, over rate, rank, schedule, targets and updates.

What is shown belongs to the nearest run that was really made, and that run is named; see `lora_kit.explorer.atlas_runs`.
"""

import base64
import functools
import html
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lora_kit.config import check_setting
from lora_kit.explorer.atlas_runs import FILES, NAMES, Place, name_of, place_of, read_atlas, words_of
from lora_kit.explorer.svg import LEFT, Frame, legend, svg
from lora_kit.system.checks import shown, whole_number
from lora_kit.system.html import page
from lora_kit.system.looks import SIGNS

OWN = "embedded"  # the model that all of it is of
IN_ROW = 3  # pictures side by side on a page, at the least
WINDOW = "position: relative; overflow: hidden; aspect-ratio: {} / 1; background: #ffffff"
TAG = "position: absolute; left: 0; top: 0; padding: 0 5px; font-size: 11px; line-height: 16px; background: #ffffffd9; color: #333333"
COLUMNS = "display: grid; grid-template-columns: repeat({}, minmax(0, 1fr)); text-align: center; font-size: 12px"
CHIPS = {  # the sign and the colour of a name
    "base": ("○", "#556170"), "too low": ("▽", "#556170"), "right": (SIGNS["fine"], "#00785a"),
    "learned by heart": (SIGNS["warning"], "#8a5300"), "broken": (SIGNS["error"], "#b3261e"),
}  # fmt: skip
HERE, NO_MARK, HEAD = "◉", "\xa0", "font-weight: normal; text-align: center; padding: 0"
BLUE, ORANGE = (0, 114, 178), (213, 94, 0)  # Okabe and Ito's


class Atlas:
    """What a notebook shows of a place of the atlas: the pictures and the map. place: as of `nearest`; name: what one sees."""

    def __init__(self, settings: Mapping[str, Any], updates: int, place: Place) -> None:
        self.settings, self.updates, self.place, self.name = settings, updates, place, place.name

    def __repr__(self) -> str:
        return f"<Atlas: {self.place.words}: {self.name}>"

    def _repr_html_(self):
        return atlas_html(self.settings, self.updates) + map_html(self.settings, self.updates)


def atlas(updates: int = 400, **settings: Any) -> Atlas:
    """What a LoRA draws that was really trained with nearly these settings, and the map of losses around it, without training.

    settings: of `TrainingConfig`'s fields learning_rate, rank, lr_scheduler and target_modules; those left out are notebook
    05's: 2e-3, 16, "cosine" and every kind of module. updates: how many are done, up to 400. Raises ValueError for a value that
    no run could have and where no atlas is packed, TypeError for another name.
    """
    stored = read_atlas()
    if stored is None:
        raise ValueError(f"{FILES} holds no atlas: run python scripts/train_atlas.py, then again with --pack")
    start = dict(learning_rate=2e-3, rank=16, lr_scheduler="cosine", target_modules=stored["targets"]["everything"])
    for name in settings:
        if name not in start:
            raise TypeError(f"{shown(name)} is not one of {', '.join(start)}: the atlas has no other axes")
    given = {name: check_setting(name, value) for name, value in settings.items()}
    settings, updates = start | given, whole_number("updates", updates, 0)
    return Atlas(settings, updates, place_of(settings, updates, stored))


def atlas_html(settings: Mapping[str, Any], updates: int, source: str = "", folder: Path = FILES) -> str:
    """What the nearest run draws, below the goal, and its name; "" where no atlas is packed.

    settings: a dict of `TrainingConfig` fields with those that `place_of` reads. updates: how many are done. source: where a
    page finds the atlas's pictures, an address that ends with "/"; left out, they stand in the text.
    """
    stored = read_atlas(folder)
    if stored is None:
        return ""
    place, prompts = place_of(settings, updates, stored), stored["prompts"]
    run, stage = place.run, place.stage
    drawn = f"the LoRA after {place.updates:,} updates" if stage else "the base model, before the first update"
    row_of = IN_ROW if source else len(prompts)  # what stands in the text is to stand there once

    def window(kind, name, words, first, row=0):
        """Some pictures of a strip, or of a row of a run's, which is a picture as wide as six."""
        address = source + name if source else f"data:image/webp;base64,{_content(folder / name)}"
        wide, shift = 100 * len(prompts) / row_of, 100 * first / row_of
        look = f"position: absolute; left: -{shift:g}%; top: -{100 * row}%; width: {wide:g}%; max-width: none; height: auto; margin: 0"
        alt = html.escape(f"{', '.join(prompts[first : first + row_of])}: {words}")
        image = f'<img alt="{alt}" src="{html.escape(address)}" style="{look}">'
        return f'<div class="lora-kit-{kind}" style="{WINDOW.format(row_of)}">{image}<span aria-hidden="true" style="{TAG}">{kind}</span></div>'

    def block(first):
        """Some words, what they are to look like, and below it how they are drawn."""
        names = "".join(f"<b>{html.escape(prompt)}</b>" for prompt in prompts[first : first + row_of])
        ended = f'<div style="border: 1px dashed; padding: 8px">{SIGNS["error"]} No picture: the run had ended before.</div>'
        lora = window("drawn", run["sprite"], drawn, first, stage) if stage < run["pictures"] else ended
        goal = window("goal", stored["goal"], "the style's own pictures", first)
        look = f"flex: 1 1 {70 * row_of}px; max-width: {160 * row_of}px"
        return f'<div style="{look}"><div style="{COLUMNS.format(row_of)}">{names}</div>{goal}{lora}</div>'

    sign, colour = CHIPS[place.name]
    if settings.get("pretrained_model_name_or_path", OWN) != OWN:  # nothing is known of another model
        sign, colour = f"{OWN} model:", CHIPS["base"][1]
    chip = f"display: inline-block; padding: 1px 12px; border-radius: 99px; background: {colour}; color: #ffffff; font-weight: bold"
    blocks = "".join(map(block, range(0, len(prompts), row_of)))
    return page(
        f'<div><span class="lora-kit-name" style="{chip}">{sign} {place.name}</span> {NAMES[place.name]}</div>',
        f'<div style="display: flex; flex-wrap: wrap; gap: 4px; margin: 6px 0; max-width: 964px">{blocks}</div>',
        _about(place, settings),
    )


@functools.lru_cache(maxsize=64)
def _content(path):
    return base64.b64encode(path.read_bytes()).decode()


def _about(place, settings):
    """The run's own settings, and what was asked for otherwise."""
    lines = [f"{'The nearest run made' if place.differs else 'A run that was made'}: {place.words}."]
    if place.differs:
        lines[0] += f" What you ask for differs: {'; '.join(place.differs)}."
    if (model := settings.get("pretrained_model_name_or_path", OWN)) != OWN:
        lines.insert(0, f"The small embedded model drew these, not {model}, whose rates are others.")
    if place.run["error"]:
        lines.append(f"{SIGNS['error']} It ended by itself: {place.run['error']}")
    return "".join(f'<div style="font-size: 12px">{html.escape(line)}</div>' for line in lines)


def _losses(place, stored):
    """The run's losses in words, and those of its other seeds."""
    run, stage = place.run, place.stage
    line = f"Held-out loss {_loss(run['fixed'][stage])} (the base's {_loss(run['fixed'][0])}), loss on training pictures {_loss(run['training'][stage])}."
    seeds = [_loss(other["fixed"][stage]) for other in stored["runs"] if words_of(other) == words_of(run)]
    return line + (f" The held-out losses of {len(seeds)} seeds: {', '.join(seeds)}." if len(seeds) > 1 else "")


def _loss(value):
    return "no number" if value is None else f"{value:.3f}"


def _chart(run, stage):
    """Both losses of a run, and where in it one is."""
    curves = {"held-out loss": run["fixed"], "loss on training pictures": run["training"]}
    high = 2 * run["fixed"][0]
    frame = Frame(run["updates"][-1], 0.0, high, bottom=150)
    x = frame.x(run["updates"][stage])
    parts = [f'<path d="M{x} {frame.top}V{frame.bottom}" stroke="currentColor" stroke-width="2"/>', *frame.grid()]
    labels = []
    for look, (label, losses) in enumerate(curves.items()):
        points = [(update, loss) for update, loss in zip(run["updates"], losses, strict=True) if loss is not None]
        parts.append(frame.line(points, look))
        labels.append((f"{label}: {_loss(losses[stage])}", look))
    beyond = any(loss > high for losses in curves.values() for loss in losses if loss is not None)
    title = "Losses of this run" + ", which go on above the edge" * beyond
    parts.append(f'<text x="{LEFT}" y="18">{title}</text>')
    names, height = legend(labels, 212)
    words = "; ".join(f"{label}: {', '.join(map(_loss, losses))}" for label, losses in curves.items())
    words += f", after {', '.join(map(str, run['updates']))} updates"
    return svg(title, words, [*parts, *frame.axes("optimizer updates", "loss"), *names], height)


def map_html(settings: Mapping[str, Any], updates: int, folder: Path = FILES) -> str:
    """The held-out losses over rate and rank, with the place of `atlas_html` marked, as a table, and that run's own losses as a
    chart; "" where no atlas is packed.

    Each cell of a run has its rate and rank as data-rate and data-rank, so that a skin can turn the knobs to them.
    """
    stored = read_atlas(folder)
    if stored is None:
        return ""
    place = place_of(settings, updates, stored)
    same = [
        run for run in stored["runs"]
        if run["sprite"] and all(run[name] == place.run[name] for name in ("lr_scheduler", "targets"))
    ]  # fmt: skip
    losses = [run["fixed"][place.stage] for run in same if run["fixed"][place.stage] is not None]
    best, base = min(losses, default=None), place.run["fixed"][0]
    runs = {(run["rank"], run["learning_rate"]): run for run in same}
    ranks, rates = sorted({rank for rank, _ in runs}, reverse=True), sorted({rate for _, rate in runs})

    def cell(rank, rate):
        run = runs.get((rank, rate))
        return "<td>…</td>" if run is None else _cell(run, place, best, base)

    head = "".join(f'<th scope="col" style="{HEAD}">{_short(rate)}</th>' for rate in rates)
    rows = "".join(
        f'<tr><th scope="row" style="{HEAD}">{rank}</th>{"".join(cell(rank, rate) for rate in rates)}</tr>'
        for rank in ranks
    )
    after = f"after {place.updates:,} updates, {place.run['lr_scheduler']}, {place.run['targets']}"
    title = f"Held-out loss {after}: rank ↓, learning_rate →"
    table = "width: 100%; table-layout: fixed; border-collapse: separate; border-spacing: 2px; font-size: 12px"
    marks = f"{HERE} you are here; ★ the lowest; the lighter the lower, orange above the base's {_loss(base)}; {SIGNS['error']} no number any more."
    made = stored["made_with"]["settings"]
    key = (
        f"Every run: the embedded model on the style {made['style']}, {made['train_batch_size']} pictures an update, no warm-up, "
        f"{made['max_train_steps']} updates planned."
    )
    chart = f"<summary>The losses of this run</summary>{_chart(place.run, place.stage)}<div>{html.escape(key)}</div>"
    return page(
        f'<div style="max-width: 576px; font-size: 12px"><table style="{table}"><caption style="text-align: left; caption-side: top">'
        f"{html.escape(title)}</caption><thead><tr><td></td>{head}</tr></thead><tbody>{rows}</tbody></table>"
        f"<div>{html.escape(marks)}</div><div>{html.escape(_losses(place, stored))}</div><details>{chart}</details></div>"
    )


def _short(rate):
    """A rate in few letters: 1e-5, 0.05 as 5e-2."""
    digits, power = f"{rate:e}".split("e")
    return f"{float(digits):g}e{int(power)}"


def _cell(run, place, best, base):
    """A run in the map."""
    loss, here = run["fixed"][place.stage], run is place.run
    name = name_of(run, place.stage)
    text = (
        SIGNS["error"] if loss is None else f"{loss:.2f}" if loss < 10 else f"{loss:.0f}" if loss < 1000 else "&gt;999"
    )
    colour = BLUE if loss is not None and loss <= base else ORANGE
    share = 1.0 if loss is None else (loss - best) / ((base - best) or 1.0) if loss <= base else loss / base - 0.7
    red, green, blue = (round(255 + (end - 255) * min(max(share, 0.0), 1.0)) for end in colour)
    ink = "#000000" if 0.2126 * red**2.2 + 0.7152 * green**2.2 + 0.0722 * blue**2.2 > 0.18 * 255**2.2 else "#ffffff"
    marks = HERE * here + "★" * (loss is not None and loss == best)
    words = (
        f"learning_rate {run['learning_rate']:g}, rank {run['rank']}: {_loss(loss)}, {name}" + ", you are here" * here
    )
    look = f"background: rgb({red},{green},{blue}); color: {ink}; text-align: center; padding: 2px 0; line-height: 1.3; overflow: hidden"
    look += "; outline: 2px solid; outline-offset: -2px" if here else ""
    current = ' aria-current="true"' if here else ""
    return (
        f'<td data-rate="{run["learning_rate"]!r}" data-rank="{run["rank"]}" title="{html.escape(words)}"{current} style="{look}">'
        f"<div>{text}</div><div>{marks or NO_MARK}</div></td>"
    )
