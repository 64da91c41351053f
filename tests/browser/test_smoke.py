"""The explorer in a real browser: it is drawn, and it follows a slider. In JupyterLab and voila, with ipywidgets 8 and 7.7."""

import front_ends
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
