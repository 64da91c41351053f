import base64

import pytest
from parsed import attributes, read_html, style, table, texts, words

from lora_kit.explorer.panels import (
    command_html,
    findings_html,
    hint_html,
    linked,
    memory_html,
    notes_html,
    picture_html,
    pictures_html,
    running_html,
    runs_html,
    steps_html,
)
from lora_kit.explorer.summary import summarize
from lora_kit.explorer.trials import PROMPTS


def finding(check, status, **more):
    return (
        dict(check=check, status=status, value=f"{check} <1>", reason="so & so", cure="", change=None, link="") | more
    )


def test_addresses_are_links_that_show_their_last_part():
    text = linked("a <b>, see https://x.org/a&b/c.py#L1, and https://y.org/d. The end")
    assert text == (
        'a &lt;b&gt;, see <a href="https://x.org/a&amp;b/c.py#L1" target="_blank" rel="noopener" style="color: inherit">c.py#L1</a>'
        ', and <a href="https://y.org/d" target="_blank" rel="noopener" style="color: inherit">d</a>. The end'
    )
    assert linked("none") == "none" and linked("") == ""


def test_hints_under_a_knob():
    look = '<div role="status" style="text-align: right; line-height: 1.4; white-space: normal">'
    assert hint_html("rank <x>") == f"{look}<b>✗ rank &lt;x&gt;</b></div>"
    assert hint_html() == hint_html("") == hint_html(None) == ""


def test_notes_of_other_trainers():
    curves = [
        dict(label="as applied", note=""),
        dict(label="a & b", note="See https://x.org/c."),
        dict(label="d", note="e"),
    ]
    page = notes_html(dict(curves=curves))
    assert words(page) == "a & b. See c.d. e" and page.count("<li><b>") == 2
    assert attributes(page, "a", "href") == ["https://x.org/c"] and texts(page, "b") == ["a & b.", "d."]
    assert attributes(page, "ul", "style") == ["padding-left: 1.2em; margin: 4px 0"]
    assert notes_html(dict(curves=curves[:1])) == notes_html(dict(curves=[])) == ""


def test_the_picture_and_what_is_said_under_it():
    summary = summarize(dict(style="outlined", learning_rate=1e-3, lr_warmup_steps=2, lr_scheduler="linear"), 16, 2)
    page = picture_html(
        summary | dict(sentences=["a < b", "c"]), "images", log=True, cursor=5, pinned=[("A", summary["curves"][0])]
    )
    svg, _, rest = page.partition("</svg>")
    assert (
        "images seen, by all processes" in svg
        and "read at update 5" in svg
        and ": A</text>" in svg
        and ">1e-05<" in svg
    )
    assert rest == "<ul><li>a &lt; b</li><li>c</li></ul></div>"
    plain = picture_html(summary | dict(sentences=[]))
    assert (
        plain.endswith("</svg></div>")
        and ">0.0005<" in plain
        and "read at" not in plain
        and "optimizer updates" in plain
    )
    assert words(picture_html(dict(curves=[], sentences=["a"]))) == "a"


def test_what_the_doctor_says():
    findings = [
        finding("warm-up", "error", cure="less <of it>"), finding("images", "warning"), finding("a", "fine"),
        finding("b & c", "fine"), finding("a", "fine"),
    ]  # fmt: skip
    page = findings_html(dict(findings=findings, errors=["not repeated"]))
    assert texts(page, "b") == ["✗ error, warm-up.", "! warning, images."]
    assert words(page) == (
        "✗ error, warm-up. warm-up <1>: so & so. Cure: less <of it>.! warning, images. images <1>: so & so.✓ fine: a, b & c"
    )
    assert texts(page, "i") == ["Cure: less <of it>."]
    assert [style(dict(style=look)) for look in attributes(page, "ul", "style")] == [
        {"list-style": "none", "padding-left": "0", "margin": "0"}
    ]


