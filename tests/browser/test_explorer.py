"""The explorer's controls, one by one, in a real browser: what the page then shows is what the pure functions say.

Beside the page in the browser an explorer without one is moved in the same way. The parts of both must be the same, to the
last character, after the browser's own reading of the HTML.
"""

import re

import front_ends
import pytest
from playwright.sync_api import expect

from lora_kit.explorer.page import GROUPS, explorer
from lora_kit.explorer.presets import PRESETS
from lora_kit.trainers.rosetta import TRAINERS

SAME = """parts => {
    const shown = new Set([...document.querySelectorAll(".widget-html-content")].map(one => one.innerHTML));
    return Object.entries(parts).filter(([name, text]) => {
        const wanted = document.createElement("div");
        wanted.innerHTML = text;
        return !shown.has(wanted.innerHTML);
    }).map(([name, text]) => name);
}"""
PARTS = ("picture", "findings", "notes", "steps", "memory", "command")
SLOWEST = 20_000  # milliseconds, on a busy machine


class Both:
    """The page in the browser, and the explorer without one."""

    def __init__(self, front_end, page, **settings):
        self.page, self.twin = page, explorer(**settings)
        arguments = ", ".join(f"{name}={value!r}" for name, value in settings.items())
        front_end.show(page, f"from lora_kit.explorer.page import explorer\n\nexplorer({arguments})")
        self.same()

    def same(self):
        parts = {name: self.twin.parts[name].value for name in PARTS}
        self.page.wait_for_function(f"parts => ({SAME})(parts).length === 0", arg=parts, timeout=SLOWEST)
        assert self.page.evaluate(SAME, parts) == []

    def row(self, label):
        """The widget with this label."""
        exact = self.page.get_by_text(label, exact=True)
        return self.page.locator(".jupyter-widgets.widget-inline-hbox, .widget-inline-hbox").filter(has=exact).first

    def open(self, group):
        self.press(group, None)
        self.page.get_by_text(GROUPS[group][1], exact=True).wait_for()
        self.twin.group.value = group

    def number(self, name, text, words=""):
        """Type a number beside a slider; `words`: what is then said under it."""
        field = self.page.get_by_placeholder(name, exact=True)
        field.fill(text)
        field.press("Enter")
        self.twin.numbers[name].value = text
        self.same()
        expect(field).to_have_value(self.twin.numbers[name].value)
        if words:
            expect(self.page.get_by_text(words)).to_be_visible()

    def slide(self, name, steps, value, knob=None):
        """Move a slider by so many steps with the arrow keys; `value` is where it must come to lie."""
        handle = front_ends.slider(self.page, name)
        handle.focus()
        for _ in range(abs(steps)):
            handle.press("ArrowRight" if steps > 0 else "ArrowLeft")
        (knob or self.twin.knobs[name]).value = value
        self.same()

    def choose(self, label, option, knob, value):
        self.row(label).locator("select").select_option(option)
        knob.value = value
        self.same()

    def type(self, name, text, value):
        field = self.row(name).locator("input")
        field.fill(text)
        field.press("Enter")
        self.twin.knobs[name].value = value
        self.same()

    def tick(self, label, knob):
        box = self.row(label).locator("input[type=checkbox]")
        box.focus()
        box.press("Space")
        knob.value = not knob.value
        self.same()

    def press(self, text, button):
        found = self.page.get_by_role("button", name=text)
        found.focus()
        found.press("Enter")
        if button:
            button.click()
        self.same()


