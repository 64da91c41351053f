"""The explorer's controls, one by one, in a real browser: what then stands on the page, worked out by hand."""

import re

import front_ends
import pytest
from playwright.sync_api import expect

from lora_kit.explorer.controls import GROUPS, TARGET_SETS
from lora_kit.explorer.presets import PRESETS
from lora_kit.trainers.known import TRAINERS

# Colab's older ipywidgets are tried by the other tests; these try them too with `-m long`
MOSTLY_ONE = pytest.mark.parametrize(
    "front_end", ["jupyterlab", pytest.param("widgets7", marks=pytest.mark.long)], indirect=True
)
PUZZLE = next(name for name in PRESETS if name.startswith("puzzle"))


PLAIN = """from lora_kit.explorer.page import Explorer
from lora_kit.explorer.session import Session
from lora_kit.explorer.state import State

settings = dict(learning_rate=1e-3, lr_scheduler="cosine", train_batch_size=4, num_train_epochs=12)
Explorer(Session(State(settings, num_examples=400, num_processes={})))"""


class Reader:
    """Someone who moves the controls of a plain run and reads what the page says then."""

    def __init__(self, front_end, page, num_processes=1):
        self.page = page
        front_end.show(page, PLAIN.format(num_processes))

    def sees(self, *texts):
        for text in texts:
            expect(self.page.locator("body")).to_contain_text(text)

    def does_not_see(self, *texts):
        for text in texts:
            expect(self.page.locator("body")).not_to_contain_text(text)

    def row(self, label):
        """The widget with this label."""
        rows = self.page.locator(".jupyter-widgets.widget-inline-hbox, .widget-inline-hbox")
        return rows.filter(has=front_ends.label(self.page, label)).first

    def open(self, group):
        self.press(group)
        for title, names in GROUPS.items():
            label = front_ends.label(self.page, names[1]).first
            expect(label).to_be_visible() if title == group else expect(label).to_be_hidden()

    def number(self, name, text, becomes):
        """Type a number beside a slider; `becomes`: what the field then shows."""
        field = self.page.get_by_placeholder(name, exact=True)
        field.fill(text)
        field.press("Enter")
        expect(field).to_have_value(becomes)

    def slide(self, name, steps, becomes=None):
        """Move a slider by so many steps with the arrow keys; `becomes`: what the field beside it then shows."""
        handle = front_ends.slider(self.page, name)
        handle.focus()
        for _ in range(abs(steps)):
            handle.press("ArrowRight" if steps > 0 else "ArrowLeft")
        if becomes:
            expect(self.page.get_by_placeholder(name, exact=True)).to_have_value(becomes)

    def choose(self, label, option):
        self.row(label).locator("select").select_option(option)

    def type(self, name, text):
        field = self.row(name).locator("input")
        field.fill(text)
        field.press("Enter")

    def tick(self, label):
        box = self.row(label).locator("input[type=checkbox]")
        box.focus()
        box.press("Space")

    def press(self, text):
        button = self.page.get_by_role("button", name=text)
        button.focus()
        button.press("Enter")

    def paste(self, text):
        self.page.locator("textarea").fill(text)
        self.press("Read what is pasted")