def test_errors_that_are_no_findings_are_said_all_the_same():
    page = findings_html(dict(findings=[finding("a", "fine")], errors=["rank 0 < 1", "b"]))
    assert words(page) == "✗ error. rank 0 < 1✗ error. b✓ fine: a"
    assert words(findings_html(dict(findings=[finding("a", "fine")], errors=[]))) == "✓ fine: a"
    assert "<ul" not in findings_html(dict(findings=[finding("a", "fine")], errors=[]))
    assert words(findings_html(dict(findings=[finding("a", "warning")], errors=[]))) == "! warning, a. a <1>: so & so."
    assert words(findings_html(dict(findings=[], errors=[]))) == ""


def test_the_table_of_steps():
    summary = dict(steps=[("batches", 1200, "ceil(<x>)"), ("b", 3, "c")], optimizer=[("rate", "0.001", "the highest")])
    page = steps_html(summary)
    assert table(page, "text-align", "white-space") == [
        [("batches", "left", "nowrap"), ("1,200", "right", "nowrap"), ("ceil(<x>)", "left", None)],
        [("b", "left", "nowrap"), ("3", "right", "nowrap"), ("c", "left", None)],
        [("rate", "left", "nowrap"), ("0.001", "right", "nowrap"), ("the highest", "left", None)],
    ]
    assert steps_html(dict(steps=[], optimizer=[])) == ""


MEMORY = dict(
    base=10**9, lora=10**6, gradients=10**6, adam_32=2 * 10**6, adam_8=500_000, parameters=250_000, tensors=1256,
    small_tensors=1128, small_parameters=7,
    rows=[((4, 320), 16, 10_244, 10_244), ((16, 1280), 8, 163_844, 41_600), ((4, 320, 3, 3), 1, 92_164, 92_160)],
)  # fmt: skip


@pytest.mark.parametrize(("use_8bit_adam", "verb"), [(True, "saves"), (False, "would save")])
def test_memory_in_words_and_tensor_by_tensor(use_8bit_adam, verb):
    page = memory_html(MEMORY, use_8bit_adam)
    assert (
        "</svg><div>1,128 of the LoRA&#x27;s 1,256 tensors (250,000 numbers) have fewer than 4,096 elements: 8-bit Adam keeps "
        f"their state in 32 bits. It {verb} 1.5 MB of 2 MB. Activations, VAE and text encoder are not counted.</div>"
        "<details><summary>Tensor by tensor</summary>"
    ).replace("&#x27;", "'") in page
    assert (">▸ 8-bit Adam<" in page) == use_8bit_adam and page.endswith("</table></div></details></div>")
    assert table(page, "text-align") == [
        [("shape", "left"), ("tensors", "right"), ("elements", "right"), ("bytes of state of each, 32-bit", "right"),
         ("8-bit Adam", "right"), ("bits there", "right")],
        [("16 x 1280", "left"), ("8", "right"), ("20,480", "right"), ("163,844", "right"), ("41,600", "right"), ("8", "right")],
        [("4 x 320 x 3 x 3", "left"), ("1", "right"), ("11,520", "right"), ("92,164", "right"), ("92,160", "right"), ("32", "right")],
        [("4 x 320", "left"), ("16", "right"), ("1,280", "right"), ("10,244", "right"), ("10,244", "right"), ("8", "right")],
    ]  # fmt: skip


def test_the_marked_row_is_that_of_32_bits_unless_asked():
    assert ">▸ 32-bit Adam<" in memory_html(MEMORY)
    assert words(memory_html(None)) == "The shapes of this model are not known here."


def test_bits_of_a_real_lora():
    # at rank 16 a tensor of 1,280 x 16 has 8-bit state, one of 16 x 64 in the embedded model keeps 32
    chosen = dict(style="outlined", learning_rate=1e-3, rank=16)
    kept = summarize(chosen, 400)["memory"]
    rows = {row[0]: row[-1] for row in table(memory_html(kept))[1:]}
    assert set(rows.values()) <= {"8", "32"} and "32" in rows.values()


