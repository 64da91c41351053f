"""The explorer's page as `make explorer` and `make site` build it, in a real browser, beside the same Python outside of it."""

import contextlib
import functools
import json
import random
import shutil
import sys
import threading
from http.server import ThreadingHTTPServer
from types import SimpleNamespace

import front_ends
import pytest
from playwright.sync_api import expect

from lora_kit.explorer.controls import CONTROLS, KINDS, LOOKS, TARGET_SETS
from lora_kit.explorer.presets import PRESETS
from lora_kit.explorer.session import Session
from lora_kit.steps import AXES
from lora_kit.trainers.known import TRAINERS

sys.path[:0] = [str(front_ends.ROOT / "scripts"), str(front_ends.ROOT / "tests" / "explorer")]
import build_explorer  # noqa: E402
from test_address import randomly_turned  # noqa: E402

AXE = (
    "axe-core",
    "4.14.1",
    "sha512-FHfa+lmNjQZfJz1q8wKqIDwC6DExcHt/pkjNQb09a3NPjCKg2rhu5qb2S4r76ASyFNNtuFooJpZe37OgudVGtQ==",
)
PUZZLE = next(name for name in PRESETS if name.startswith("puzzle"))
ALIVE = "html.alive"
# what stands on the page and is otherwise in a view: the names of these parts
OTHERWISE = """view => {
    const same = (place, html) => { const made = document.createElement(place.tagName); made.innerHTML = html; return made.innerHTML === place.innerHTML; };
    const wrong = [], check = (name, right) => right || wrong.push(name);
    for (const [name, html] of Object.entries(view.panels)) check(name, same(document.querySelector(`[data-body=${name}]`), html));
    for (const name of ["rate", "title"]) check(name, document.querySelector(`[data-text=${name}]`).textContent === view[name]);
    check("answer", same(document.querySelector("#answer"), view.answer));
    check("said", document.querySelector("#said").textContent === view.cursor.said);
    check("mend", document.querySelector("[data-do=mend]").textContent === (view.mend || "Nothing to mend"));
    for (const group of document.querySelectorAll(".group")) check(group.dataset.group, same(group.querySelector(".unused"), view.unused[group.dataset.group]));
    for (const [name, { value, written, said, disabled, hint }] of Object.entries(view.controls)) {
        const row = document.querySelector(`.knob[data-name=${name}]`), input = row.querySelector("input, select"), range = row.querySelector("[type=range]");
        check(`${name} folded`, row.hidden === name in view.folded || view.hidden.includes(name));
        check(`${name} hint`, same(row.querySelector(".hint"), hint));
        if (input.type === "checkbox") check(name, input.checked === value);
        else if (input.tagName === "SELECT") check(name, input.selectedOptions[0]?.text === said);
        else check(name, input.value === written && input.disabled === disabled);
        if (range) check(`${name} said`, range.getAttribute("aria-valuetext") === said);
    }
    return wrong;
}"""


@contextlib.contextmanager
def serving(folder, port=0):
    server = ThreadingHTTPServer(("127.0.0.1", port), functools.partial(build_explorer.Handler, directory=folder))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield SimpleNamespace(url=f"http://127.0.0.1:{server.server_port}/", port=server.server_port, folder=folder)
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The folder with the page."""
    folder = tmp_path_factory.mktemp("page") / "explorer"
    build_explorer.build(folder)
    return folder


@pytest.fixture(scope="module")
def site(built):
    with serving(built) as server:
        yield server


def view_of(address, built):
    """What lora_kit says of an address, with the pictures where the page has them."""
    (assets,) = (path for path in built.iterdir() if path.is_dir())
    session = Session.from_address(address)
    session.source = f"{assets.name}/atlas/"
    return json.loads(json.dumps(session.view()))


class Reader:
    """Someone at the page."""

    def __init__(self, page, site, address=""):
        self.page, self.site, self.errors = page, site, []
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.goto(site.url + address)
        page.locator(ALIVE).wait_for()

    def knob(self, name):
        return self.page.locator(f"#knob-{name}")

    def field(self, name):
        return self.page.locator(f".knob[data-name={name}] input[inputmode]")

    def settles(self, address):
        """The page's address becomes one with this in it, and all that is on the page is what lora_kit says of that address."""
        self.page.wait_for_function("part => decodeURIComponent(location.hash).includes(part)", arg=address)
        self.agrees()

    def agrees(self):
        self.page.wait_for_function(
            f"view => ({OTHERWISE})(view).length === 0 || (window.wrong = ({OTHERWISE})(view), false)",
            arg=view_of(self.page.evaluate("location.hash"), self.site.folder),
        )
        assert self.errors == []


