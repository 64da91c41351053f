"""The explorer: turn a knob of the training configuration and see the learning rate, the steps and the command line.

`summarize` does the work, without widgets; `svg_learning_rates` draws its result; `explorer` puts sliders in front.
"""

import dataclasses
import html
import math
import shlex
import warnings

from lora_kit.config import IGNORES_WARMUP, LR_SCHEDULERS, USUAL_LEARNING_RATES, ConfigWarning, TrainingConfig, checked
from lora_kit.steps import Steps

SAMPLES = 400
LINE, SHADE = "#0072B2", "#E69F00"  # at least 3:1 on white and on JupyterLab's dark grey; Okabe and Ito's palette
READERS = {"lr_num_cycles": "cosine_with_restarts", "lr_power": "polynomial", "lr_step_rules": "piecewise_constant"}
# the themes' own text colour in JupyterLab, VS Code and Colab
TEXT_COLOUR = "var(--jp-ui-font-color1, var(--vscode-foreground, var(--colab-primary-text-color, inherit)))"


def summarize(settings, num_examples, num_processes=1):
    """What a run with these settings will do, as a plain dict; settings that can't work are an error in it, not raised.

    settings: a `TrainingConfig` or a dict of its fields. Keys: `errors` and `warnings`, lists of sentences; `steps`, the
    rows of `Steps.rows()`; `total_updates`; `warmup`, in updates; `updates`, at most 400 of them, 0 the first and both
    ends included; `rates`, the learning rate that each uses; `command`. With an error all but the two lists are empty.

    >>> summarize({"style": "outlined", "learning_rate": 1e-3, "train_batch_size": 2, "num_train_epochs": 1}, 20)["updates"]
    [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]
    """
    from lora_kit.launch import command_lines
    from lora_kit.schedules import applied_learning_rates

    summary = dict(errors=[], warnings=[], steps=[], total_updates=0, warmup=0, updates=[], rates=[], command="")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConfigWarning)  # told below, in the page
            config = settings if isinstance(settings, TrainingConfig) else TrainingConfig(**settings)
        steps = Steps.of(config, num_examples, num_processes)
    except (TypeError, ValueError) as error:
        return {**summary, "errors": [str(error)]}
    last, spread = steps.total_updates - 1, SAMPLES - 1
    updates = {round(i * last / (spread - 1)) for i in range(spread)} | {min(steps.lr_warmup_steps, last)}
    updates = sorted(updates)
    alone = shlex.join(["python", "-m", "lora_kit.training", *config.to_argv()])
    return {
        **summary,
        "warnings": config.notices() + _run_notices(config, steps),
        "steps": steps.rows(),
        "total_updates": steps.total_updates,
        "warmup": steps.lr_warmup_steps,
        "updates": updates,
        "rates": applied_learning_rates(config, steps, updates).tolist(),
        "command": alone if num_processes == 1 else command_lines(config, num_processes)["accelerate"],
    }


def _run_notices(config, steps):
    """What is out of the ordinary only on this data set and number of processes."""
    found, peak = [], config.peak_learning_rate(steps.num_processes)
    low, high = USUAL_LEARNING_RATES
    if config.scale_lr and not low <= peak <= high:
        found.append(f"scale_lr makes the rate {peak:g}, outside {low:g}..{high:g}, where LoRA usually trains")
    done, full = steps.micro_steps_in_last_update, steps.gradient_accumulation_steps
    if done < full:
        found.append(f"the last update of every epoch has {done} of {full} micro-steps, so its gradient is too small")
    return found


def _ticks(high, count=5):
    """Round numbers from 0 to at most `high`, about `count` of them."""
    rough = high / count
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(unit * factor for factor in (1, 2, 5, 10) if unit * factor >= rough * 0.999)
    return [index * step for index in range(int(high / step * 1.001) + 1)]