def test_the_knobs(front_end, page):
    reader = Reader(front_end, page)
    reader.sees("as applied: 1200 updates", "--learning_rate 0.001 --lr_scheduler cosine")
    reader.sees(
        "peak 0.001 at update 0 · 1,200 updates · 12 epochs · no problem in the settings",
        "0.0005 is the learning rate at update 600",
    )
    reader.sees("only cosine_with_restarts reads it", "only polynomial reads it", "only piecewise_constant reads it")
    expect(page.get_by_placeholder("lr_power", exact=True)).to_be_hidden()
    reader.does_not_see("decides")
    old_slider = page.locator(".ui-slider-handle").count() > 0  # ipywidgets 7 has jQuery's
    assert old_slider == (front_end.name == "widgets7")
    picture = page.locator(front_ends.PICTURE).first
    before = picture.inner_html()
    reader.slide("learning_rate", 2, "0.00126")  # 10 to the power of -2.9
    reader.sees("--learning_rate 0.00126")
    expect(picture).not_to_have_js_property("innerHTML", before)
    reader.slide("lr_warmup_steps", 30, "30")
    reader.sees("--lr_warmup_steps 30")
    reader.number("lr_warmup_steps", "1500", "1500")
    reader.sees("No command while there is an error", "lr_warmup_steps 1500")
    reader.number("lr_warmup_steps", "-3", "1500")
    reader.sees("lr_warmup_steps -3 must be at least 0: it stays 1500")
    reader.number("lr_warmup_steps", "40", "40")
    reader.sees("--lr_warmup_steps 40")
    reader.does_not_see("must be at least 0")
    reader.open("Length and batches")
    reader.slide("train_batch_size", -1, "3")
    reader.sees("--train_batch_size 3", "ceil(400 / 3)")
    reader.slide("gradient_accumulation_steps", 1, "2")
    reader.sees("--gradient_accumulation_steps 2", "ceil(134 / 2)")
    reader.slide("num_processes", 3, "4")
    reader.sees("--num_processes 4", "ceil(34 / 2)")
    reader.slide("num_train_epochs", 5, "17")
    reader.sees("--num_train_epochs 17", "as applied: 289 updates")  # 17 x 17
    reader.open("Learning rate")
    reader.tick("scale_lr")
    reader.sees("--scale_lr", "at most 0.0302")  # 0.00126 x 3 x 2 x 4
    reader.choose("lr_scheduler", "polynomial")
    reader.sees("--lr_scheduler polynomial")
    expect(page.get_by_placeholder("lr_num_cycles", exact=True)).to_be_hidden()
    reader.slide("lr_power", 2, "1.2")
    reader.sees("--lr_power 1.2")
    reader.choose("lr_scheduler", "cosine_with_restarts")
    reader.sees("--lr_scheduler cosine_with_restarts")
    reader.slide("lr_num_cycles", 2, "3")
    reader.sees("--lr_num_cycles 3")
    reader.choose("lr_scheduler", "piecewise_constant")
    reader.sees("--lr_step_rules 1:100,0.1:200,0.01")
    reader.type("lr_step_rules", "1:10,0.5")
    reader.sees("--lr_step_rules 1:10,0.5")
    reader.open("Optimizer")
    reader.slide("adam_beta1", -3, "0.87")
    reader.sees("--adam_beta1 0.87", "7.692 updates")  # 1 / 0.13
    reader.slide("adam_beta2", -9, "0.9981")
    reader.sees("--adam_beta2 0.9981", "526.3 updates")  # 1 / 0.0019
    reader.slide("adam_weight_decay", 2, "0.02")
    reader.sees("--adam_weight_decay 0.02")
    reader.slide("adam_epsilon", 20, "1e-07")
    reader.sees("--adam_epsilon 1e-07")
    reader.slide("max_grad_norm", -5, "0.5")
    reader.sees("--max_grad_norm 0.5")
    reader.tick("use_8bit_adam")
    reader.sees("--use_8bit_adam", "It saves")
    reader.open("LoRA and model")
    reader.choose("pretrained_model_name_or_path", "Stable Diffusion 1.5")
    reader.sees("--pretrained_model_name_or_path stable-diffusion-v1-5/stable-diffusion-v1-5", "(797,184 numbers)")
    reader.slide("rank", 12, "16")
    reader.sees("--rank 16", "(3,188,736 numbers)")  # 4 times as many
    reader.type("target_modules", "to_q to_v")
    reader.sees("--target_modules to_q to_v", "(1,594,368 numbers)")  # half of them
    reader.choose("usual sets", "everything")
    reader.sees(f"--target_modules {TARGET_SETS['everything']}")
    reader.choose("mixed_precision", "bf16")
    reader.sees("--mixed_precision bf16")
    reader.open("Length and batches")
    reader.type("num_examples", "777")
    reader.sees("ceil(777 / 3)")
    reader.type("max_train_steps", "500")
    reader.sees("--max_train_steps 500", "as applied: 500 updates", "max_train_steps decides")


@MOSTLY_ONE
def test_the_picture_and_the_texts(front_end, page):
    reader = Reader(front_end, page, num_processes=2)  # 50 updates an epoch
    reader.sees("as applied: 600 updates", "read at update 300", "optimizer updates (0 is the first)")
    picture = page.locator(front_ends.PICTURE).first
    for words in ("images seen, by all processes", "micro-steps of each process", "epochs"):
        reader.choose("over", words)
        expect(picture).to_contain_text(f"{words}learning rate")
    axis = picture.inner_html()
    reader.tick("logarithmic")
    expect(picture).not_to_have_js_property("innerHTML", axis)
    reader.slide("read at update", 4)
    reader.sees("read at update 304")
    reader.press(re.compile("^Pin$"))
    reader.sees("pinned A: cosine, rate 0.001, rank 4, 2 processes")
    reader.slide("learning_rate", -4, "0.000631")  # 10 to the power of -3.2
    reader.press(re.compile("^Pin$"))
    reader.sees("pinned B: cosine, rate 0.000631, rank 4, 2 processes")
    reader.press("Unpin all")
    reader.does_not_see("pinned A", "pinned B")
    names = [TRAINERS[key].name for key in ("kohya", "onetrainer")]
    reader.choose("(Ctrl and a click adds one, or takes it away)", names)
    reader.sees(*(f"{name}. In this run: " for name in names))
    for kind, text in (
        ("Python", "from lora_kit import TrainingConfig"),
        ("YAML", "num_processes: 2 num_examples: 400 training:"),
    ):
        reader.choose("as", kind)
        expect(page.locator(".jupyter-widgets pre").first).to_contain_text(text)
    reader.choose("as", "diffusers' script")
    reader.sees("diffusers' script can't run this: the embedded model is lora_kit's own")