def test_a_flag_and_its_value_stay_on_one_line():
    line = "accelerate launch --multi_gpu -m lora_kit.training --rank 4 --style 'a <b>' --no_cache"
    page = command_html(dict(accelerate=line, diffusers=line, python=line, yaml=line), "accelerate")
    assert words(page) == line
    assert texts(page, "span") == ["--multi_gpu", "--rank 4", "--style 'a", "--no_cache"]
    assert set(attributes(page, "span", "style")) == {"white-space: nowrap"}
    commands = dict(accelerate="a --x 1", diffusers="b --x 1", python="c --x 1", yaml="d --x 1")
    for kind, text in commands.items():
        page = command_html(commands, kind)
        assert words(page) == text and ("<span" in page) == (kind in ("accelerate", "diffusers"))
        (look,) = attributes(page, "pre", "style")
        assert style(dict(style=look)) == {
            "white-space": "pre-wrap", "word-break": "normal", "overflow-wrap": "anywhere", "font-family": "monospace",
            "color": "inherit", "user-select": "all", "border": "1px solid", "padding": "6px", "margin": "0",
        }  # fmt: skip


@pytest.mark.parametrize(("value", "together"), [("x" * 30, True), ("x" * 31, False)])
def test_a_long_value_may_stand_on_a_line_of_its_own(value, together):
    page = command_html(dict(diffusers=f"a --name {value}"), "diffusers")
    assert texts(page, "span") == [f"--name {value}" if together else "--name"]


def test_a_value_that_is_cut_is_not_torn_and_a_flag_within_a_word_is_none():
    page = command_html(dict(diffusers="a x--rank 4 --a --b 5"), "diffusers")
    assert texts(page, "span") == ["--a", "--b 5"]


def test_without_a_command_why():
    assert words(command_html({}, "yaml")) == "No command while there is an error: it would stop with it."
    lacks = command_html({"yaml": "a"}, "diffusers", ["no <model>", "no data"])
    assert words(lacks) == "diffusers' script can't run this: no <model>; no data."


def trial(state="running", updates=2, total=10, **more):
    numbers = dict(loss=[1.0, 0.5][:updates], lr=[5e-4, 1e-3][:updates], grad_norm=[2.0, None][:updates])
    return (
        dict(
            state=state,
            total_updates=total,
            updates=[0, 1][:updates],
            **numbers,
            fixed=[(0, 1.0)],
            samples=[],
            error=None,
        )
        | more
    )


def test_progress_of_runs():
    trials = {
        "a": trial(),
        "b <": trial("failed", 0, 5, error="ValueError: <no>"),
        "c": trial("waiting", 0),
        "d": trial("waiting", 0),
    }
    page = running_html(dict(running=True, trials=trials), "a warm-up < 5")
    assert words(page) == " 2 of 35 updates; runs: 1 running, 1 failed, 2 waiting✗ b <: ValueError: <no>a warm-up < 5"
    assert attributes(page, "div", "role", "aria-valuenow", "aria-valuemin", "aria-valuemax")[1] == (
        "progressbar",
        "6",
        "0",
        "100",
    )
    looks = [style(dict(style=look or "")) for look in attributes(page, "div", "style")]
    assert looks[1] == {"border": "1px solid", "width": "20em", "height": "0.8em", "display": "inline-block"}
    assert looks[2] == {"background": "#0072B2", "height": "100%", "width": "5.7%"} and looks[4] == {
        "font-style": "italic"
    }
    assert attributes(page, "div", "aria-label")[1] == "updates of all runs"


