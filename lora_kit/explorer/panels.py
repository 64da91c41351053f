"""The panels of the explorer's page as HTML text: each a function of a summary, or of the runs so far."""

import base64
import html
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lora_kit.explorer.charts import html_heat_map, svg_learning_rates, svg_lines, svg_memory
from lora_kit.explorer.svg import megabytes
from lora_kit.system.html import Html, html_table, page
from lora_kit.system.looks import COLOURS, SIGNS

GRID = "display: grid; gap: 8px 16px; grid-template-columns: repeat(auto-fit, minmax(min(100%, 30em), 1fr))"
COMMAND = (
    "white-space: pre-wrap; word-break: normal; overflow-wrap: anywhere; font-family: monospace; color: inherit; "
    "user-select: all; border: 1px solid; padding: 6px; margin: 0"
)
PICTURE = 92  # pixels of one picture in a row of them, and of the gap behind it


def linked(text: str) -> str:
    """A text as HTML, its addresses as links that show their last part."""
    pieces = re.split(r"(https://[^\s,]+[^\s,.])", text)  # every second one is an address
    return "".join(
        f'<a href="{html.escape(piece)}" target="_blank" rel="noopener" style="color: inherit">{html.escape(piece.rpartition("/")[2])}</a>'
        if index % 2 else html.escape(piece)
        for index, piece in enumerate(pieces)
    )  # fmt: skip


def hint_html(refusal: str | None = None) -> str:
    """What stands under a knob: why what it was given was not taken; "" where nothing was refused."""
    if not refusal:
        return ""
    words = f"<b>{SIGNS['error']} {html.escape(refusal)}</b>"
    return f'<div role="status" style="text-align: right; line-height: 1.4; white-space: normal">{words}</div>'


def notes_html(summary: Mapping[str, Any]) -> str:
    """What each of the chosen trainers does in this run, and what is to be known of it."""
    notes = [
        f"<li><b>{html.escape(curve['label'])}.</b> {linked(curve['note'])}</li>"
        for curve in summary["curves"]
        if curve["note"]
    ]
    return page(f'<ul style="padding-left: 1.2em; margin: 4px 0">{"".join(notes)}</ul>') if notes else ""


def picture_html(
    summary: Mapping[str, Any],
    axis: str = "updates",
    log: bool = False,
    cursor: int | None = None,
    pinned: Sequence[tuple[str, Mapping[str, Any]]] = (),
) -> str:
    """The curves, and in words what processes and accumulation do to them."""
    sentences = "".join(f"<li>{html.escape(sentence)}</li>" for sentence in summary["sentences"])
    picture = svg_learning_rates(summary, axis, log, cursor, pinned)
    return page(picture, f"<ul>{sentences}</ul>" if sentences else "")


def findings_html(summary: Mapping[str, Any]) -> str:
    """The doctor's errors and warnings in words; in a line, what it finds fine."""
    lines = []
    for finding in summary["findings"]:
        status = finding["status"]
        if status == "fine":
            continue
        cure = f" <i>Cure: {html.escape(finding['cure'])}.</i>" if finding["cure"] else ""
        text = html.escape(f"{finding['value']}: {finding['reason']}.")
        lines.append(f"<li><b>{SIGNS[status]} {status}, {html.escape(finding['check'])}.</b> {text}{cure}</li>")
    if not lines:
        lines = [f"<li><b>{SIGNS['error']} error.</b> {html.escape(error)}</li>" for error in summary["errors"]]
    fine = dict.fromkeys(finding["check"] for finding in summary["findings"] if finding["status"] == "fine")
    checked = f"<div>{SIGNS['fine']} fine: {html.escape(', '.join(fine))}</div>" if fine else ""
    listed = f'<ul style="list-style: none; padding-left: 0; margin: 0">{"".join(lines)}</ul>' if lines else ""
    return page(listed, checked)


def steps_html(summary: Mapping[str, Any]) -> str:
    """The arithmetic of the steps, and what Adam's settings mean."""
    rows = [*summary["steps"], *summary["optimizer"]]
    return page(html_table(rows, left=(-1,), wrap=(-1,))) if rows else ""


def memory_html(memory: Mapping[str, Any] | None, use_8bit_adam: bool = False) -> str:
    """Bars, and which tensors 8-bit Adam leaves in 32 bits. memory: as of `lora_kit.memory.memory`, or None."""
    if memory is None:
        return page("The shapes of this model are not known here.")
    words = (
        f"{memory['small_tensors']:,} of the LoRA's {memory['tensors']:,} tensors ({memory['parameters']:,} numbers) have "
        f"fewer than 4,096 elements: 8-bit Adam keeps their state in 32 bits. It {'saves' if use_8bit_adam else 'would save'} "
        f"{megabytes(memory['adam_32'] - memory['adam_8'])} of {megabytes(memory['adam_32'])}. Activations, VAE and text "
        "encoder are not counted."
    )
    rows = [
        (" x ".join(map(str, shape)), count, math.prod(shape), each_32, each_8, 32 if each_8 == each_32 - 4 else 8)
        for shape, count, each_32, each_8 in sorted(memory["rows"], key=lambda row: -math.prod(row[0]))
    ]
    head = ("shape", "tensors", "elements", "bytes of state of each, 32-bit", "8-bit Adam", "bits there")
    shapes = f"<details><summary>Tensor by tensor</summary>{html_table(rows, head)}</details>"
    return page(svg_memory(memory, use_8bit_adam), f"<div>{words}</div>", shapes)