def test_the_first_picture_stands_in_the_html(built, site, browser):
    view = view_of("", built)
    text = (built / "index.html").read_text()
    assert all(view["panels"][name] in text for name in view["panels"])
    with contextlib.closing(browser.new_context(java_script_enabled=False)) as context:
        page = context.new_page()
        page.goto(site.url)
        expect(page.locator("#stage")).to_contain_text(f"{view['rate']} {view['cursor']['said']}")
        expect(page.locator("svg[role=img]").first).to_be_visible()
        expect(page.locator("#answer")).to_contain_text("200 updates")


def test_every_setting(page, site):
    reader = Reader(page, site)
    kinds = {
        "lr_warmup_steps": "cosine",
        "lr_num_cycles": "cosine_with_restarts",
        "lr_power": "polynomial",
        "lr_step_rules": "piecewise_constant",
    }
    for name, control in CONTROLS.items():
        if name in kinds:
            reader.knob("lr_scheduler").select_option(kinds[name])
            expect(reader.knob(name)).to_be_visible()
        if not page.locator(f".knob[data-name={name}]").is_visible() and control.group == "Optimizer":
            page.locator(".group[data-group=Optimizer] summary").click()
        if control.kind == "choice":
            *_, (words, value) = control.options
            reader.knob(name).select_option(words)
            reader.settles(f"{name}={value}")
        elif control.kind == "switch":
            reader.knob(name).press("Space")
            reader.settles(f"{name}=on")
        elif control.kind in ("text", "number"):
            text = {
                "lr_step_rules": "1:10,0.5",
                "target_modules": "to_q to_v",
                "num_examples": "777",
                "max_train_steps": "500",
            }[name]
            reader.field(name).fill(text)
            reader.field(name).press("Enter")
            reader.settles(f"{name}={text}")
        elif name != "num_train_epochs":
            before = reader.knob(name).get_attribute("aria-valuetext")
            reader.knob(name).press("ArrowLeft" if float(before) > control.low else "ArrowRight")
            expect(reader.knob(name)).not_to_have_attribute("aria-valuetext", before)
            reader.settles(f"{name}=")
    reader.field("learning_rate").fill("1e-8")  # beyond the slider's end
    reader.field("learning_rate").press("Enter")
    reader.settles("learning_rate=1e-08")
    assert float(reader.knob("learning_rate").get_attribute("min")) <= -8
    for text, refusal in (("many", "learning_rate 'many' is no number"), ("-3", "it stays 0.00000001")):
        reader.field("learning_rate").fill(text)
        reader.field("learning_rate").press("Enter")
        expect(page.locator(".knob[data-name=learning_rate] .hint")).to_contain_text(
            refusal.replace("0.00000001", "1e-08")
        )
    expect(reader.field("learning_rate")).to_have_value("1e-08")
    page.get_by_label("usual sets of target_modules").select_option("attention")
    reader.settles(f"target_modules={TARGET_SETS['attention']}")
    reader.field("max_train_steps").fill("0")
    reader.field("max_train_steps").press("Enter")
    expect(reader.knob("num_train_epochs")).to_be_visible()


def test_what_is_looked_at_and_pasted_and_played(page, site):
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    reader = Reader(page, site)
    for words in AXES.values():
        page.locator("#axis").select_option(words)
        expect(page.locator(".picture svg")).to_contain_text(words)
    reader.settles(f"axis={list(AXES)[-1]}")
    page.locator("#log").press("Space")
    reader.settles("log=on")
    for key in ("kohya", "onetrainer"):
        page.get_by_label(TRAINERS[key].name, exact=True).check()
    reader.settles("trainers=kohya,onetrainer")
    for kind, words in KINDS.items():
        page.get_by_label(words, exact=True).check()
        if kind == "diffusers":  # that script has no embedded model
            expect(page.locator("#copy-command")).to_be_disabled()
            expect(page.locator("[data-body=command] pre")).to_have_count(0)
            continue
        command = Session.from_address(page.evaluate("location.hash")).view()["commands"][kind]
        expect(page.locator("[data-body=command] pre")).to_have_text(command)
        page.locator("#copy-command").click()
        expect(page.locator("#copy-command")).to_have_text("Copied ✓")
        assert page.evaluate("navigator.clipboard.readText()") == command
        expect(page.locator("#copy-command")).to_have_text("Copy")
    page.get_by_role("button", name="Pin", exact=True).click()
    expect(page.locator(".picture svg")).to_contain_text("pinned A")
    page.get_by_role("button", name="Unpin all").click()
    expect(page.locator(".picture svg")).not_to_contain_text("pinned A")
    page.locator("[data-name=pasted] summary").click()
    for text, reply in (
        ("accelerate launch train_text_to_image_lora.py --lr_warmup_stesp 4", "✗ Not read:"),
        (PRESETS["diffusers' guide to LoRA"].text, "✓ Read."),
    ):
        page.locator("#pasted").fill(text)
        page.get_by_role("button", name="Read what is pasted").click()
        expect(page.locator("[data-html=reply]")).to_contain_text(reply)
    reader.settles("max_train_steps=15000")
    page.locator("#copy-link").click()
    expect(page.locator("#copy-link")).to_have_text("Copied ✓")
    assert page.evaluate("navigator.clipboard.readText()") == page.url
    page.locator("#play").click()
    expect(page.locator("#said")).to_contain_text("at update 14,999 of 15,000")
    expect(page.get_by_role("button", name="Play")).to_be_visible()
    page.locator("#cursor").press("Home")
    reader.settles("cursor=0")


