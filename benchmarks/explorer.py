"""Measure the explorer in a real browser: from a key press to the changed picture, and from nothing to the first.

    python benchmarks/explorer.py [--front-ends page jupyterlab] [--pinned 0 2] [--json FILE]

Prints Markdown tables. "page" is what `make explorer` serves, with an empty cache each time. JupyterLab is started as `make lab`
does; --as-they-come leaves that out. "floor" is the same slider there with a picture of nothing but its value. `make test` sets
up what it needs: a Chromium, the site's environment, and .venv-widgets7 for the front end widgets7.
"""

import argparse
import contextlib
import functools
import gzip
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import threading
from http.server import ThreadingHTTPServer
from pathlib import Path

from playwright.sync_api import sync_playwright

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tests" / "browser"), str(ROOT / "scripts")]
import build_explorer  # noqa: E402
import chromium  # noqa: E402
import front_ends  # noqa: E402

UPDATES = 100_000
KNOB = "learning_rate"
REST = 50  # ms between a picture and the next key, in which Python comes to rest; 10 is like a slider that is dragged

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
const pictures = () => [...document.querySelectorAll("PICTURE, .picture svg")].map(one => one.outerHTML).join();
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
PAINTED = """new Promise(done => new PerformanceObserver(list => done(list.getEntries()[0].startTime)).observe(
    { type: "paint", buffered: true }))"""
ALIVE = """new Promise(done => {
    const look = () => document.documentElement.classList.contains("alive") && done(performance.now());
    look() || new MutationObserver(look).observe(document.documentElement, { attributes: true });
})"""
RESTART_AND_RUN = """async () => {
    await jupyterapp.shell.currentWidget.sessionContext.session.kernel.restart();
    await jupyterapp.commands.execute("notebook:clear-all-cell-outputs");
    const start = performance.now(), first = nextPicture(() => start);
    await jupyterapp.commands.execute("notebook:run-all-cells");
    return await first;
}"""


class Counting(build_explorer.Handler):
    """Counts the bytes of what is asked for, texts as the web compresses them."""

    def copyfile(self, source, outputfile):
        data = source.read()
        self.server.sent += len(data) if self.path.endswith(".gz") else len(gzip.compress(data))
        outputfile.write(data)


class WebPage:
    """The page, built and served as by `make explorer`, like a `front_ends.FrontEnd`."""

    name = "page"

    def __init__(self, folder):
        build_explorer.build(folder)
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Counting, directory=folder))
        self.server.sent = 0
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}/"

    def show(self, page, code=""):
        page.goto(f"{self.url}#max_train_steps={UPDATES}")
        page.evaluate(ALIVE)

    def starts(self, browser, count):
        """(seconds until painted, seconds until alive, bytes over the wire) of first visits."""
        found = []
        for _ in range(count):
            context = browser.new_context(viewport={"width": 1280, "height": 800}, service_workers="block")
            page = context.new_page()
            self.server.sent = 0
            page.goto(self.url, wait_until="commit")
            alive = page.evaluate(ALIVE)
            found.append((page.evaluate(PAINTED) / 1000, alive / 1000, self.server.sent))
            context.close()
        return found


@contextlib.contextmanager
def serving(name, folder, settings):
    """A front end, as long as the block runs."""
    if name != "page":
        with front_ends.serving(name, folder, settings) as front_end:
            yield front_end
        return
    page = WebPage(folder)
    try:
        yield page
    finally:
        page.server.shutdown()
        page.server.server_close()


def knob(page):
    """The handle of the learning rate."""
    own = page.locator(f"#knob-{KNOB}")
    return own if own.count() else front_ends.slider(page, KNOB)


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
        knob(page).focus()
        press(page, "ArrowRight")
    knob(page).focus()
    times = [press(page, ("ArrowRight", "ArrowLeft")[index % 2], rest) for index in range(count + 4)]
    return times[4:]  # the first few find nothing in any cache


def first_pictures(front_end, context, count):
    """Seconds from running the cell in a restarted kernel to the first picture."""
    page = context.new_page()
    front_end.show(page, EXPLORER)
    times = [page.evaluate(RESTART_AND_RUN) for _ in range(count)]
    page.close()
    return [milliseconds / 1000 for milliseconds in times]


def versions(python):
    """What the front end of this Python is made of."""
    code = "import importlib.metadata as m, json; print(json.dumps({d.name.lower(): d.version for d in m.distributions()}))"
    found = json.loads(subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout)
    return {name: found[name] for name in ("ipywidgets", "ipykernel", "jupyterlab") if name in found}


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
    if visits := result["visits"]:
        print(
            "\n| first visits of the page | painted, median and most s | alive, median and most s | MB over the wire |\n|---|---|---|---|"
        )
        painted, alive, sent = zip(*visits, strict=True)
        spans = [f"{statistics.median(times):.2f}, {max(times):.2f}" for times in (painted, alive)]
        print(f"| {len(visits)} | {spans[0]} | {spans[1]} | {max(sent) / 1e6:.2f} |")
    print("\n| front end | first pictures | median s | most s |\n|---|---|---|---|")
    for name, times in result["first_s"].items():
        print(f"| {name} | {len(times)} | {statistics.median(times):.2f} | {max(times):.2f} |")


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--front-ends", nargs="+", default=["page", "jupyterlab"], choices=["page", *front_ends.PYTHONS]
    )
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
    result |= {"as_they_come": args.as_they_come, "rest_ms": args.rest, "key_ms": {}, "first_s": {}, "visits": []}
    cases = {"floor": {"code": FLOOR}, **{f"{count} pinned": {"pinned": count} for count in args.pinned}}
    with sync_playwright() as playwright, tempfile.TemporaryDirectory() as folder:
        browser = playwright.chromium.launch(executable_path=chromium.find(), args=front_ends.BROWSER_FLAGS)
        result["chromium"] = browser.version
        context = browser.new_context(viewport={"width": 1600, "height": 1200})
        context.add_init_script(CLOCK)
        for name in args.front_ends:
            if name != "page":
                result["versions"][name] = versions(front_ends.PYTHONS[name])
            settings = {} if args.as_they_come else front_ends.AS_MAKE
            with serving(name, Path(folder) / name, settings) as front_end:
                if name == "page":
                    result["visits"] = front_end.starts(browser, args.starts)
                else:
                    result["first_s"][name] = first_pictures(front_end, context, args.starts)
                for case, about in cases.items():
                    if name == "page" and case == "floor":
                        continue
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
