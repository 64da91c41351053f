"""What shows the explorer in a notebook: JupyterLab, and for ipywidgets 7.7 voila, each a server of its own for a browser to open.

The tests and benchmarks/explorer.py use it. "widgets7" has the ipywidgets that Colab has.
"""

import contextlib
import itertools
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import nbformat

from lora_kit.system.world import free_port

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
PYTHONS = {"jupyterlab": sys.executable, "widgets7": ROOT / ".venv-widgets7/bin/python"}
EXPLORER = "from lora_kit.explorer import explorer\n\nexplorer()"
KEPT = ROOT / "build" / "browser"  # screenshots
PICTURE = ".jupyter-widgets svg[role=img]"
BROWSER_FLAGS = [
    "--no-sandbox",  # which root and containers need
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",  # what a page wants from elsewhere is not there, at once
]
AS_MAKE = {"JUPYTER_CONFIG_PATH": str(ROOT / "scripts" / "jupyter")}  # as `make lab` starts a server
START, STOP = 180, 60  # seconds, on a busy machine
SHOWN = 180_000  # milliseconds


class FrontEnd:
    """A running front end: `name`, `url`, the `folder` whose notebooks it shows, its `process` and its `log`."""

    def __init__(self, name, url, folder, process, log):
        self.name, self.url, self.folder, self.process, self.log = name, url, folder, process, log
        self._numbers = itertools.count()

    def visit(self, page, code=EXPLORER):
        """Open a fresh notebook with `code` as its one cell; "widgets7" also runs it, JupyterLab on `run`."""
        notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)])
        notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
        path = self.folder / f"{next(self._numbers)}.ipynb"
        nbformat.write(notebook, path)
        if self.name == "jupyterlab":
            page.goto(f"{self.url}/lab/tree/{path.name}?reset")
            page.wait_for_function(
                "window.jupyterapp?.shell.currentWidget?.sessionContext?.session?.kernel?.status == 'idle'",
                timeout=SHOWN,
            )
        else:
            page.goto(f"{self.url}/voila/render/{path.name}", timeout=SHOWN)

    def run(self, page):
        """JupyterLab: run all cells and wait for the end."""
        page.evaluate("jupyterapp.commands.execute('notebook:run-all-cells')")

    def show(self, page, code=EXPLORER):
        """Open a fresh notebook with `code` as its one cell, run it, and wait for the first picture; its locator."""
        self.visit(page, code)
        if self.name == "jupyterlab":
            self.run(page)
        picture = page.locator(PICTURE).first
        picture.wait_for(timeout=SHOWN)
        return picture


def label(page, name):
    """The label of a widget: a setting's name stands in it below a plain word, any other's alone."""
    return page.locator(".widget-label, .widget-label-basic").filter(
        has_text=re.compile(rf"^(.*\n)?\s*{re.escape(name)}\s*$")
    )


def slider(page, name):
    """The handle of the slider with this name, to be focused and moved with the arrow keys; ipywidgets 8 or 7."""
    row = page.locator(".widget-slider, .widget-hslider").filter(has=label(page, name))
    return row.locator(".noUi-handle, .ui-slider-handle").first


def _command(name, folder, port):
    """The command line of the front end `name`, which shows the notebooks in `folder`."""
    if not Path(PYTHONS[name]).exists():
        raise FileNotFoundError(f"{PYTHONS[name]} is missing: `make test` sets it up")
    if name == "jupyterlab":
        settings = [
            "jupyterlab",
            f"--ServerApp.root_dir={folder}",
            f"--ServerApp.port={port}",
            "--ServerApp.ip=127.0.0.1",
            "--ServerApp.allow_root=True",
            "--IdentityProvider.token=",
            "--LabApp.expose_app_in_browser=True",  # as window.jupyterapp
        ]
    else:
        settings = ["voila", str(folder), f"--port={port}", "--Voila.ip=127.0.0.1"]
    return [str(PYTHONS[name]), "-m", *settings, "--no-browser"]


def _started(process, log, name):
    """The address that the server has written into its log; it takes another port where the one it was given is in use."""
    limit = time.monotonic() + START
    while process.poll() is None and time.monotonic() < limit:
        for port in re.findall(r"http://(?:127\.0\.0\.1|localhost):(\d+)", log.read_text()):
            if _answers(url := f"http://127.0.0.1:{port}"):
                return url
        time.sleep(0.1)
    raise RuntimeError(f"{name} did not start:\n{log.read_text()}")


def _answers(url):
    with contextlib.suppress(OSError):
        return urllib.request.urlopen(url, timeout=START).status == 200
    return False


@contextlib.contextmanager
def serving(name, folder, settings=AS_MAKE):
    """The front end "jupyterlab" or "widgets7", as long as the block runs. `folder`: for all that it writes;
    `settings`: environment variables, {} for a server as it comes."""
    notebooks, log = folder / "notebooks", folder / "server.log"
    notebooks.mkdir(parents=True)
    places = ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR", "JUPYTERLAB_SETTINGS_DIR")
    places = {place: str(folder / place.lower()) for place in (*places, "JUPYTERLAB_WORKSPACES_DIR")}
    no_news = folder / "jupyterlab_settings_dir" / "@jupyterlab/apputils-extension/notification.jupyterlab-settings"
    no_news.parent.mkdir(parents=True)
    no_news.write_text('{"fetchNews": "false", "checkForUpdates": false}')  # or JupyterLab asks, over the page
    if name == "widgets7":
        settings = {}  # its server is too old for them
    with log.open("w") as out:
        process = subprocess.Popen(
            _command(name, notebooks, free_port()),
            env={**os.environ, **places, **settings, "PYTHONPATH": str(ROOT)},
            cwd=notebooks,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield FrontEnd(name, _started(process, log, name), notebooks, process, log)
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOP)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