def svg_learning_rates(summary):
    """The learning rate against the optimizer update as the text of an SVG, from `summarize`; "" where it has errors.

    The warm-up is shaded. Text and axes have the colour of the text around them, so light and dark pages both do.
    """
    if summary["errors"]:
        return ""
    width, height, left, right, top, bottom = 640, 270, 76, 616, 26, 216
    last, peak = max(summary["total_updates"] - 1, 1), max(summary["rates"]) or 1.0

    def x(update):
        return round(left + (right - left) * update / last, 1)

    def y(rate):
        return round(bottom - (bottom - top) * rate / (peak * 1.05), 1)

    points = [(x(update), y(rate)) for update, rate in zip(summary["updates"], summary["rates"], strict=True)]
    first, end, warmup = summary["rates"][0], summary["rates"][-1], summary["warmup"]
    text = (
        f"{summary['total_updates']} updates; the rate is {first:.3g} at update 0, at most {peak:.3g}, "
        f"{end:.3g} at the last. " + (f"Warm-up: {warmup} updates." if warmup else "No warm-up.")
    )
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        'style="max-width: 100%; height: auto" role="img" font-family="DejaVu Sans, Verdana, sans-serif" '
        f'font-size="12" fill="currentColor" aria-label="Learning rate as applied: {text}">',
        f"<title>Learning rate as applied</title><desc>{text}</desc>",
    ]
    if warmup:
        parts.append(
            f'<rect x="{left}" y="{top}" width="{x(warmup) - left:.1f}" height="{bottom - top}" fill="{SHADE}" '
            f'fill-opacity="0.3"/><text x="{left}" y="{top - 8}">warm-up, {warmup} updates</text>'
        )
    for rate in _ticks(peak):
        parts.append(
            f'<path d="M{left} {y(rate)}H{right}" stroke="currentColor" stroke-opacity="0.2"/>'
            f'<text x="{left - 8}" y="{y(rate) + 4}" text-anchor="end">{rate:.3g}</text>'
        )
    for update in sorted({round(tick) for tick in _ticks(last)}):
        parts.append(
            f'<path d="M{x(update)} {bottom}v5" stroke="currentColor"/>'
            f'<text x="{x(update)}" y="{bottom + 19}" text-anchor="middle">{update}</text>'
        )
    middle = (top + bottom) / 2
    line = " ".join(f"{a},{b}" for a, b in points)
    parts += [
        f'<path d="M{left} {top}V{bottom}H{right}" fill="none" stroke="currentColor"/>',
        f'<polyline points="{line}" fill="none" stroke="{LINE}" stroke-width="2.5" stroke-linejoin="round"/>',
        *(f'<circle cx="{a}" cy="{b}" r="3.5" fill="{LINE}"/>' for a, b in points if len(points) <= 40),
        f'<text x="{(left + right) / 2}" y="{height - 10}" text-anchor="middle">optimizer update (0 is the first)</text>',
        f'<text transform="translate(14 {middle}) rotate(-90)" text-anchor="middle">learning rate</text>',
        "</svg>",
    ]
    return "".join(parts)


def _page(summary):
    """The explorer's page: the errors, or the curve, warnings, steps and command line. HTML."""
    told = [f"<li><b>Error:</b> {html.escape(one)}</li>" for one in summary["errors"]]
    told += [f"<li><b>Note:</b> {html.escape(one)}</li>" for one in summary["warnings"]]
    parts = [svg_learning_rates(summary), f'<ul style="line-height: 1.4">{"".join(told)}</ul>' if told else ""]
    if not summary["errors"]:
        rows = "".join(
            f'<tr><td>{name}</td><td style="padding: 0 1.5em; text-align: right">{value:,}</td><td>{how}</td></tr>'
            for name, value, how in summary["steps"]
        )
        parts.append(f'<table style="line-height: 1.4">{rows}</table>')
        parts.append(f'<pre style="white-space: pre-wrap; color: inherit">{html.escape(summary["command"])}</pre>')
    return f'<div style="color: {TEXT_COLOUR}">{"".join(parts)}</div>'