def test_every_control(front_end, page):
    both = Both(front_end, page, num_examples=400)
    knobs = both.twin.knobs
    both.slide("learning_rate", 2, 10**-2.9)
    both.slide("lr_warmup_steps", 30, 30)
    both.number("lr_warmup_steps", "1500")
    both.number("lr_warmup_steps", "-3", "lr_warmup_steps -3 must be at least 0: it stays 1500")
    both.number("lr_warmup_steps", "40")
    both.open("Length and batches")
    both.slide("train_batch_size", -1, 3)
    both.slide("gradient_accumulation_steps", 1, 2)
    both.slide("num_processes", 3, 4)
    both.slide("num_train_epochs", 5, 17)
    both.open("Learning rate")
    both.tick("scale_lr", knobs["scale_lr"])
    both.choose("lr_scheduler", "polynomial", knobs["lr_scheduler"], "polynomial")
    both.slide("lr_power", 2, 1.2)
    both.choose("lr_scheduler", "cosine_with_restarts", knobs["lr_scheduler"], "cosine_with_restarts")
    both.slide("lr_num_cycles", 2, 3)
    both.choose("lr_scheduler", "piecewise_constant", knobs["lr_scheduler"], "piecewise_constant")
    both.type("lr_step_rules", "1:10,0.5", "1:10,0.5")
    both.open("Optimizer")
    both.slide("adam_beta1", -3, 0.87)
    both.slide("adam_beta2", -9, 0.9981)
    both.slide("adam_weight_decay", 2, 0.02)
    both.slide("adam_epsilon", 20, 1e-7)
    both.slide("max_grad_norm", -5, 0.5)
    both.tick("use_8bit_adam", knobs["use_8bit_adam"])
    both.open("LoRA and model")
    both.slide("rank", 12, 16)
    both.type("target_modules", "to_q to_v", "to_q to_v")
    both.choose("usual sets", "everything", both.twin.sets, "everything")
    both.choose("mixed_precision", "bf16", knobs["mixed_precision"], "bf16")
    both.choose("model", "SDXL", knobs["pretrained_model_name_or_path"], "stabilityai/stable-diffusion-xl-base-1.0")
    both.open("Length and batches")
    both.type("num_examples", "777", 777)
    both.type("max_train_steps", "500", 500)
    both.open("Learning rate")
    for words, axis in (("images seen, by all processes", "images"), ("epochs", "epochs")):
        both.choose("over", words, both.twin.axis, axis)
    both.tick("logarithmic", both.twin.log)
    both.slide("read at update", 4, both.twin.cursor.value + 4, both.twin.cursor)
    both.press(re.compile("^Pin$"), both.twin.pin)
    both.slide("learning_rate", -4, 10**-3.1)
    both.press(re.compile("^Pin$"), both.twin.pin)
    both.press("Unpin all", both.twin.unpin)
    names = [TRAINERS[key].name for key in ("kohya", "onetrainer")]
    both.choose("the same words in", names, both.twin.trainers, ("kohya", "onetrainer"))
    for words, kind in (("diffusers' script", "diffusers"), ("Python", "python"), ("YAML", "yaml")):
        both.choose("as", words, both.twin.kind, kind)
    assert {one["check"] for one in both.twin.summary["findings"]} >= {"8-bit Adam", "learning rate", "accumulation"}


def paste(both, text):
    both.page.locator("textarea").fill(text)
    both.twin.pasted.value = text
    both.press("Read what is pasted", both.twin.read)
    told = both.twin.told.value
    both.page.wait_for_function(f"parts => ({SAME})(parts).length === 0", arg={"told": told}, timeout=SLOWEST)
    return told


def test_a_command_line_is_pasted_and_a_wrong_one(front_end, page):
    both = Both(front_end, page)
    told = paste(both, PRESETS["diffusers' guide to LoRA"].text)
    assert "✓ Read" in told and both.twin.summary["total_updates"] == 15000
    assert "--max_train_steps 15000" in page.locator("pre").first.inner_text()
    assert "--lr_num_cycles" not in page.locator("pre").first.inner_text()
    before = page.locator("pre").first.inner_text()
    told = paste(both, "accelerate launch train_text_to_image_lora.py --lr_warmup_step 4")
    assert "✗ Not read" in told and "did you mean --lr_warmup_steps" in told
    assert page.locator("pre").first.inner_text() == before


FOCUSABLE = """() => {
    const all = [...document.querySelectorAll(
        ".jupyter-widgets select, .jupyter-widgets input, .jupyter-widgets textarea, .jupyter-widgets button, " +
        ".jupyter-widgets .noUi-handle, .jupyter-widgets .ui-slider-handle, button.jupyter-widgets"
    )].filter(one => !one.disabled && one.offsetParent && !one.closest("[disabled]") && one.type !== "hidden");
    all.forEach((one, index) => one.dataset.number = index);
    return all.length;
}"""


def test_the_keyboard_reaches_every_control(front_end, page):
    front_end.show(page)
    for group, more in zip(GROUPS, (3, 8, 7, 2), strict=True):
        page.get_by_role("button", name=group).press("Enter")
        page.wait_for_timeout(500)
        count = page.evaluate(FOCUSABLE)
        assert count >= 22 + more
        page.locator("[data-number='0']").focus()
        seen = set()
        for _ in range(3 * count):
            seen.add(page.evaluate("document.activeElement.dataset.number"))
            page.keyboard.press("Tab")
        missed = {str(number) for number in range(count)} - seen
        outer = [page.locator(f"[data-number='{number}']").evaluate("one => one.outerHTML") for number in missed]
        assert outer == []


def test_with_the_keyboard_alone_the_puzzle_is_mended(front_end, page):
    """What a stranger would do: choose the puzzle, read why, press the button, copy the command."""
    both = Both(front_end, page)
    name = next(name for name in PRESETS if name.startswith("puzzle"))
    preset = both.row("preset").locator("select")
    preset.focus()
    preset.press("p")  # the one that begins so
    both.twin.preset.value = name
    both.same()
    assert "never reaches its peak" in page.locator("body").inner_text()
    assert "the same 10 epochs make 380 updates, not 1,500" in page.locator("body").inner_text()
    assert "Mend it: lr_warmup_steps 38" in page.locator("body").inner_text()
    page.screenshot(path=front_ends.KEPT / f"{front_end.name}-puzzle.png", full_page=True)
    button = page.get_by_role("button", name="Mend it")
    while not button.evaluate("one => one === document.activeElement"):
        page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    both.twin.mend.click()
    both.same()
    command = page.locator("pre").first
    assert "--num_processes 4" in command.inner_text() and "--lr_warmup_steps 38" in command.inner_text()
    command.click()  # one click marks all of it
    assert page.evaluate("String(getSelection())").strip() == command.inner_text().strip()