def command_html(commands: Mapping[str, str], kind: str, lacks: Sequence[str] = ()) -> str:
    """The text to copy; a click selects all of it. A line never ends within a flag. Where there is none, why.

    commands: those of a summary that can run. kind: the one that is shown. lacks: what diffusers' script would need for this run.
    """
    if not commands:
        return page("No command while there is an error: it would stop with it.")
    if kind not in commands:
        return page(f"diffusers' script can't run this: {html.escape('; '.join(lacks))}.")
    text = html.escape(commands[kind])
    if kind in ("accelerate", "diffusers"):
        flag = r"(?<!\S)--\w+(?: (?!-)\S{1,30}(?!\S))?"
        text = re.sub(flag, r'<span style="white-space: nowrap">\g<0></span>', text)
    return page(f'<pre style="{COMMAND}">{text}</pre>')


def running_html(progress: Mapping[str, Any], differences: str = "") -> str:
    """Where the runs are, in a line, what failed, and what is otherwise than on the page. progress: of `Trials.progress`."""
    trials = progress["trials"]
    states = [trial["state"] for trial in trials.values()]
    done = sum(len(trial["updates"]) for trial in trials.values())
    total = sum(trial["total_updates"] for trial in trials.values())
    share = done / total if total else 0.0
    bar = (
        '<div role="progressbar" aria-label="updates of all runs" aria-valuemin="0" aria-valuemax="100" '
        f'aria-valuenow="{100 * share:.0f}" style="border: 1px solid; width: 20em; height: 0.8em; display: inline-block">'
        f'<div style="background: {COLOURS[0]}; height: 100%; width: {share:.1%}"></div></div>'
    )
    counts = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
    errors = [
        f"<div>{SIGNS['error']} {html.escape(name)}: {html.escape(trial['error'])}</div>"
        for name, trial in trials.items()
        if trial["error"]
    ]
    about = f'<div style="font-style: italic">{html.escape(differences)}</div>' if differences else ""
    return page(bar, f" {done} of {total} updates; runs: {counts}", *errors, about)


def runs_html(trials: Mapping[str, Any], grid: tuple[Sequence[int], Sequence[float]] | None = None) -> str:
    """Curves, pictures and, for a sweep, the heat map of the runs so far.

    trials: as of `Trials.progress`. grid: a sweep's ranks and learning rates.
    """
    ends = [
        len(trial["updates"]) if trial["state"] == "stopped" else trial["total_updates"] for trial in trials.values()
    ]
    end = max(ends, default=1) or 1
    charts = [
        svg_lines(curves, title, "optimizer updates", end, from_zero)
        for title, curves, from_zero in (
            (
                "loss on fixed pictures, noise and timesteps: comparable",
                [(name, trial["fixed"]) for name, trial in trials.items()],
                False,
            ),
            (
                "training loss: other pictures, noise and timesteps in each update",
                _series(trials, "loss"),
                False,
            ),
            ("learning rate", _series(trials, "lr"), True),
            ("norm of the gradient, before clipping", _series(trials, "grad_norm"), True),
        )
    ]
    frames = f'<div style="{GRID}">{"".join(f"<div>{chart}</div>" for chart in charts if chart)}</div>'
    if grid:
        return page("<h4>The latest sweep</h4>", _sweep(trials, *grid), frames)
    return page("<h4>Runs, one over the other</h4>", pictures_html(trials), frames)


def _sweep(trials, ranks, rates):
    """The heat map of what the runs that are done have learned."""
    last = {
        name: trial["fixed"][-1][1] for name, trial in trials.items() if trial["state"] == "done" and trial["fixed"]
    }
    values = {(rank, rate): last.get(f"learning_rate {rate}, rank {rank}") for rank in ranks for rate in rates}
    title = "loss on fixed pictures, noise and timesteps after each run (★: the lowest)"
    return html_heat_map(ranks, rates, values, "rank", "learning_rate", title)


def _series(trials, key):
    return [(name, zip(trial["updates"], trial[key], strict=True)) for name, trial in trials.items()]


def pictures_html(trials: Mapping[str, Any]) -> str:
    """What the runs draw, a row each: the style's own pictures, the base model's, then every run's; "" where there are none.

    A file that is gone meanwhile is left out.
    """
    from lora_kit.explorer.trials import (
        PROMPTS,
    )  # only where there are runs: its imports take half as long as the page's

    def picture(data, words):
        alt = html.escape(f"{', '.join(PROMPTS)}: {words}")
        style = f"display: block; width: {PICTURE * len(PROMPTS)}px; max-width: none"
        return Html(f'<img alt="{alt}" src="data:image/png;base64,{data}" style="{style}">')

    samples = [(name, done, path) for name, trial in trials.items() for done, path in trial["samples"]]
    rows = {}  # what several runs share stands once
    for path in (trial["target"] for trial in trials.values() if trial.get("target")):
        rows.setdefault(_content(path), "the goal: the style's own pictures")
    for _, done, path in samples[:1]:
        if done == 0:
            rows.setdefault(_content(path), "the base model, before training")
    strips = [(data, words) for data, words in rows.items()]
    strips += [(_content(path), f"{name}, after {done} updates") for name, done, path in samples if done]
    rows = [(picture(data, words), words) for data, words in strips if data]
    if not rows:
        return ""
    name = f"display: inline-block; width: {PICTURE}px; font-weight: normal; text-align: left"
    head = Html("".join(f'<span style="{name}">{html.escape(prompt)}</span>' for prompt in PROMPTS))
    title = "What is drawn for words that no run trains on, with the same noise each time"
    table = html_table(rows, (head, ""), left=(1,), wrap=(1,))
    return f'<div style="padding: 8px 0 4px">{title}</div>{table}'


def _content(path):
    """A picture's file as base64, or None where it is gone."""
    try:
        return base64.b64encode(Path(path).read_bytes()).decode()
    except OSError:
        return None
