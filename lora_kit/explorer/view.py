"""All that a page of the explorer shows of a state: every text and number, for skins that only place them. No widgets."""

import html
from collections.abc import Callable, Mapping
from typing import Any

from lora_kit.command_line.texts import script_lacks
from lora_kit.explorer.atlas import atlas_html, map_html
from lora_kit.explorer.controls import CONTROLS, GROUPS, OTHER_SET, PANELS, for_knob, written
from lora_kit.explorer.curves import AS_APPLIED
from lora_kit.explorer.panels import (
    command_html,
    findings_html,
    hint_html,
    memory_html,
    notes_html,
    picture_html,
    steps_html,
)
from lora_kit.explorer.presets import PRESETS
from lora_kit.explorer.state import AS_IF, REFUSED, State
from lora_kit.system.html import page


def view_of(state: State, refused: Mapping[str, str], kind: str, source: str = "") -> dict[str, Any]:
    """Everything that a page shows of a state, as values that JSON can hold.

    refused: {name of a control: why what it was given was not taken}. kind: of the command, a key of `KINDS`. source: where
    the atlas's pictures are, as of `atlas_html`. Keys of the dict:

    title: of the picture.
    answer: the run in a line, HTML.
    rate: at the cursor, as text; "" without a curve.
    cursor: {value, max, said}; said goes on after the rate.
    controls: {name: {value, written, said, disabled, hint, low, high, options, chosen}}, the last four where it has them. hint is
    HTML; chosen, the words of the option that a text is, or `OTHER_SET`.
    folded: {name: why it does nothing now}, to be put away; unused: {group: the same as a line of HTML, or ""}.
    panels: {name of `PANELS`: HTML}.
    commands: {kind: plain text}, those that can run.
    mend: the words on its button; "" where there is nothing to mend.
    axis, log, trainers, preset, kind: as chosen; preset "" for none.
    pinned: how many curves. total_updates: of the run.
    """
    summary, total, update = state.summary, state.summary["total_updates"], state.cursor or 0
    rate = f"{summary['rates'][summary['updates'].index(update)]:.3g}" if summary["curves"] else ""
    said = f"is the learning rate at update {update:,} of {total:,}" if rate else "no learning rate"
    folded = {name: reason for name, reason in summary["ignored"].items() if name in CONTROLS}
    change = ", ".join(f"{name} {written(value)}" for name, value in state.change.items())
    lacks = script_lacks(state.draft)
    commands = {key: text for key, text in summary["commands"].items() if key != "diffusers" or not lacks}
    return dict(
        title=f"{PANELS['picture']} {AS_IF if state.script else AS_APPLIED}",
        answer=_drawn(answer_html, summary),
        rate=rate,
        cursor=dict(value=update, max=max(total - 1, update, 1), said=said),
        controls={name: _control(name, state, refused.get(name), name in folded) for name in CONTROLS},
        folded=folded,
        unused={title: _unused(names, folded) for title, names in GROUPS.items()},
        panels=_panels(state, source) | {"command": _drawn(command_html, commands, kind, lacks)},
        commands=commands,
        mend=f"Mend it: {change}" if change else "",
        preset=state.started if state.started in PRESETS else "",
        axis=state.axis, log=state.log, trainers=list(state.trainers), kind=kind,
        pinned=len(state.pinned), total_updates=total,
    )  # fmt: skip


def answer_html(summary: Mapping[str, Any]) -> str:
    """The run in a line: its peak and where, how long it is, and which problems the doctor sees."""
    wrong = [finding["check"] for finding in summary["findings"] if finding["status"] != "fine"] or summary["errors"]
    problems = "no problem in the settings"
    if wrong:
        named = f": {', '.join(dict.fromkeys(wrong))}" if summary["findings"] else ""
        problems = f'<b class="lora-kit-bad">{counted(len(wrong), "problem")}{html.escape(named)}</b>'
    if not summary["curves"]:
        return page(f"nothing to draw · {problems}")
    run, rates = summary["curves"][0], summary["rates"]
    top = max(rates)
    parts = [
        f"peak <b>{top:.3g}</b> at update <b>{summary['updates'][rates.index(top)]:,}</b>",
        f"<b>{counted(summary['total_updates'], 'update')}</b>",
        f"<b>{counted(run['ends']['epochs'], 'epoch')}</b>",
        problems,
    ]
    own = "" if run["label"] == AS_APPLIED else f"{html.escape(run['label'])}: "
    return page(own + " · ".join(parts))


def counted(number: float, thing: str) -> str:
    """A number of things in words, with at most two digits after the point.

    >>> counted(1200, "update"), counted(1, "epoch"), counted(12.3456, "epoch")
    ('1,200 updates', '1 epoch', '12.35 epochs')
    """
    digits = f"{number:,.2f}".rstrip("0").rstrip(".")
    return f"{digits} {thing}{'' if digits == '1' else 's'}"


def _control(name, state, refusal, idle):
    """What a control shows."""
    control, value = CONTROLS[name], for_knob(name, state.values)
    shown = dict(value=value, written=written(value), said=control.said(value), disabled=idle, hint=hint_html(refusal))
    if control.kind in ("slider", "logarithmic"):
        last = state.summary["total_updates"] - 1
        shown["low"], shown["high"] = control.ends(value, *([last] if name == "lr_warmup_steps" else []))
    if control.kind == "choice":
        known = [option for _, option in control.options]
        shown["options"] = [*map(list, control.options), *([] if value in known else [[str(value), value]])]
    elif control.options:
        chosen = set(value.split())
        sets = (words for words, option in control.options if set(option.split()) == chosen)
        shown |= dict(options=[list(option) for option in control.options], chosen=next(sets, OTHER_SET))
    return shown


def _panels(state, source):
    """The panels but for the command."""
    summary = state.summary
    cursor = state.cursor if summary["curves"] else None
    highest = max(summary["rates"]) if summary["curves"] else 0.0
    asked = state.values | {
        "learning_rate": highest or summary["peak"] or state.draft.learning_rate,
        "total_updates": summary["total_updates"],
    }
    done = state.cursor or 0
    done += done == summary["total_updates"] - 1  # the last update has been made where the cursor stands at the end
    return {
        "picture": _drawn(picture_html, summary, state.axis, state.log, cursor, state.pinned),
        "findings": _drawn(findings_html, summary),
        "atlas": _drawn(atlas_html, asked, done, source),
        "map": _drawn(map_html, asked, done),
        "notes": _drawn(notes_html, summary),
        "steps": _drawn(steps_html, summary),
        "memory": _drawn(memory_html, summary["memory"], state.values["use_8bit_adam"]),
    }


def _drawn(make: Callable[..., str], *arguments: Any) -> str:
    """A part of the page; what can't be drawn takes no other part with it."""
    try:
        return make(*arguments)
    except (*REFUSED, OSError) as error:
        return page(f"<b>✗</b> This can't be drawn: {html.escape(str(error))}")


def _unused(names, folded):
    idle = [f"{name} ({folded[name]})" for name in names if name in folded]
    return page(f"<i>Not used now: {html.escape(', '.join(idle))}</i>") if idle else ""