@MOSTLY_ONE
def test_a_command_line_is_pasted_and_a_wrong_one(front_end, page):
    reader = Reader(front_end, page)
    reader.paste(PRESETS["diffusers' guide to LoRA"].text)
    reader.sees("✓ Read.", "--max_train_steps 15000", "as applied: 15000 updates")
    reader.does_not_see("--lr_num_cycles")
    command = page.locator(".jupyter-widgets pre").first
    before = command.inner_text()
    for text, refusal in (
        ("accelerate launch train_text_to_image_lora.py --lr_warmup_stesp 4", "did you mean --lr_warmup_steps"),
        ("TrainingConfig(learning_rate=1e-3)\nlaunch(config, num_processes='many')", "num_processes 'many'"),
    ):
        reader.paste(text)
        reader.sees("✗ Not read:", refusal)
        assert command.inner_text() == before
    reader.slide("lr_warmup_steps", 3, "3")  # the knobs are alive
    reader.sees("--lr_warmup_steps 3")


FOCUSABLE = """() => {
    const all = [...document.querySelectorAll(
        ".jupyter-widgets select, .jupyter-widgets input, .jupyter-widgets textarea, .jupyter-widgets button, " +
        ".jupyter-widgets .noUi-handle, .jupyter-widgets .ui-slider-handle, button.jupyter-widgets"
    )].filter(one => !one.disabled && one.offsetParent && !one.closest("[disabled]") && one.type !== "hidden");
    all.forEach((one, index) => one.dataset.number = index);
    return all.length;
}"""


@MOSTLY_ONE
def test_the_keyboard_reaches_every_control(front_end, page):
    reader = Reader(front_end, page)
    for group, more in zip(GROUPS, (3, 2, 8, 7), strict=True):
        reader.open(group)
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


@MOSTLY_ONE
def test_with_the_keyboard_alone_the_puzzle_is_mended(front_end, page):
    """What a stranger would do: choose the puzzle, read why, press the button, copy the command."""
    reader = Reader(front_end, page)
    preset = reader.row("preset").locator("select")
    preset.focus()
    preset.press("p")  # the one that begins so
    reader.sees(
        "never reaches its peak", "the same 10 epochs make 380 updates, not 1,500", "Mend it: lr_warmup_steps 38"
    )
    page.screenshot(path=front_ends.KEPT / f"{front_end.name}-puzzle.png", full_page=True)
    button = page.get_by_role("button", name="Mend it")
    while not button.evaluate("button => button === document.activeElement"):
        page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    reader.sees("--num_processes 4", "--lr_warmup_steps 38", "Nothing to mend", "changed since")
    command = page.locator(".jupyter-widgets pre").first
    assert "--lr_warmup_steps 38" in command.inner_text()
    command.click()  # one click marks all of it
    assert page.evaluate("String(getSelection())").strip() == command.inner_text().strip()


PAINTED = """dark => {
    const colour = getComputedStyle(document.body).getPropertyValue("--jp-layout-color0").trim();
    const probe = document.body.appendChild(document.createElement("i"));
    probe.style.color = colour;
    const [red] = getComputedStyle(probe).color.match(/\\d+/g).map(Number);
    probe.remove();
    return dark ? red < 64 : red > 192;
}"""  # the theme's own style sheet has come


def themed(front_end, page, dark):
    if front_end.name == "jupyterlab":
        front_end.show(page)
        theme = "JupyterLab Dark" if dark else "JupyterLab Light"
        page.evaluate("theme => jupyterapp.commands.execute('apputils:change-theme', {theme})", theme)
        page.wait_for_function("dark => document.body.dataset.jpThemeLight === String(!dark)", arg=dark)
        page.wait_for_function(PAINTED, arg=dark)
        page.locator("#jupyterlab-splash").wait_for(state="detached")  # it dims the page while the theme changes
        return
    front_end.show(page)


