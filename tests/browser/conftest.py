"""Fixtures: the front ends, each started once a file where a test asks for it, and a page in a real browser."""

from pathlib import Path

import chromium
import front_ends
import pytest
from playwright.sync_api import expect, sync_playwright

HERE = Path(__file__).parent
FAILED = pytest.StashKey[bool]()
expect.set_options(timeout=60_000)  # ms; other tests run beside these


def pytest_collection_modifyitems(items):
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.slow)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    item.stash[FAILED] = item.stash.get(FAILED, False) or report.failed
    return report


def _front_end(name):
    @pytest.fixture(scope="module", name=name)  # its kernels end with it
    def fixture(tmp_path_factory):
        with front_ends.serving(name, tmp_path_factory.mktemp(name)) as running:
            yield running

    return fixture


jupyterlab, widgets7 = map(_front_end, ("jupyterlab", "widgets7"))


@pytest.fixture(params=["jupyterlab", "widgets7"])
def front_end(request):
    """A front end for each of the two generations of ipywidgets."""
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module")  # not longer: while playwright is on, no other test could use asyncio
def browser():
    with sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=chromium.find(), args=front_ends.BROWSER_FLAGS)


@pytest.fixture
def page(browser, request):
    """A page of its own for every test; where the test fails, its picture is kept in build/browser."""
    page = browser.new_page(viewport={"width": 1280, "height": 1200})
    yield page
    if request.node.stash.get(FAILED, False):
        page.screenshot(path=front_ends.KEPT / f"failed-{request.node.name}.png", full_page=True)
    page.close()
