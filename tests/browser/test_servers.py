"""The server that `make lab` starts: what reaches the browser, and when."""

import os

import front_ends
import pytest
from playwright.sync_api import expect


@pytest.mark.parametrize(
    "as_make", [True, pytest.param(False, marks=pytest.mark.long)], ids=["as make starts it", "as it comes"]
)
def test_make_s_jupyterlab_holds_no_message_back(as_make, page, tmp_path):
    """With Nagle's algorithm most answers to keys in quick succession wait the 40 ms until the browser's acknowledgement. Its
    switch is read whenever the server sends a message of the kernel; as it comes the server leaves the algorithm on."""
    folders = [*([front_ends.ROOT / "scripts" / "jupyter"] if as_make else []), front_ends.HERE / "probe"]
    sent = tmp_path / "sent.txt"
    settings = {"JUPYTER_CONFIG_PATH": os.pathsep.join(map(str, folders)), "LORA_KIT_PROBE": str(sent)}
    with front_ends.serving("jupyterlab", tmp_path / "jupyterlab", settings) as front_end:
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