# two boxes are ticked before Python has answered; what the second is then set to
TICKED = """() => {
    const [first, second] = document.querySelectorAll("[name=trainers]");
    const own = Object.getOwnPropertyDescriptor(HTMLInputElement.prototype, "checked");
    window.set = [];
    const set = function (value) { window.set.push(value); own.set.call(this, value); };
    Object.defineProperty(second, "checked", { get: own.get, set });
    first.click();
    second.click();
}"""


def test_what_is_ticked_while_python_is_at_work_stays_ticked(page, site):
    reader = Reader(page, site)
    page.evaluate(TICKED)
    reader.settles(f"trainers={','.join(list(TRAINERS)[:2])}")
    assert set(page.evaluate("window.set")) == {True}


def test_what_was_taken_can_be_taken_back(page, site):
    reader = Reader(page, site)
    field = reader.knob("learning_rate").bounding_box()
    reader.knob("rank").press("ArrowRight")
    reader.settles("rank=17")
    assert reader.knob("learning_rate").bounding_box() == field  # what is said then moves no knob
    page.locator("#preset").select_option(PUZZLE)
    reader.settles("num_processes=4")
    expect(page.locator("#answer")).to_contain_text("1 problem: warm-up")
    page.locator("[data-do=mend]").click()
    reader.settles("lr_warmup_steps=38")
    page.go_back()
    reader.settles("lr_warmup_steps=500")
    page.go_back()
    reader.settles("#rank=17")
    page.go_forward()
    reader.settles("lr_warmup_steps=500")


def test_the_line_goes_where_the_picture_is_touched_and_the_map_turns_two_knobs(page, site):
    reader = Reader(page, site)
    box = page.locator(".picture svg").bounding_box()

    def over(share):
        """A place on the picture, as a share of the run: it goes from 86 to 550 of 576 units."""
        return box["x"] + box["width"] * (86 + 464 * share) / 576, box["y"] + 100

    page.mouse.move(*over(0.25))
    page.mouse.down()
    reader.settles("cursor=50")
    page.mouse.move(*over(0.75), steps=10)
    reader.settles("cursor=150")
    page.mouse.move(5000, 0, steps=5)  # beyond its end
    reader.settles("cursor=199")
    page.mouse.up()
    page.mouse.move(*over(0.5), steps=5)  # no button is pressed
    page.mouse.click(box["x"] + 20, box["y"] + 100)  # before its start
    reader.settles("cursor=0")
    reader.knob("rank").press("ArrowLeft")
    reader.settles("rank=15&cursor=0")
    cells = [page.locator(f"[data-rate='{rate}'][data-rank='{rank}']") for rate, rank in (("0.05", 16), ("0.0001", 16))]
    first, last = (cell.bounding_box() for cell in cells)
    page.mouse.move(first["x"] + 5, first["y"] + 5)
    page.mouse.down()
    reader.settles("learning_rate=0.05")
    page.mouse.move(last["x"] + 5, last["y"] + 5, steps=10)
    page.mouse.up()
    reader.settles("learning_rate=0.0001")
    expect(reader.field("rank")).to_have_value("16")
    expect(page.locator("[data-rate][aria-current]")).to_have_attribute("data-rate", "0.0001")


DRAWN = """selector => [...document.querySelectorAll(selector)].map(image => [image.src.split("/").pop(), image.complete && image.naturalWidth])"""


