"""What the explorer's widgets share: their looks, and who turned them, the reader or the program."""

import threading
from collections.abc import Callable
from typing import Any

from lora_kit.system.html import page
from lora_kit.system.looks import COLOURS

ROW = {"width": "calc(100% - 4px)", "max_width": "34em"}
COLUMN = {"flex": "1 1 28em", "min_width": "0", "max_width": "680px", "padding": "0 14px 0 0"}
BUTTON = {"width": "auto", "align_self": "flex-start"}
SLIDER = {"flex": "1 1 auto", "width": "auto"}
NARROW_LABEL = {"description_width": "initial"}
# a curve takes a quarter of the text's colour, so that it stands out on light and dark pages
LINES = "".join(
    f".lora-kit svg [{part}='{colour}'] {{{part}: color-mix(in srgb, {colour} 75%, currentColor)}}\n"
    for colour in COLOURS
    for part in ("stroke", "fill")
)
# a knob has its word, and under it, smaller, the name of its flag; where the page is narrow tables are broken; where it is as
# narrow as a phone, a knob's name stands above it, and the pictures' texts are larger
STYLE_SHEET = (
    f"<style>\n{LINES}"
    + """
.lora-kit {container-type: inline-size}
.lora-kit-rate {font-size: 2.4em; font-weight: bold; line-height: 1.2; font-variant-numeric: tabular-nums}
.lora-kit-rows .widget-inline-hbox {height: auto; align-items: center}
.lora-kit-rows .widget-inline-hbox > :not(.widget-label) {min-height: 28px; align-content: center}
.lora-kit-rows .widget-inline-hbox > .widget-label, .lora-kit-rows .widget-label-basic span {
  white-space: pre-line; line-height: 1.15; height: auto; font-size: 11px; display: inline-block; vertical-align: middle
}
.lora-kit-rows .widget-inline-hbox > .widget-label::first-line, .lora-kit-rows .widget-label-basic span::first-line {font-size: 13px}
.lora-kit-above {flex-wrap: wrap}
.lora-kit-above > .widget-label {width: 100% !important; text-align: left}
@container (max-width: 70em) {
  .lora-kit td {white-space: normal !important}
}
@container (max-width: 30em) {
  .lora-kit-rows .widget-inline-hbox {flex-wrap: wrap; height: auto}
  .lora-kit-rows .widget-inline-hbox > .widget-label {width: 100% !important; text-align: left}
  .lora-kit-rows .widget-hbox {align-items: flex-end}
  .lora-kit svg[role=img] {font-size: 14px}
}
</style>"""
)
# ipywidgets gives the handle of a slider no name, and reads an exponent out where the slider is logarithmic: each handle takes
# the name beside it, and the number that the slider would show; what answers is read out when it changes
SLIDERS_SAID = r"""(() => {
if (window.loraKitSlidersSaid) return;
window.loraKitSlidersSaid = true;
let due = false;
const set = (one, name, value) => one.getAttribute(name) === value || one.setAttribute(name, value);
const say = () => {
  due = false;
  for (const slider of document.querySelectorAll(".lora-kit .widget-slider, .lora-kit .widget-hslider")) {
    const handle = slider.querySelector(".noUi-handle, .ui-slider-handle"), readout = slider.querySelector(".widget-readout");
    if (!handle || !readout) continue;
    const text = readout.textContent, number = Number(text.replace(/[^0-9.e+-]/g, ""));
    set(handle, "role", "slider");
    set(handle, "aria-label", slider.querySelector(".widget-label").textContent.replace("\n", ", "));
    set(handle, "aria-valuetext", Number.isFinite(number) ? String(number) : text);
  }
  for (const live of document.querySelectorAll(".lora-kit-live")) set(live, "aria-live", "polite");
};
const later = () => { if (!due) { due = true; requestAnimationFrame(say); } };
new MutationObserver(later).observe(document.body, {
  subtree: true, childList: true, characterData: true, attributeFilter: ["aria-valuetext", "aria-valuenow", "style"]
});
later();
})()"""


class Quiet:
    """Tells the reader's changes of widgets from the program's own.

    Within `with quiet:` no observer that was made by `hears` is called by this thread's changes; one of another thread waits
    until the block is over, and is called then. So a thread that paints never swallows a knob that is turned meanwhile.
    """

    def __init__(self):
        self._lock, self._depth = threading.RLock(), 0

    def __enter__(self) -> None:
        self._lock.acquire()
        self._depth += 1

    def __exit__(self, *error: Any) -> None:
        self._depth -= 1
        self._lock.release()

    def hears(self, action: Callable[[Any], None]) -> Callable[[Any], None]:
        """The action as an observer, which is called for the reader's changes only, one at a time."""

        def observer(change):
            with self._lock:
                if not self._depth:
                    action(change)

        return observer


def labelled(make: Callable[..., Any], name: str, text: str, **look: Any) -> Any:
    """A widget with its name before it and `text` as a tooltip, in ipywidgets 8 and 7."""
    look = {"description": name, "style": {"description_width": "14.8em"}, "layout": ROW} | look
    widget = make(**look)
    setattr(widget, "description_tooltip" if widget.has_trait("description_tooltip") else "tooltip", text)
    return widget


def show(box: Any) -> None:
    """Display the page that a widget holds, and let its sliders be heard."""
    from IPython.display import Javascript, display

    display(box, Javascript(SLIDERS_SAID))


def heading_html(text: str) -> str:
    """A line in bold above a part of the page."""
    return page(f'<div role="heading" aria-level="2" style="font-weight: bold; padding-top: 0.6em">{text}</div>')


def titled(title: str, *widgets: Any) -> Any:
    """A part of the page under its heading."""
    import ipywidgets

    return ipywidgets.VBox([ipywidgets.HTML(heading_html(title)), *widgets])
