"""Measure the explorer in a real browser: from a key press to the changed picture, and from a fresh kernel to the first.

    python benchmarks/explorer.py [--front-ends jupyterlab voila] [--pinned 0 2] [--json FILE]

Prints Markdown tables. Servers are started as `make lab` and `make explorer` do; --as-they-come leaves that out. "floor" is the same slider in the same front end with a picture of nothing but its value.
`make test` sets up what it needs: a Chromium, and .venv-widgets7 for the front end widgets7.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import sync_playwright

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "browser"))
import chromium
import front_ends

UPDATES = 100_000
KNOB = "learning_rate"
REST = (
    50  # ms between a picture and the next key, in which the kernel comes to rest; 10 is like a slider that is dragged
)

EXPLORER = f"from lora_kit.explorer import explorer\n\nexplorer(max_train_steps={UPDATES})"
FLOOR = f"""
import ipywidgets
knob, picture = ipywidgets.FloatLogSlider(value=1e-3, min=-6, description="{KNOB}"), ipywidgets.HTML()
def follow(_=None):
    picture.value = f'<svg role="img"><text y="20">{{knob.value}}</text></svg>'
knob.observe(follow, "value")
follow()
ipywidgets.VBox([knob, picture])"""

# The page's own clock: a key press calls `pressed`, a change of any picture ends the wait; both are read in the page.
CLOCK = """
const pictures = () => [...document.querySelectorAll("PICTURE")].map(one => one.outerHTML).join();
window.nextPicture = (since) => new Promise(done => {
    const before = pictures();
    const look = () => {
        if (pictures() === before) return false;
        done(performance.now() - since());
        return true;
    };
    new MutationObserver((_, observer) => look() && observer.disconnect()).observe(
        document, {subtree: true, childList: true, attributes: true, characterData: true});
});
window.addEventListener("keydown", () => { window.pressed = performance.now(); }, {capture: true});
""".replace("PICTURE", front_ends.PICTURE)
FIRST = "window.measured = nextPicture(() => 0);"  # from the start of the page's loading
RESTART_AND_RUN = """async () => {
    await jupyterapp.shell.currentWidget.sessionContext.session.kernel.restart();
    await jupyterapp.commands.execute("notebook:clear-all-cell-outputs");
    const start = performance.now(), first = nextPicture(() => start);
    await jupyterapp.commands.execute("notebook:run-all-cells");
    return await first;
}"""


def press(page, key, rest=REST):
    """Milliseconds from the key press to the changed picture."""
    page.evaluate("window.measured = nextPicture(() => window.pressed), undefined")
    page.keyboard.press(key)
    milliseconds = page.evaluate("window.measured")
    page.wait_for_timeout(rest)
    return milliseconds


def presses(front_end, page, count, code=EXPLORER, pinned=0, rest=REST):
    """The milliseconds of `count` key presses on the knob, with `pinned` curves in the picture; None without a Pin button."""
    front_end.show(page, code)
    for _ in range(pinned):
        button = page.get_by_role("button", name="Pin", exact=True)
        if not button.count():
            return None
        page.evaluate("window.measured = nextPicture(() => 0), undefined")
        button.click()
        page.evaluate("window.measured")
        front_ends.slider(page, KNOB).focus()
        press(page, "ArrowRight")
    front_ends.slider(page, KNOB).focus()
    times = [press(page, ("ArrowRight", "ArrowLeft")[index % 2], rest) for index in range(count + 4)]
    return times[4:]  # the first few find nothing in any cache


def first_pictures(front_end, context, count):
    """Seconds to the first picture. JupyterLab: from running the cell in a restarted kernel. Voila: from asking for the
    page, so with the start of its kernel and the page's own loading."""
    if front_end.name == "jupyterlab":
        page = context.new_page()
        front_end.show(page, EXPLORER)
        times = [page.evaluate(RESTART_AND_RUN) for _ in range(count)]
        page.close()
    else:
        times = []
        for _ in range(count):
            page = context.new_page()
            page.add_init_script(FIRST)
            front_end.visit(page, EXPLORER)
            times.append(page.evaluate("window.measured"))
            page.close()
    return [milliseconds / 1000 for milliseconds in times]