def test_progress_at_both_ends():
    page = running_html(dict(trials={"a": trial("done", 2, 2)}))
    assert words(page) == " 2 of 2 updates; runs: 1 done" and "width: 100.0%" in page and 'aria-valuenow="100"' in page
    assert words(running_html(dict(trials={}))) == " 0 of 0 updates; runs: " and "italic" not in page
    assert "width: 0.0%" in running_html(dict(trials={}))


TITLES = [
    "loss on fixed pictures, noise and timesteps: comparable",
    "training loss: other pictures, noise and timesteps in each update",
    "learning rate",
    "norm of the gradient, before clipping",
]


def test_runs_one_over_the_other():
    page = runs_html({"a <": trial(), "b": trial("stopped", 1, 400)})
    assert texts(page, "h4") == ["Runs, one over the other"] and read_html(page).tables == []
    svgs = [part.partition("</svg>")[0] + "</svg>" for part in page.split("<div><svg")[1:]]
    svgs = ["<svg" + svg for svg in svgs]
    assert [texts(svg)[0] for svg in svgs] == TITLES
    names = [[words for words in texts(svg) if ": " in words and words not in TITLES] for svg in svgs]
    assert names == [["a <: 1", "b: 1"], ["a <: 0.5", "b: 1"], ["a <: 0.001", "b: 0.0005"], ["a <: 2", "b: 2"]]
    for svg, lowest in zip(svgs, ["0.96", "0.6", "0", "0"], strict=True):
        assert texts(svg)[1] == lowest  # losses from their lowest, rate and norm from 0
        assert "optimizer updates" in texts(svg)
        # 10 updates of the running one: one that was stopped counts with what it did
        assert texts(svg)[texts(svg).index("optimizer updates") - 1] == "10"
    assert words(page).startswith(f"Runs, one over the other{TITLES[0]}a <: 1; b: 1{TITLES[0]}")
    look = style(dict(style=attributes(page, "div", "style")[1]))
    columns = "repeat(auto-fit, minmax(min(100%, 30em), 1fr))"
    assert look == {"display": "grid", "gap": "8px 16px", "grid-template-columns": columns}
    assert page.count("</svg></div><div><svg") == 3


def test_runs_that_have_no_numbers_yet_have_no_pictures():
    page = runs_html({"a": trial("waiting", 0, fixed=[])})
    assert words(page) == "Runs, one over the other" and page.count("<div>") == 0
    assert words(runs_html({})) == "Runs, one over the other"
    assert words(runs_html({"a": trial("stopped", 0, 10, fixed=[])})) == "Runs, one over the other"
    early = runs_html({"a": trial("stopped", 0, 10)})  # before its first update: the axis goes to 1
    assert texts(early)[texts(early).index("optimizer updates") - 1] == "1"


def test_a_sweep_as_a_heat_map():
    def name(rate, rank):
        return f"learning_rate {rate}, rank {rank}"

    trials = {
        name(1e-3, 4): trial("done", fixed=[(0, 9.0), (10, 0.25)]), name(2e-3, 4): trial("done", fixed=[(0, 1.0), (10, float("nan"))]),
        name(1e-3, 8): trial("done", fixed=[]), name(2e-3, 8): trial("running", fixed=[(0, 0.1)]),
        name(1e-3, 16): trial("done", fixed=[(0, 0.5)]),
    }  # fmt: skip
    page = runs_html(trials, ([4, 8, 16], [1e-3, 2e-3]))
    assert texts(page, "h4") == ["The latest sweep"]
    assert table(page) == [
        ["rank ↓ learning_rate →", "0.001", "0.002"], ["4", "★ 0.2500", "no number"], ["8", "…", "…"], ["16", "0.5000", "…"],
    ]  # fmt: skip
    title = "loss on fixed pictures, noise and timesteps after each run (★: the lowest)"
    assert words(page).startswith(f"The latest sweep{title}rank ↓")
    assert page.count("<svg") == 4


@pytest.fixture
def picture(tmp_path):
    def make(name):
        (tmp_path / name).write_bytes(name.encode())
        return str(tmp_path / name)

    return make


