"""The servers that `make lab` and `make explorer` start: what reaches the browser, and when."""

import http.client
import os
import re
from urllib.parse import urlsplit

import front_ends
import nbformat
import psutil
import pytest
from playwright.sync_api import expect
from running import wait_for
from traitlets.config.loader import PyFileConfigLoader


@pytest.mark.parametrize(
    ("name", "as_make"),
    [("jupyterlab", True), pytest.param("jupyterlab", False, marks=pytest.mark.long), ("voila", True)],
    ids=["jupyterlab as make starts it", "jupyterlab as it comes", "voila as make starts it"],
)  # fmt: skip
def test_a_server_of_make_holds_no_message_back(name, as_make, page, tmp_path):
    """With Nagle's algorithm most answers to keys in quick succession wait the 40 ms until the browser's acknowledgement. Its
    switch is read whenever the server sends a message of the kernel; as it comes the server leaves the algorithm on."""
    folders = [*([front_ends.ROOT / "scripts" / "jupyter"] if as_make else []), front_ends.HERE / "probe"]
    sent = tmp_path / "sent.txt"
    settings = {"JUPYTER_CONFIG_PATH": os.pathsep.join(map(str, folders)), "LORA_KIT_PROBE": str(sent)}
    with front_ends.serving(name, tmp_path / name, settings) as front_end:
        picture = front_end.show(page)
        handle = front_ends.slider(page, "learning_rate")
        handle.focus()
        sent.write_text("")
        for _ in range(3):
            before = picture.inner_html()
            handle.press("ArrowRight")
            expect(picture).not_to_have_js_property("innerHTML", before)
        page.goto("about:blank")  # the server ends sooner when nobody looks
    messages = sent.read_text().split("\n")[:-1]
    assert len(messages) >= 3 and set(messages) == {"at once" if as_make else "later"}


def get(front_end, path, **headers):
    """(status, where it leads to) of a GET, whose answer is read to its end."""
    connection = http.client.HTTPConnection(urlsplit(front_end.url).netloc)
    connection.request("GET", path, headers=headers)
    answer = connection.getresponse()
    answer.read()
    connection.close()
    return answer.status, answer.getheader("Location", "")


def kernels(front_end):
    """The kernels that a server has started and that live."""
    found = []
    for process in psutil.Process(front_end.process.pid).children(recursive=True):
        try:
            found += [process.pid] if "ipykernel_launcher" in " ".join(process.cmdline()) else []
        except psutil.NoSuchProcess:
            continue
    return found


@pytest.mark.slow
def test_only_who_has_the_token_gets_a_kernel_which_ends_with_its_page(page, tmp_path):
    """The explorer's server as make starts it, but for the seconds until a kernel that nobody looks at ends."""
    soon = ["--MappingKernelManager.cull_idle_timeout=20", "--MappingKernelManager.cull_interval=1"]
    with front_ends.serving("voila", tmp_path / "voila", flags=soon) as front_end:
        token = wait_for(lambda: re.search(r"\?token=(\w+)", front_end.log.read_text()))[1]
        notebook = nbformat.v4.new_notebook(
            cells=[nbformat.v4.new_code_cell("import ipywidgets\nipywidgets.IntSlider()")]
        )
        nbformat.write(notebook, front_end.folder / "page.ipynb")
        path = "/voila/render/page.ipynb"
        assert get(front_end, f"{path}?token={token}", Host="evil.example")[0] == 403
        for stranger in ({}, {"Origin": "http://evil.example"}):
            status, leads_to = get(front_end, path, **stranger)
            assert status == 302 and leads_to.startswith("/login")
        assert get(front_end, f"{path}?token=guessed")[0] == 302
        assert kernels(front_end) == []
        for _ in range(3):
            assert get(front_end, f"{path}?token={token}")[0] == 200  # and goes away
        page.goto(f"{front_end.url}{path}?token={token}", timeout=front_ends.SHOWN)
        page.locator(".widget-slider").first.wait_for(timeout=front_ends.SHOWN)
        assert kernels(front_end)
        wait_for(lambda: len(kernels(front_end)) == 1)  # the one that somebody looks at
        page.goto("about:blank")
        wait_for(lambda: kernels(front_end) == [])


def test_make_s_servers_end_kernels_that_nobody_looks_at():
    """Those of the explorer; a notebook's in JupyterLab go on, with what they train."""
    folder = str(front_ends.ROOT / "scripts" / "jupyter")
    explorer, lab = (
        PyFileConfigLoader(name, folder).load_config() for name in ("voila.py", "jupyter_server_config.py")
    )
    manager = explorer.MappingKernelManager
    assert 0 < manager.cull_interval <= manager.cull_idle_timeout <= 600 and "cull_connected" not in manager
    assert "MappingKernelManager" not in lab