def test_the_pictures_follow_the_knobs(page, site):
    reader = Reader(page, site, "#cursor=199")
    for rate in ("0.0001", "0.01", "0.05"):
        reader.field("learning_rate").fill(rate)
        reader.field("learning_rate").press("Enter")
        reader.settles(f"learning_rate={rate}")
        name = f"everything-cosine-rank16-rate{float(rate):g}-seed0.webp"
        page.wait_for_function(
            f"name => ({DRAWN})('.lora-kit-drawn img').flat().join() === [name, 384, name, 384, name, 384, name, 384].join()",
            arg=name,
        )
        assert page.locator(".lora-kit-drawn img").evaluate_all("all => all.map(one => one.style.top)") == ["-400%"] * 4
    expect(page.locator("#atlas")).to_contain_text("broken")
    expect(page.locator("#strip")).to_be_hidden()
    page.set_viewport_size({"width": 390, "height": 844})
    reader.knob("rank").scroll_into_view_if_needed()
    reader.knob("rank").focus()
    strip, knob = (page.locator(one).bounding_box() for one in ("#strip", "#knob-rank"))
    assert 0 <= strip["y"] < knob["y"] <= 844 - knob["height"] and round(strip["height"]) == 65
    page.locator("#cursor").press("Home")
    reader.settles("cursor=0")
    expect(page.locator("#atlas")).to_contain_text("No update yet: this is the base model.")
    page.evaluate("location.hash = 'hide=atlas'")
    expect(page.locator("#strip")).to_be_hidden()


def test_the_address_there_and_back_and_what_it_hides(page, site):
    address = "#rank=8&learning_rate=0.0001&num_processes=4&axis=epochs&trainers=kohya&cursor=7&kind=yaml&hide=memory,rank,preset"
    reader = Reader(page, site, address)
    reader.agrees()
    for hidden in (".knob[data-name=rank]", "[data-panel=memory]", "[data-name=preset]"):
        expect(page.locator(hidden)).to_be_hidden()
    assert Session.from_address(page.evaluate("location.hash")) == Session.from_address(address)
    page.evaluate("location.hash = 'rank=32&hide=rnak'")
    expect(page.locator("[data-html=reply]")).to_contain_text("hide 'rnak' is unknown; did you mean 'rank'?")
    reader.settles("rank=32")
    expect(page.locator("[data-panel=memory]")).to_be_visible()
    page.evaluate("location.hash = 'rank=32&embed=steps'")
    expect(page.locator("header")).to_be_hidden()
    assert page.locator("[data-panel]:visible").evaluate_all("all => all.map(one => one.dataset.panel)") == ["steps"]
    expect(page.locator("#whole")).to_have_attribute("href", "./#rank=32")
    page.screenshot(path=front_ends.KEPT / "page-embedded.png")


def test_with_the_keyboard_alone_the_puzzle_is_mended(page, site):
    reader = Reader(page, site)

    def tab_to(selector):
        seen = []
        while not page.evaluate("selector => document.activeElement.matches(selector)", selector):
            page.keyboard.press("Tab")
            seen.append(page.evaluate("document.activeElement.outerHTML.slice(0, 200)"))
            assert seen.count(seen[-1]) < 3 or "<body" in seen[-1], seen

    page.keyboard.press("Tab")
    page.keyboard.press("Enter")  # skips to the settings
    expect(page.locator("#knobs")).to_be_focused()
    assert page.evaluate("location.hash") == ""
    tab_to("#preset")
    page.keyboard.press("p")  # the one that begins so
    expect(page.locator("#findings")).to_contain_text("never reaches its peak")
    expect(page.locator(".picture")).to_contain_text("the same 10 epochs make 380 updates, not 1,500")
    page.screenshot(path=front_ends.KEPT / "page-puzzle.png", full_page=True)
    tab_to("[data-do=mend]")
    page.keyboard.press("Enter")
    reader.settles("lr_warmup_steps=38")
    expect(page.locator("[data-html=reply]")).to_contain_text("changed since")
    expect(page.locator("[data-body=command]")).to_contain_text("--lr_warmup_steps 38")
    for group in page.locator(".group:not([open]) summary").all():
        group.press("Enter")
    page.evaluate("document.activeElement.blur()")
    for name, row in {name: page.locator(f"[data-name={name}]") for name in (*CONTROLS, *LOOKS)}.items():
        if row.first.is_visible():
            tab_to(f"[data-name={name}] *, [data-name={name}]")