def _ignored(knobs, settings):
    """The names of the knobs that change nothing as the others stand."""
    scheduler = knobs["lr_scheduler"].value
    ignored = {name for name, reader in READERS.items() if reader != scheduler}
    ignored |= {"lr_warmup_steps"} if scheduler in IGNORES_WARMUP else set()
    return ignored | ({"num_train_epochs"} if settings.get("max_train_steps") else set())


def explorer(num_examples=400, num_processes=1, **settings):
    """Sliders over the training configuration above a page that follows them: curve, notes, step table, command line.

    settings: fields of `TrainingConfig`; those without a slider stay as given. Returns an ipywidgets VBox whose `knobs`
    are the widgets by name and whose `summary` is what `summarize` says of their values. A knob that the schedule
    ignores is disabled and left out of the command line. Raises ValueError for a value that no run could have.

    >>> box = explorer(num_examples=400, lr_scheduler="cosine", lr_warmup_steps=100)
    >>> box.knobs["lr_warmup_steps"].value = 200
    """
    import ipywidgets as widgets

    start = dict(learning_rate=1e-3, lr_scheduler="cosine", lr_warmup_steps=0, lr_num_cycles=3, lr_power=1.0)
    start |= dict(lr_step_rules="1:100,0.1:200,0.01", train_batch_size=4, gradient_accumulation_steps=1)
    start |= dict(num_train_epochs=12, scale_lr=False)
    rules = {one.name: one.metadata for one in dataclasses.fields(TrainingConfig)}
    start = {name: checked(name, settings.pop(name, value), rules[name]) for name, value in start.items()}
    start["num_processes"] = num_processes
    if not {"style", "dataset_name", "train_data_dir"} & settings.keys():
        settings["style"] = "outlined"
    tops = dict(lr_warmup_steps=1000, lr_num_cycles=10, train_batch_size=32, gradient_accumulation_steps=16)
    tops |= dict(num_processes=16, num_train_epochs=100)

    def knob(name, value):
        look = dict(value=value, description=name, style={"description_width": "13em"}, layout={"width": "30em"})
        if name in tops:
            return widgets.IntSlider(min=int(name != "lr_warmup_steps"), max=max(tops[name], value), **look)
        if name == "learning_rate":
            low, high = min(-6, math.floor(math.log10(value))), max(-1, math.ceil(math.log10(value)))
            return widgets.FloatLogSlider(min=low, max=high, step=0.1, readout_format=".2e", **look)
        if name == "lr_power":
            return widgets.FloatSlider(min=min(0.1, value), max=max(5.0, value), step=0.1, **look)
        if name == "lr_scheduler":
            return widgets.Dropdown(options=LR_SCHEDULERS, **look)
        if name == "scale_lr":
            return widgets.Checkbox(**{**look, "style": {"description_width": "initial"}})
        return widgets.Text(**{**look, "value": value or ""})

    knobs, view = {name: knob(name, value) for name, value in start.items()}, widgets.HTML()
    names, half = list(knobs), (len(knobs) + 1) // 2
    columns = [widgets.VBox([knobs[name] for name in part]) for part in (names[:half], names[half:])]
    box = widgets.VBox([widgets.HBox(columns, layout={"flex_flow": "row wrap"}), view])

    def follow(_change=None):
        ignored = _ignored(knobs, settings)
        for name, widget in knobs.items():
            widget.disabled = name in ignored
        chosen = {name: widget.value for name, widget in knobs.items() if name not in ignored}
        processes = chosen.pop("num_processes")
        box.summary = summarize({**settings, **chosen}, num_examples, processes)
        view.value = _page(box.summary)

    for widget in knobs.values():
        widget.observe(follow, "value")
    box.knobs, box.view = knobs, view
    follow()
    return box
