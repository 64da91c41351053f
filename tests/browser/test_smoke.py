"""The explorer in a real browser: it is drawn, and it follows a slider. In JupyterLab and voila, with ipywidgets 8 and 7.7."""

import os

import front_ends
import pytest
from playwright.sync_api import expect


def test_the_picture_follows_a_slider(front_end, page):
    picture = front_end.show(page)
    old_slider = page.locator(".ui-slider-handle").count() > 0  # ipywidgets 7 has jQuery's
    assert old_slider == (front_end.name == "widgets7")
    before = picture.inner_html()
    handle = front_ends.slider(page, "learning_rate")
    handle.focus()
    handle.press("ArrowRight")
    expect(picture).not_to_have_js_property("innerHTML", before)
    page.screenshot(path=front_ends.KEPT / f"{front_end.name}.png", full_page=True)


def test_the_notebook_of_make_explorer(voila, page):
    notebook = front_ends.ROOT / "scripts" / "explorer.ipynb"
    (voila.folder / notebook.name).write_bytes(notebook.read_bytes())
    page.goto(f"{voila.url}/voila/render/{notebook.name}")
    page.locator(front_ends.PICTURE).first.wait_for(timeout=front_ends.SHOWN)
    expect(page.get_by_role("heading", level=1)).to_be_visible()


@pytest.mark.parametrize("as_make", [True, False], ids=["as make starts it", "as it comes"])
@pytest.mark.parametrize("name", ["jupyterlab", "voila"])
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