KEPT = """navigator.serviceWorker.ready.then(({ active }) => active.state === "activated" ||
    new Promise(done => { active.onstatechange = () => active.state === "activated" && done(); })).then(() => caches.keys())"""


def test_it_works_without_a_network_and_a_new_build_replaces_the_old(page, built, tmp_path):
    with serving(built) as server:
        reader = Reader(page, server)
        (old,) = page.evaluate(KEPT)
    page.reload()  # the server is gone
    page.locator(ALIVE).wait_for()
    reader.knob("rank").press("ArrowRight")
    reader.settles("rank=17")
    page.goto(f"{server.url}#rank=8")
    expect(reader.field("rank")).to_have_value("8")
    newer = shutil.copytree(built, tmp_path / "newer")
    (assets,) = (path for path in newer.iterdir() if path.is_dir())
    assets.rename(newer / "newer")
    for path in (newer / "index.html", newer / "service-worker.js"):
        path.write_text(path.read_text().replace(assets.name, "newer").replace(old.removeprefix("explorer-"), "newer"))
    (newer / "index.html").write_text((newer / "index.html").read_text().replace("Nothing to install;", "A new build;"))
    with serving(newer, server.port):
        page.goto(server.url)
        expect(page.locator(".tagline")).to_contain_text("A new build")
        page.locator(ALIVE).wait_for()
        page.wait_for_function("caches.keys().then(names => names.join() === 'explorer-newer')")


# A worker of the page's own is asked for all of it; what it says is then the page's, too.
ASKED = """([worker, texts]) => new Promise((done, failed) => {
    const python = new Worker(worker, { type: "module" }), answers = [];
    python.onmessage = ({ data }) => {
        if (data.alive) return texts.forEach(text => python.postMessage(text));
        if (data.error || data.failed) failed(new Error(data.error ?? data.failed));
        if (answers.push(JSON.parse(data.start).view) === texts.length) { python.terminate(); done(answers); }
    };
})"""


@pytest.mark.parametrize("count", [40, pytest.param(500, marks=pytest.mark.long)])
def test_both_skins_have_the_same_texts_for_random_settings(page, site, count):
    """The notebook's half is in tests/explorer/test_page.py."""
    dice = random.Random(19)
    addresses = [f"#{randomly_turned(dice).view()['address']}" for _ in range(count)]
    reader = Reader(page, site)
    worker = page.evaluate("document.querySelector('link[rel=stylesheet]').href.replace('explorer.css', 'worker.js')")
    views = page.evaluate(ASKED, [worker, addresses])
    assert len(set(addresses)) > 0.98 * count
    for address, view in zip(addresses, views, strict=True):
        assert view == view_of(address, site.folder), address
    for address, view in list(zip(addresses, views, strict=True))[:25]:
        page.evaluate("address => { location.hash = address; }", address)
        page.wait_for_function(f"view => !({OTHERWISE})(view).length", arg=view)
    assert reader.errors == []


@pytest.mark.parametrize("width", [360, 1280])
def test_readable_by_everybody(page, site, width):
    axe = build_explorer.fetched(*AXE) / "axe.min.js"
    page.set_viewport_size({"width": width, "height": 740})
    Reader(page, site, "#num_processes=4&lr_warmup_steps=500&trainers=kohya&learning_rate=0.1&max_train_steps=300")
    page.add_script_tag(path=axe)
    for group in page.locator(".group:not([open]) summary").all():
        group.click()
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme, reduced_motion="reduce")  # colours change at once
        found = page.evaluate("axe.run({ resultTypes: ['violations'] })")["violations"]
        assert [
            (one["id"], [node["html"][:200] for node in one["nodes"]])
            for one in found
            if one["impact"] in ("serious", "critical")
        ] == []
        page.screenshot(path=front_ends.KEPT / f"page-{width}-{scheme}.png", full_page=width > 800)
    ground = "getComputedStyle(document.body).backgroundColor"
    before = page.evaluate(ground)
    page.locator("#theme").click()
    assert page.evaluate(ground) != before and page.locator("#theme").get_attribute("aria-pressed") == "false"
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    for name in ("learning_rate", "rank"):  # the curve stays in sight
        page.locator(f"#knob-{name}").scroll_into_view_if_needed()
        page.locator(f"#knob-{name}").focus()
        picture, knob = (page.locator(one).bounding_box() for one in (".picture svg", f"#knob-{name}"))
        assert picture["y"] >= 0 and picture["y"] + picture["height"] <= 740
        assert width > 800 or knob["y"] >= picture["y"] + picture["height"]