def rows(page):
    """(what a row's picture shows, its file's content, the words beside it), for each row but the first."""
    contents = [base64.b64decode(source.partition("base64,")[2]).decode() for source in attributes(page, "img", "src")]
    return [*zip(attributes(page, "img", "alt"), contents, [row[1] for row in table(page)[1:]], strict=True)]


def test_what_the_runs_draw(picture):
    base, goal = picture("base"), picture("goal")
    runs = {
        name: dict(samples=[(0, base), (10, picture(name[:5]))], target=goal)
        for name in ("run 1: a < b", "run 2: cosine")
    }
    page = pictures_html(runs)
    prompts = "fox, octopus, birthday cake, hatching chick"
    assert rows(page) == [
        (f"{prompts}: {beside}", content, beside)
        for content, beside in (
            ("goal", "the goal: the style's own pictures"),
            ("base", "the base model, before training"),
            ("run 1", "run 1: a < b, after 10 updates"),
            ("run 2", "run 2: cosine, after 10 updates"),
        )
    ]
    assert texts(page, "span") == list(PROMPTS) == prompts.split(", ")
    assert words(page).startswith(
        "What is drawn for words that no run trains on, with the same noise each timefoxoctopus"
    )
    assert {cell["text-align"] for row in read_html(page).tables[0] for cell in row} == {"left"}
    assert [style(dict(style=look)) for look in attributes(page, "span", "style")] == 4 * [
        {"display": "inline-block", "width": "92px", "font-weight": "normal", "text-align": "left"}
    ]
    assert style(dict(style=attributes(page, "img", "style")[0])) == {
        "display": "block", "width": "368px", "max-width": "none",
    }  # fmt: skip
    assert attributes(page, "div", "style")[0] == "padding: 8px 0 4px"
    assert attributes(page, "img", "src")[0] == "data:image/png;base64,Z29hbA=="  # "goal"
    assert table(page, "white-space") == [[("foxoctopusbirthday cakehatching chick", None), ("", None)]] + [
        [("", "nowrap"), (beside, None)] for _, _, beside in rows(page)
    ]
    assert page in runs_html({name: trial(**run) for name, run in runs.items()})
    assert page not in runs_html({name: trial(**run) for name, run in runs.items()}, ([4], [1e-3]))


def test_runs_that_draw_the_same_keep_a_row_each(picture):
    same = picture("same")
    page = pictures_html({name: dict(samples=[(5, same), (10, same)], target=None) for name in "ab"})
    assert [beside for _, _, beside in rows(page)] == [
        "a, after 5 updates", "a, after 10 updates", "b, after 5 updates", "b, after 10 updates",
    ]  # fmt: skip


def test_only_the_first_run_shows_its_base_model(picture):
    runs = {name: dict(samples=[(0, picture(name)), (5, picture("later"))], target=None) for name in "ab"}
    assert [content for _, content, _ in rows(pictures_html(runs))] == ["a", "later", "later"]
    runs = {"a": dict(samples=[(0, picture("a")), (0, picture("b"))], target=None)}
    assert [content for _, content, _ in rows(pictures_html(runs))] == ["a"]


def test_two_styles_have_two_goals(picture):
    runs = {name: dict(samples=[], target=picture(name)) for name in "ab"}
    assert [content for _, content, _ in rows(pictures_html(runs))] == ["a", "b"]
    assert pictures_html({"a": dict(samples=[], target=None), "b": dict(samples=[])}) == ""


def test_a_picture_that_is_gone_is_left_out(picture, tmp_path):
    gone = str(tmp_path / "gone")
    runs = {"a": dict(samples=[(0, gone), (10, picture("a")), (20, gone)], target=gone)}
    assert [beside for _, _, beside in rows(pictures_html(runs))] == ["a, after 10 updates"]
    assert pictures_html({"a": dict(samples=[(0, gone)], target=gone)}) == ""
