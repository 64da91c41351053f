"""The panels of the explorer's page as HTML text: each a function of a summary, or of the runs so far."""

import base64
import html
import math
import re
from pathlib import Path

from lora_kit import drawing

GRID = "display: grid; gap: 8px 16px; grid-template-columns: repeat(auto-fit, minmax(min(100%, 30em), 1fr))"


def linked(text):
    """A text as HTML, its addresses as links that show their last part."""
    found = re.split(r"(https://[^\s,]+[^\s,.])", text)
    return "".join(
        f'<a href="{html.escape(one)}" target="_blank" rel="noopener" style="color: inherit">{html.escape(one.rpartition("/")[2])}</a>'
        if index % 2 else html.escape(one)
        for index, one in enumerate(found)
    )  # fmt: skip


def hint_html(typed=None, ignored=""):
    """What stands under a knob: why what was typed was not taken, or why the knob does nothing here."""
    words = f"<b>✗ {html.escape(typed)}</b>" if typed else f"<i>{html.escape(ignored)}</i>" if ignored else ""
    return (
        f'<div role="status" style="text-align: right; line-height: 1.4; white-space: normal">{words}</div>'
        if words
        else ""
    )


def notes_html(summary):
    """What each of the chosen trainers does in this run, and what is to be known of it."""
    notes = [
        f"<li><b>{html.escape(curve['label'])}.</b> {linked(curve['note'])}</li>"
        for curve in summary["curves"]
        if curve["note"]
    ]
    return drawing.page(f'<ul style="padding-left: 1.2em; margin: 4px 0">{"".join(notes)}</ul>') if notes else ""


def picture_html(summary, axis="updates", log=False, cursor=None, pinned=()):
    """The curves, and in words what processes and accumulation do to them."""
    said = [f"<li>{html.escape(one)}</li>" for one in summary["said"]]
    picture = drawing.svg_learning_rates(summary, axis, log, cursor, pinned)
    return drawing.page(picture, f"<ul>{''.join(said)}</ul>" if said else "")


def findings_html(summary):
    """The doctor's errors and warnings in words; one line where there are none."""
    signs = {"error": "✗", "warning": "!"}
    found = [one for one in summary["findings"] if one["status"] in signs]
    lines = []
    for one in found:
        cure = f" <i>Cure: {html.escape(one['cure'])}.</i>" if one["cure"] else ""
        text = html.escape(f"{one['value']}: {one['reason']}.")
        lines.append(
            f"<li><b>{signs[one['status']]} {one['status']}, {html.escape(one['check'])}.</b> {text}{cure}</li>"
        )
    if not lines and summary["errors"]:
        lines = [f"<li><b>✗ error.</b> {html.escape(one)}</li>" for one in summary["errors"]]
    fine = [one["check"] for one in summary["findings"] if one["status"] == "fine"]
    checked = f"<div>✓ fine: {html.escape(', '.join(dict.fromkeys(fine)))}</div>" if fine else ""
    listed = f'<ul style="list-style: none; padding-left: 0; margin: 0">{"".join(lines)}</ul>' if lines else ""
    return drawing.page(listed, checked)


def steps_html(summary):
    """The arithmetic of the steps, and what Adam's settings mean."""
    return drawing.page(drawing.table([*summary["steps"], *summary["optimizer"]])) if summary["steps"] else ""


def memory_html(kept, use_8bit_adam=False):
    """Bars, and which tensors 8-bit Adam leaves in 32 bits."""
    if kept is None:
        return drawing.page("The shapes of this model are not known here.")
    small = (
        f"{kept['small_tensors']:,} of the LoRA's {kept['tensors']:,} tensors ({kept['parameters']:,} numbers) have fewer than "
        f"4,096 elements: 8-bit Adam keeps their state in 32 bits. It {'saves' if use_8bit_adam else 'would save'} "
        f"{drawing.megabytes(kept['adam_32'] - kept['adam_8'])} of {drawing.megabytes(kept['adam_32'])}."
    )
    left_out = "Activations, VAE and text encoder are not counted."
    rows = [
        (" x ".join(map(str, shape)), count, math.prod(shape), each_32, each_8, 32 if each_8 == each_32 - 4 else 8)
        for shape, count, each_32, each_8 in sorted(kept["rows"], key=lambda row: -math.prod(row[0]))
    ]
    head = ("shape", "tensors", "elements", "bytes of state of each, 32-bit", "8-bit Adam", "bits there")
    shapes = f"<details><summary>Tensor by tensor</summary>{drawing.table(rows, head)}</details>"
    return drawing.page(drawing.svg_memory(kept, use_8bit_adam), f"<div>{small} {left_out}</div>", shapes)


