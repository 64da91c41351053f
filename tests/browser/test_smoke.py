"""The explorer in a real browser: it is drawn, and it follows a slider. In JupyterLab and voila, with ipywidgets 8 and 7.7."""

import importlib.util
import statistics

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


@pytest.mark.parametrize("name", ["jupyterlab", "voila"])
def test_a_server_of_make_holds_no_message_back(name, request, page):
    """With Nagle's algorithm most answers to keys in quick succession wait the 40 ms until the browser's acknowledgement."""
    spec = importlib.util.spec_from_file_location("benchmark", front_ends.ROOT / "benchmarks" / "explorer.py")
    benchmark = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(benchmark)
    page.add_init_script(benchmark.CLOCK)
    quick = []
    while len(quick) < 3 and not any(one < 40 for one in quick):  # on a busy machine a second and a third time
        times = benchmark.presses(request.getfixturevalue(name), page, 60, benchmark.FLOOR, rest=10)
        quick.append(statistics.quantiles(times[20:], n=4)[0])  # a new connection is acknowledged at once
    assert quick[-1] < 40
