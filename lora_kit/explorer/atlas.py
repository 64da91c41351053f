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

HERE, NO_MARK, HEAD = "◉", "\xa0", "font-weight: normal; text-align: center; padding: 0"
BLUE, RED = (0, 114, 178), (213, 94, 0)  # Okabe and Ito's


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
    """What the nearest run draws, below the goal, its name and its losses; "" where no atlas is packed.

    settings: a dict of `TrainingConfig` fields with those that `place_of` reads. updates: how many are done. source: where a
    page finds the atlas's pictures, an address that ends with "/"; left out, they stand in the text.
    """
    stored = read_atlas(folder)
    if stored is None:
        return ""
    place, prompts = place_of(settings, updates, stored), stored["prompts"]

    def picture(name, words, row=0):
        address = source + name if source else f"data:image/webp;base64,{_content(folder / name)}"
        look = f"position: absolute; left: 0; top: -{100 * row}%; width: 100%; max-width: none; height: auto; margin: 0"
        alt = html.escape(f"{', '.join(prompts)}: {words}")
        image = f'<img alt="{alt}" src="{html.escape(address)}" style="{look}">'
        return f'<div>{html.escape(words)}</div><div style="{_strip(prompts)}">{image}</div>'

    names = "".join(f"<span>{html.escape(prompt)}</span>" for prompt in prompts)
    columns = f"display: grid; grid-template-columns: repeat({len(prompts)}, minmax(0, 1fr)); text-align: center; align-items: end"
    if place.stage < place.run["pictures"]:
        words = (
            f"the LoRA, after {place.updates:,} updates" if place.updates else "the base model, before the first update"
        )
        lora = picture(place.run["sprite"], words, place.stage)
    else:
        lora = f'<div style="border: 1px dashed; padding: 8px">{SIGNS["error"]} No picture: the run had ended before.</div>'
    parts = [
        f"<div><b>{place.name}</b>: {NAMES[place.name]}</div>",
        f'<div style="{columns}; font-size: 12px">{names}</div>',
        picture(stored["goal"], "the goal: the style's own pictures"),
        lora,
        _about(place, stored),
        _chart(place.run, place.stage),
    ]
    return page(f'<div style="max-width: 576px">{"".join(parts)}</div>')


def _strip(prompts):
    return f"position: relative; overflow: hidden; aspect-ratio: {len(prompts)} / 1; background: #ffffff"


@functools.lru_cache(maxsize=64)
def _content(path):
    return base64.b64encode(path.read_bytes()).decode()


def _about(place, stored):
    """The run's own settings and losses, and what was asked for otherwise."""
    run, stage = place.run, place.stage
    losses = f"Held-out loss {_loss(run['fixed'][stage])}"
    losses += f" (the base's {_loss(run['fixed'][0])}), loss on training pictures {_loss(run['training'][stage])}."
    seeds = [_loss(other["fixed"][stage]) for other in stored["runs"] if words_of(other) == words_of(run)]
    if len(seeds) > 1:
        losses += f" The held-out losses of {len(seeds)} seeds: {', '.join(seeds)}."
    made = "This run was made" if not place.differs else "The nearest run that was made"
    lines = [f"{made}: {place.words}.", losses]
    if place.differs:
        lines.insert(1, f"What you ask for differs: {'; '.join(place.differs)}.")
    if run["error"]:
        lines.append(f"{SIGNS['error']} It ended by itself: {run['error']}")
    return "".join(f"<div>{html.escape(line)}</div>" for line in lines)


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
    """The held-out losses over rate and rank, with the place of `atlas_html` marked, as a table; "" where no atlas is packed.

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
    title = f"Held-out loss after {place.updates:,} updates, {place.run['lr_scheduler']}, {place.run['targets']}: rank ↓, learning_rate →"
    table = "width: 100%; max-width: 576px; table-layout: fixed; border-collapse: separate; border-spacing: 2px; font-size: 12px"
    settings = stored["made_with"]["settings"]
    key = (
        f"{HERE} you are here; ★ the lowest; the lighter the lower, and red where it is above the base's {_loss(base)}; "
        f"{SIGNS['error']} no number any more. Every run: the embedded model on the style {settings['style']}, "
        f"{settings['train_batch_size']} pictures an update, no warm-up, {settings['max_train_steps']} updates planned."
    )
    return page(
        f'<table style="{table}"><caption style="text-align: left; caption-side: top">{html.escape(title)}</caption>'
        f"<thead><tr><td></td>{head}</tr></thead><tbody>{rows}</tbody></table>"
        f'<div style="font-size: 12px; max-width: 576px">{html.escape(key)}</div>'
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
    colour = BLUE if loss is not None and loss <= base else RED
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