def command_html(summary, kind):
    """The text to copy; a click selects all of it. A line never ends within a flag."""
    if not summary["commands"]:
        return drawing.page("No command while there is an error: it would stop with it.")
    style = "white-space: pre-wrap; word-break: normal; overflow-wrap: anywhere; font-family: monospace; color: inherit; user-select: all; border: 1px solid; padding: 6px; margin: 0"
    text = html.escape(summary["commands"][kind])
    if kind in ("accelerate", "diffusers"):
        text = re.sub(
            r"(?<!\S)--\w+(?: (?!--)\S{1,30}(?!\S))?", r'<span style="white-space: nowrap">\g<0></span>', text
        )
    return drawing.page(f'<pre style="{style}">{text}</pre>')


def running_html(progress, said=""):
    """Where the runs are, in a line, what is otherwise than on the page, and what failed."""
    states = [one["state"] for one in progress["trials"].values()]
    done = sum(len(one["updates"]) for one in progress["trials"].values())
    total = sum(one["total_updates"] for one in progress["trials"].values())
    share = done / total if total else 0.0
    bar = (
        f'<div role="progressbar" aria-valuenow="{share:.0%}" style="border: 1px solid; width: 20em; height: 0.8em; '
        f'display: inline-block"><div style="background: {drawing.LOOKS[0][0]}; height: 100%; width: {share:.1%}"></div></div>'
    )
    counts = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
    errors = [
        f"<div>✗ {html.escape(name)}: {html.escape(one['error'])}</div>"
        for name, one in progress["trials"].items()
        if one["error"]
    ]
    about = f'<div style="font-style: italic">{html.escape(said)}</div>' if said else ""
    return drawing.page(bar, f" {done} of {total} updates; runs: {counts}", *errors, about)


def runs_html(trials, grid=None):
    """Curves, pictures and, for a sweep, the heat map of the runs so far. trials: as of `Trials.progress`."""
    ends = [len(one["updates"]) if one["state"] == "stopped" else one["total_updates"] for one in trials.values()]
    end = max(ends, default=1) or 1
    parts = [f"<h4>{'The latest sweep' if grid else 'Runs, one over the other'}</h4>"]
    if grid:
        ranks, rates = grid
        last = {
            (rank, rate): next(
                (one["fixed"][-1][1] for name, one in trials.items() if name == f"learning_rate {rate}, rank {rank}" and one["state"] == "done"),
                None,
            )
            for rank in ranks
            for rate in rates
        }  # fmt: skip
        title = "loss on fixed pictures, noise and timesteps after each run (★: the lowest)"
        parts.append(drawing.html_heat_map(ranks, rates, last, "rank", "learning_rate", title))
    lines = {
        "loss on fixed pictures, noise and timesteps: comparable": [
            (name, one["fixed"]) for name, one in trials.items()
        ],
        "training loss: other pictures, noise and timesteps in each update": _series(trials, "loss"),
        "learning rate": _series(trials, "lr"),
        "norm of the gradient, before clipping": _series(trials, "grad_norm"),
    }
    curves = [
        drawing.svg_lines(curves, title, "optimizer updates", end, from_zero="loss" not in title)
        for title, curves in lines.items()
    ]
    frames = "".join(f"<div>{one}</div>" for one in curves if one)
    drawn = "" if grid else pictures_html(trials)
    return drawing.page(*parts, drawn, f'<div style="{GRID}">{frames}</div>')


def pictures_html(trials):
    """What the runs draw, as a table: a column for each prompt; the style's own pictures, the base model's, then every run's."""
    from lora_kit.explorer.trials import (
        PROMPTS,
    )  # only where there are runs: its imports take half as long as the page's own

    def strip(path):
        return base64.b64encode(Path(path).read_bytes()).decode()

    samples = [(name, done, path) for name, one in trials.items() for done, path in one["samples"]]
    rows = {strip(one["target"]): "the goal: the style's own pictures" for one in trials.values() if one.get("target")}
    rows |= {strip(path): "the base model, before training" for _, done, path in samples[:1] if done == 0}
    rows = [(words, data) for data, words in rows.items()]
    rows += [(f"{name}, after {done} updates", strip(path)) for name, done, path in samples if done]
    if not rows:
        return ""
    cell = "padding: 1px 8px 1px 0; text-align: left; font-weight: normal"
    head = "".join(f'<th scope="col" style="{cell}; width: 84px">{html.escape(one)}</th>' for one in PROMPTS)
    lines = [
        f'<tr><td colspan="{len(PROMPTS)}" style="padding: 1px 0"><img alt="{html.escape(", ".join(PROMPTS) + ": " + words)}" '
        f'src="data:image/png;base64,{data}" style="display: block; width: {92 * len(PROMPTS)}px; max-width: none"></td>'
        f'<th scope="row" style="{cell}; padding-left: 8px">{html.escape(words)}</th></tr>'
        for words, data in rows
    ]
    title = '<caption style="text-align: left; padding: 8px 0 4px">What is drawn for words that no run trains on, with the same noise each time</caption>'
    table = f'<table style="border-collapse: collapse; line-height: 1.3">{title}<tr>{head}<td></td></tr>{"".join(lines)}</table>'
    return f'<div style="overflow-x: auto">{table}</div>'


def _series(trials, key):
    return [(name, [*zip(one["updates"], one[key], strict=True)]) for name, one in trials.items()]
