"""The site as `make site` builds it: its links, and its pages in a real browser, on a wide screen and on a phone."""

import functools
import re
import subprocess
import threading
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from urllib.parse import unquote, urlsplit

import front_ends
import pytest
from playwright.sync_api import expect
from test_explorer import CONTRASTS

PYTHON = front_ends.ROOT / ".venv-site" / "bin" / "python"
NOTEBOOKS = [path.stem for path in sorted((front_ends.ROOT / "notebooks").glob("*.ipynb"))]
EXPLORER = "explorer/index.html"
FETCHED = {("img", "src"), ("script", "src"), ("link", "href"), ("source", "src"), ("iframe", "src")}
ALL_CONTRASTS = CONTRASTS.replace(".widget-html-content *", "article *, .sidebar-drawer *, .toc-drawer *, footer *")
assert ALL_CONTRASTS != CONTRASTS


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@pytest.fixture(scope="session")
def site(tmp_path_factory):
    """A fresh site, served: its `folder`, its `url` and the relative addresses of its `pages`."""
    if not PYTHON.exists():
        pytest.skip(f"{PYTHON} is missing: `make test` or `make site` sets it up")
    folder = tmp_path_factory.mktemp("site") / "site"
    command = [PYTHON, front_ends.ROOT / "scripts" / "build_site.py", "--out", folder]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=folder))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    pages = sorted(str(path.relative_to(folder)) for path in folder.rglob("*.html"))
    yield SimpleNamespace(folder=folder, url=f"http://127.0.0.1:{server.server_port}", pages=pages)
    server.shutdown()
    server.server_close()


class Page(HTMLParser):
    """What a page names: its `ids`, its `links` as (element, attribute, address), and pictures without an alt text."""

    def __init__(self, path):
        super().__init__()
        self.ids, self.links, self.without_alt = set(), [], []
        self.feed(path.read_text())

    def handle_starttag(self, element, attributes):
        for name, value in attributes:
            if name == "id":
                self.ids.add(value)
            elif name in ("href", "src") and value:
                self.links.append((element, name, value))
        if element == "img" and not dict(attributes).get("alt"):
            self.without_alt.append(attributes)


def test_every_link_and_picture_is_there(site):
    read = {site.folder / name: Page(site.folder / name) for name in site.pages}
    broken, elsewhere, without_alt, count = [], [], [], 0
    for path, page in read.items():
        without_alt += [(path.name, one) for one in page.without_alt]
        for element, attribute, address in page.links:
            parts = urlsplit(address)
            if parts.scheme or parts.netloc:
                if parts.scheme != "data" and (element, attribute) in FETCHED:
                    elsewhere.append((path.name, address))
                continue
            count += 1
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            anchor = unquote(parts.fragment)
            if not target.is_file() or (anchor and target in read and anchor not in read[target].ids | {"top"}):
                broken.append((path.name, address))
    assert count > 500
    assert (broken, elsewhere, without_alt) == ([], [], [])


def test_previous_and_next_go_through_all_notebooks(site, page):
    page.goto(f"{site.url}/index.html")
    visited = []
    for _ in NOTEBOOKS:
        page.locator("a.next-page").click()
        visited.append(page.url.rpartition("/")[2])
    assert visited == [f"{name}.html" for name in NOTEBOOKS]
    page.locator("a.prev-page").click()
    expect(page).to_have_url(re.compile(NOTEBOOKS[-2]))


def test_fits_a_phone_and_asks_nobody_else(site, page):
    asked, wide = [], {}
    page.on("request", lambda request: asked.append(request.url))
    page.set_viewport_size({"width": 360, "height": 740})
    for name in site.pages:
        page.goto(f"{site.url}/{name}", wait_until="load")
        root = page.evaluate("[document.documentElement.scrollWidth, document.documentElement.clientWidth]")
        if root[0] > root[1]:
            wide[name] = root
    assert wide == {}
    assert len(asked) > 5 * len(site.pages)
    fetched = [url for url in asked if urlsplit(url).scheme not in ("blob", "data")]  # these a page has in itself
    assert {urlsplit(url).hostname for url in fetched} == {"127.0.0.1"}
    page.goto(f"{site.url}/notebooks/01_parameters.html")
    page.screenshot(path=front_ends.KEPT / "site-phone.png")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_readable(site, page, scheme):
    page.emulate_media(color_scheme=scheme)
    pale = {}
    for name in site.pages:
        if name == EXPLORER:  # tests/browser/test_web_page.py
            continue
        page.goto(f"{site.url}/{name}", wait_until="load")
        contrasts, _ = page.evaluate(ALL_CONTRASTS)
        if not contrasts or min(contrasts) < 4.5:
            pale[name] = min(contrasts, default=None)
    assert pale == {}
    page.goto(f"{site.url}/notebooks/00_start_here.html")
    page.screenshot(path=front_ends.KEPT / f"site-{scheme}.png")


def test_the_button_changes_light_to_dark(site, page):
    page.emulate_media(color_scheme="light")
    page.goto(f"{site.url}/index.html")
    ground = "getComputedStyle(document.body).backgroundColor"
    before = page.evaluate(ground)
    button = page.locator(".content-icon-container .theme-toggle")
    seen = set()
    for _ in range(3):
        button.click()
        seen.add(page.evaluate(ground))
    assert before in seen and len(seen) == 2


@pytest.mark.parametrize("start", ["from a server", "from the folder"])
def test_search(site, page, start):
    home = f"{site.url}/index.html" if start == "from a server" else (site.folder / "index.html").as_uri()
    for word, found in (("decoupled", "02_optimizers"), ("even_batches", "04_steps"), ("NCCL", "glossary")):
        page.goto(home)
        box = page.get_by_role("textbox", name="Search")
        box.fill(word)
        box.press("Enter")
        page.locator(f"#search-results a[href*='{found}']").first.click()
        expect(page.locator("article")).to_contain_text(word)
        assert found in page.url


def test_formulas_are_drawn_and_solutions_are_folded(site, page):
    page.goto(f"{site.url}/notebooks/01_parameters.html")
    block = page.locator("math[display=block]")
    assert block.count() == 1 and block.bounding_box()["height"] > 20
    assert page.locator("math").count() > 8 and "$" not in page.locator("section > p").all_inner_texts()[3]
    solution = page.get_by_text("answer = 8 * (320 + 320)").last
    expect(solution).to_be_hidden()
    page.locator("details.hide", has=solution).locator("summary").first.click()
    expect(solution).to_be_visible()