def versions(python):
    """What the front end of this Python is made of."""
    code = "import importlib.metadata as m, json; print(json.dumps({d.name.lower(): d.version for d in m.distributions()}))"
    found = json.loads(subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout)
    return {name: found[name] for name in ("ipywidgets", "ipykernel", "jupyterlab", "voila") if name in found}


def report(result):
    """Print the tables."""
    print(
        f"{KNOB} moved by the arrow keys, one at a time, with {UPDATES:,} updates. {result['cores']} cores, load average "
        f"{result['load']:.2f} before; {result['rest_ms']} ms of rest after each; servers "
        f"{'as they come' if result['as_they_come'] else 'as make starts them'}; Python {result['python']}, Chromium {result['chromium']}."
    )
    for name, found in result["versions"].items():
        print(f"{name}: {', '.join(map(' '.join, found.items()))}.")
    print("\n| front end | picture | presses | key to picture, median ms | 95th percentile ms |\n|---|---|---|---|---|")
    for case, times in result["key_ms"].items():
        if times is None:
            print(f"| {case} | 0 | no Pin button | |")
        else:
            high = statistics.quantiles(times, n=20)[-1]
            print(f"| {case} | {len(times)} | {statistics.median(times):.1f} | {high:.1f} |")
    print("\n| front end | first pictures | median s | most s |\n|---|---|---|---|")
    for name, times in result["first_s"].items():
        print(f"| {name} | {len(times)} | {statistics.median(times):.2f} | {max(times):.2f} |")


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--front-ends", nargs="+", default=["jupyterlab", "voila"], choices=list(front_ends.PYTHONS))
    parser.add_argument("--pinned", nargs="+", type=int, default=[0, 2], help="pinned curves; default: 0 2")
    parser.add_argument("--presses", type=int, default=200, help="key presses for each; default: 200")
    parser.add_argument("--starts", type=int, default=5, help="first pictures for each; default: 5")
    parser.add_argument(
        "--rest", type=int, default=REST, help=f"ms between a picture and the next key; default: {REST}"
    )
    parser.add_argument("--as-they-come", action="store_true", help="servers without the settings of scripts/jupyter")
    parser.add_argument("--json", type=Path, help="write all times there, too")
    args = parser.parse_args()

    result = {"load": os.getloadavg()[0], "cores": os.cpu_count(), "python": platform.python_version(), "versions": {}}
    result |= {"as_they_come": args.as_they_come, "rest_ms": args.rest, "key_ms": {}, "first_s": {}}
    cases = {"floor": {"code": FLOOR}, **{f"{count} pinned": {"pinned": count} for count in args.pinned}}
    with sync_playwright() as playwright, tempfile.TemporaryDirectory() as folder:
        browser = playwright.chromium.launch(executable_path=chromium.find(), args=front_ends.BROWSER_FLAGS)
        result["chromium"] = browser.version
        context = browser.new_context(viewport={"width": 1600, "height": 1200})
        context.add_init_script(CLOCK)
        for name in args.front_ends:
            result["versions"][name] = versions(front_ends.PYTHONS[name])
            settings = {} if args.as_they_come else front_ends.AS_MAKE
            with front_ends.serving(name, Path(folder) / name, settings) as front_end:
                result["first_s"][name] = first_pictures(front_end, context, args.starts)
                for case, about in cases.items():
                    page = context.new_page()
                    result["key_ms"][f"{name} | {case}"] = presses(
                        front_end, page, args.presses, **about, rest=args.rest
                    )
                    page.close()
        browser.close()
    report(result)
    if args.json:
        args.json.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