def test_greyed_knobs_say_why(front_end, page):
    front_end.show(page)
    text = page.locator("body").inner_text()
    for words in ("only cosine_with_restarts reads it", "only polynomial reads it", "only piecewise_constant reads it"):
        assert words in text
    assert "decides" not in text


def themed(front_end, page, dark):
    if front_end.name == "jupyterlab":
        front_end.show(page)
        theme = "JupyterLab Dark" if dark else "JupyterLab Light"
        page.evaluate("theme => jupyterapp.commands.execute('apputils:change-theme', {theme})", theme)
        page.wait_for_function("dark => document.body.dataset.jpThemeLight === String(!dark)", arg=dark)
        page.wait_for_timeout(500)
        return
    front_end.visit(page)
    if dark:
        page.goto(f"{page.url}?voila-theme=dark&theme=dark")
    page.locator(front_ends.PICTURE).first.wait_for(timeout=front_ends.SHOWN)


CONTRASTS = """() => {
    const numbers = colour => colour.match(/[\\d.]+/g).map(Number);
    const luminance = ([r, g, b]) => [r, g, b].map(v => v / 255).map(
        v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4
    ).reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
    const behind = one => {
        for (; one; one = one.parentElement) {
            const colour = numbers(getComputedStyle(one).backgroundColor);
            if (colour.length < 4 || colour[3] > 0) return colour;
        }
        return [255, 255, 255];
    };
    return [...document.querySelectorAll(".widget-html-content *")].filter(
        one => !one.matches("title, desc, style") && [...one.childNodes].some(node => node.nodeType === 3 && node.data.trim())
    ).map(one => {
        const style = getComputedStyle(one);
        const text = luminance(numbers(one instanceof SVGElement ? style.fill : style.color)), ground = luminance(behind(one));
        return (Math.max(text, ground) + 0.05) / (Math.min(text, ground) + 0.05);
    });
}"""


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_readable_in_light_and_dark(front_end, page, dark):
    if dark and front_end.name == "widgets7":
        pytest.skip("the voila of that time has no dark theme of its own")
    themed(front_end, page, dark)
    contrasts = page.evaluate(CONTRASTS)
    assert len(contrasts) > 50 and min(contrasts) >= 4.5
    name = f"{front_end.name}-{'dark' if dark else 'light'}.png"
    page.screenshot(path=front_ends.KEPT / name, full_page=True)


def run_of(page, steps):
    """Move the slider of the runs' length by so many steps of 10."""
    handle = front_ends.slider(page, "updates of a run")
    handle.focus()
    for _ in range(abs(steps)):
        handle.press("ArrowRight" if steps > 0 else "ArrowLeft")
    page.wait_for_timeout(
        1000
    )  # a slider holds its last value back while the kernel is busy; a button doesn't wait for it


def test_train_stop_and_train_again(jupyterlab, page):
    page.set_viewport_size({"width": 1280, "height": 2600})
    jupyterlab.show(page)
    run_of(page, -9)
    page.get_by_role("button", name="Train this").click()
    page.get_by_text("10 of 10 updates; runs: 1 done").wait_for(timeout=120_000)
    body = page.locator("body")
    assert "loss on fixed pictures, noise and timesteps: comparable" in body.inner_text()
    assert page.locator("table img").count() >= 3
    run_of(page, 20)
    page.get_by_role("button", name="Train this").click()
    page.get_by_text(re.compile(r"[1-9]\d* of 210 updates; runs: 1 running")).wait_for(timeout=120_000)
    page.get_by_role("button", name="Stop").click()
    page.get_by_text(re.compile("runs: 1 stopped")).wait_for(timeout=30_000)
    run_of(page, -20)
    page.get_by_role("button", name="Train this").click()
    page.get_by_text("10 of 10 updates; runs: 1 done").wait_for(timeout=120_000)
    assert all(f"run {number}: cosine" in body.inner_text() for number in (1, 2, 3))
    page.screenshot(path=front_ends.KEPT / "jupyterlab-trained.png", full_page=True)


def test_a_sweep_is_a_heat_map(voila, page):
    page.set_viewport_size({"width": 1280, "height": 2600})
    voila.show(page)
    run_of(page, -9)
    for label, text in (("learning rates", "1e-4 2e-3"), ("ranks", "1 8")):
        field = page.locator(".widget-text").filter(has_text=label).locator("input")
        field.fill(text)
        field.press("Enter")
    page.get_by_role("button", name="Sweep").click()
    page.get_by_text("40 of 40 updates; runs: 4 done").wait_for(timeout=240_000)
    assert page.locator("td", has_text=re.compile(r"^★ \d")).count() == 1
    page.screenshot(path=front_ends.KEPT / "voila-sweep.png", full_page=True)