CONTRASTS = """() => {
    const numbers = colour => colour.match(/[\\d.]+/g).map(v => colour.startsWith("color(") ? 255 * v : Number(v));
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
    const contrast = (one, colour) => {
        const text = luminance(numbers(colour)), ground = luminance(behind(one));
        return (Math.max(text, ground) + 0.05) / (Math.min(text, ground) + 0.05);
    };
    const lines = [...document.querySelectorAll("svg[role=img] polyline")];
    const texts = [...document.querySelectorAll(".widget-html-content *")].filter(
        one => !one.matches("title, desc, style") && [...one.childNodes].some(node => node.nodeType === 3 && node.data.trim())
    );
    return [
        texts.map(one => contrast(one, getComputedStyle(one)[one instanceof SVGElement ? "fill" : "color"])),
        lines.map(one => contrast(one, getComputedStyle(one).stroke)),
    ];
}"""


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_readable_in_light_and_dark(front_end, page, dark):
    if dark and front_end.name == "widgets7":
        pytest.skip("its server has no dark theme")
    themed(front_end, page, dark)
    texts, lines = page.evaluate(CONTRASTS)
    assert len(texts) > 50 and min(texts) >= 4.5
    assert lines and min(lines) >= 4
    name = f"{front_end.name}-{'dark' if dark else 'light'}.png"
    page.screenshot(path=front_ends.KEPT / name, full_page=True)


SLIDERS = """() => [...document.querySelectorAll(".lora-kit [role=slider]")].map(
    one => [one.getAttribute("aria-label"), one.getAttribute("aria-valuetext")]
)"""


@MOSTLY_ONE
def test_who_hears_the_page_hears_the_names_and_the_numbers_of_its_sliders(front_end, page):
    front_end.show(page)
    page.wait_for_function(f"({SLIDERS})().length >= 15 && ({SLIDERS})().every(([name]) => name)")
    said = dict(page.evaluate(SLIDERS))
    assert len(said) == page.locator(".lora-kit .widget-slider, .lora-kit .widget-hslider").count()
    rate, rank = said["learning rate, learning_rate"], said["rank"]
    assert (rate, rank, said["memory of squares, adam_beta2"]) == ("0.002", "16", "0.999")
    expect(page.locator(".lora-kit [aria-live=polite]")).to_contain_text("peak 0.002 at update 20")
    handle = page.get_by_role("slider", name="learning_rate")
    handle.focus()
    for _ in range(20):
        handle.press("ArrowLeft")  # by notches of a twentieth of a power of ten
    expect(handle).to_have_attribute("aria-valuetext", "0.0002")


def run_of(page, steps, updates):
    """Move the slider of the runs' length by so many steps of 10, and wait until the kernel knows of it: a slider holds its last
    value back while the kernel is busy, and a button doesn't wait for it."""
    handle = front_ends.slider(page, "updates of a run")
    handle.focus()
    for _ in range(abs(steps)):
        handle.press("ArrowRight" if steps > 0 else "ArrowLeft")
    page.locator(f"button[title='One run of {updates} updates.']").wait_for()


def test_train_stop_and_sweep(jupyterlab, page):
    page.set_viewport_size({"width": 1280, "height": 2600})
    jupyterlab.show(page)
    run_of(page, 1, 210)
    page.get_by_role("button", name="Train this").click()
    page.get_by_text(re.compile(r"[1-9]\d* of 210 updates; runs: 1 running")).wait_for(timeout=600_000)
    page.get_by_role("button", name="Stop").click()
    page.get_by_text(re.compile("runs: 1 stopped")).wait_for(timeout=120_000)
    body = page.locator("body")
    expect(body).to_contain_text("loss on fixed pictures, noise and timesteps: comparable")
    run_of(page, -20, 10)
    for label, text in (("learning rates", "1e-4 2e-3"), ("ranks", "8")):
        field = page.locator(".widget-text").filter(has_text=label).locator("input")
        field.fill(text)
        field.press("Enter")
    page.get_by_role("button", name="Sweep").click()
    page.get_by_text("20 of 20 updates; runs: 2 done").wait_for(timeout=600_000)
    assert page.locator("td", has_text=re.compile(r"^★ \d")).count() == 1
    assert page.locator("table img").count() == 2  # what each run of the sweep draws
    assert "run 1: cosine" in body.inner_text()
    page.screenshot(path=front_ends.KEPT / "jupyterlab-trained.png", full_page=True)
