import importlib.util
import json
import math
import re
from pathlib import Path

import pytest
from parsed import attributes, elements, read_html, table, texts, words

import lora_kit
from lora_kit.config import TARGET_MODULES, quiet_config
from lora_kit.explorer.atlas import atlas, atlas_html, map_html
from lora_kit.explorer.atlas_runs import FILES, NAMES, name_of, nearest, place_of, read_atlas, schedule_kind

ROOT = Path(__file__).resolve().parents[2]
spec = importlib.util.spec_from_file_location("train_atlas", ROOT / "scripts" / "train_atlas.py")
script = importlib.util.module_from_spec(spec)
spec.loader.exec_module(script)
UPDATES = [0, 25, 50, 100]
ALL = ("to_q", "to_k", "conv1", "conv2")
LEARNING, FLAT = [1.0, 0.7, 0.5, 0.4], [1.0, 1.0, 0.98, 0.96]
WILD = [1.0, 0.8, 1.5, 4.0]
ENDED = [1.0, 9.5, None, None]
START = {"learning_rate": 1e-3, "rank": 4, "lr_scheduler": "cosine", "target_modules": ALL}


def run(rate, rank, fixed, training=None, lr_scheduler="cosine", targets="everything", seed=0, **others):
    name = f"{targets}-{lr_scheduler}-{rank}-{rate:g}.webp"
    pictures = sum(loss is not None for loss in fixed)
    record = dict(learning_rate=rate, rank=rank, lr_scheduler=lr_scheduler, targets=targets, seed=seed, updates=UPDATES)
    record |= dict(fixed=fixed, training=training or fixed, state="done", error=None, sprite=name, pictures=pictures)
    return record | others


ERROR = "the loss of update 30 is nan <0>"
RUNS = [
    run(1e-3, 4, LEARNING),
    run(1e-3, 4, [1.0, 0.7, 0.5, 0.45], seed=1, sprite=None, pictures=0),
    run(1e-3, 4, [1.0, 0.7, 0.5, 0.35], seed=2, sprite=None, pictures=0),
    run(1e-5, 4, FLAT),
    run(1e-1, 4, ENDED, state="failed", error=ERROR),
    run(1e-3, 16, [1.0, 0.6, 0.45, 0.38]),
    run(1e-1, 16, WILD),
    run(1e-3, 4, [1.0, 0.9, 0.8, 0.7], lr_scheduler="constant"),
    run(1e-3, 4, FLAT, targets="attention"),
]
ABOUT = {"settings": {"style": "outlined", "train_batch_size": 4, "max_train_steps": 100}}


@pytest.fixture
def folder(tmp_path):
    """An atlas of nine runs, whose pictures are other bytes."""
    made_up = dict(made_with=ABOUT, prompts=["fox", 'a "trophy"'], updates=UPDATES, base="base.webp", goal="goal.webp")
    targets = {"attention": ["to_q", "to_k"], "everything": list(ALL)}
    (tmp_path / "atlas.json").write_text(json.dumps(made_up | {"targets": targets, "runs": RUNS}))
    for name in ("base.webp", "goal.webp", *(record["sprite"] for record in RUNS if record["sprite"])):
        (tmp_path / name).write_bytes(name[:3].encode())
    return tmp_path


# names


@pytest.mark.parametrize(
    ("fixed", "training", "stage", "name"),
    [
        (LEARNING, LEARNING, 0, "base"),
        (WILD, WILD, 0, "base"),
        ([1.0, 0.5], [1.0, 0.5], 1, "right"),  # half of the base's loss, and no more
        ([1.0, 0.51], [1.0, 0.3], 1, "too low"),
        (FLAT, FLAT, 3, "too low"),
        ([1.0, 1.1], [1.0, 1.0], 1, "too low"),  # worse than the base, but hardly
        ([1.0, 1.11], [1.0, 0.5], 1, "broken"),  # worse than no LoRA, whatever it knows by heart
        (ENDED, ENDED, 2, "broken"),  # no number
        (WILD, WILD, 1, "broken"),  # its losses are still to rise: what it has is spoiled already
        ([1.0, 0.6, 0.9, 0.62], [1.0, 0.6, 0.9, 0.62], 3, "broken"),  # it comes back from there, but not to the style
        ([1.0, 0.6, 0.9, 0.45], [1.0, 0.6, 0.9, 0.45], 3, "right"),  # it does
        ([1.0, 0.4, None, None], [1.0, 0.4, None, None], 1, "right"),  # before it broke
        ([1.0, 0.6, None, None], [1.0, 0.6, None, None], 1, "broken"),
        ([1.0, 0.4, 0.43, 0.47], [1.0, 0.4, 0.3, 0.1], 1, "right"),
        ([1.0, 0.4, 0.43, 0.47], [1.0, 0.4, 0.3, 0.1], 2, "learned by heart"),
        ([1.0, 0.4, 0.43, 0.7], [1.0, 0.4, 0.3, 0.1], 3, "learned by heart"),
        ([1.0, 0.4, 0.42, 0.42], [1.0, 0.4, 0.3, 0.1], 3, "right"),  # 1.05 times its lowest, and no more
        ([1.0, 0.4, 0.44, 0.44], [1.0, 0.4, 0.35, 0.33], 3, "right"),  # .75 of the held-out loss, and no less
        ([1.0, 0.6, 0.7, 0.7], [1.0, 0.6, 0.55, 0.55], 3, "too low"),
    ],
)
def test_the_name_of_what_one_sees(fixed, training, stage, name):
    assert name_of(run(1e-3, 4, fixed, training), stage) == name and name in NAMES


# the nearest run


def found(folder, updates=100, **asked):
    return nearest(read_atlas(folder), **START | asked, updates=updates)


@pytest.mark.parametrize(
    ("asked", "index"),
    [
        ({}, 0),
        ({"learning_rate": 9.9e-3}, 0),  # in powers: the middle of 1e-3 and 1e-1 is 1e-2
        ({"learning_rate": 1.01e-2}, 4),
        ({"learning_rate": 1e-30}, 3),
        ({"rank": 7}, 0),
        ({"rank": 9}, 5),
        ({"rank": 128, "learning_rate": 1.0}, 6),
        ({"lr_scheduler": "polynomial", "rank": 16}, 5),
        ({"lr_scheduler": "constant_with_warmup", "rank": 16, "learning_rate": 1e-5}, 7),  # the schedule comes first
        ({"target_modules": ("to_q", "to_k", "ff.net.2"), "lr_scheduler": "constant"}, 8),  # and the modules before it
        ({"target_modules": ("conv1", "conv2", "to_k")}, 0),
    ],
)
def test_the_nearest_run(folder, asked, index):
    assert found(folder, **asked).run == RUNS[index]


@pytest.mark.parametrize(
    ("updates", "after"), [(0, 0), (12, 0), (13, 25), (37, 25), (75, 50), (76, 100), (100, 100), (5000, 100)]
)
def test_the_nearest_number_of_updates(folder, updates, after):
    assert found(folder, updates).updates == after


def test_what_differs_is_said(folder):
    exact = found(folder)
    assert exact.differs == () and exact.words == "learning_rate 0.001, rank 4, cosine, everything, after 100 updates"
    other = found(
        folder, 1200, learning_rate=2e-3, rank=5, lr_scheduler="linear", target_modules=("to_q", "conv1", "conv2")
    )
    assert other.words == exact.words and other.differs == (
        "the highest rate is 0.002",
        "rank is 5",
        "lr_scheduler is linear",
        "target_modules are to_q conv1 conv2",
        "this is after 1,200 updates, and no run has more than 100",
    )
    assert found(folder, 60).differs == ("this is after 60 updates",)


@pytest.mark.parametrize(
    ("settings", "differs"),
    [
        ({}, ()),
        ({"train_batch_size": 4, "lr_warmup_steps": 0, "total_updates": 100, "num_processes": 1}, ()),
        ({"train_batch_size": 8}, ("an update takes 8 images, not 4",)),
        ({"num_processes": 3, "gradient_accumulation_steps": 2}, ("an update takes 24 images, not 4",)),
        ({"train_batch_size": 2, "num_processes": 2}, ()),
        ({"lr_warmup_steps": 500}, ("lr_warmup_steps is 500",)),
        ({"lr_warmup_steps": 500, "lr_scheduler": "constant"}, ()),  # which has none
        ({"total_updates": 2000}, ("the run has 2,000 updates, not 100",)),
        ({"total_updates": 2000, "lr_scheduler": "constant"}, ()),  # its rates at the same update are the same
    ],
)
def test_what_differs_otherwise_is_said(folder, settings, differs):
    assert place_of(START | settings, 100, read_atlas(folder)).differs == differs


def test_a_run_without_pictures_is_never_the_nearest(folder):
    stored = read_atlas(folder)
    assert nearest(stored | {"runs": stored["runs"][::-1]}, **START, updates=100).run == RUNS[0]


def test_every_schedule_has_its_kind():
    from lora_kit.lr_settings import LR_SCHEDULERS

    kinds = {name: schedule_kind(name) for name in LR_SCHEDULERS}
    assert [name for name, kind in kinds.items() if kind == "constant"] == [
        "constant", "constant_with_warmup", "piecewise_constant",
    ]  # fmt: skip
    assert set(kinds.values()) == {"constant", "cosine"}


# what is shown


def test_the_pictures_of_a_place(folder):
    shown = atlas_html(START, 60, folder=folder)
    images = attributes(shown, "img", "alt", "src")
    assert images == [
        ('fox, a "trophy": the style\'s own pictures', "data:image/webp;base64,Z29h"),  # "goa"
        ('fox, a "trophy": the LoRA after 50 updates', "data:image/webp;base64,ZXZl"),  # "eve"
    ]
    tops = [re.search(r"top: -(\d+)%", look)[1] for look in attributes(shown, "img", "style")]
    assert tops == ["0", "200"]  # the third row of the run's picture
    assert texts(shown, "span") == ["✓ right", "goal", "drawn"]
    text = words(shown)
    assert text.startswith(f'✓ right {NAMES["right"]}foxa "trophy"goal')
    assert text.endswith(
        "The nearest run made: learning_rate 0.001, rank 4, cosine, everything, after 50 updates. What you ask for differs: "
        "this is after 60 updates."
    )
    assert "script" not in {tag for tag, _, _ in elements(shown)}


def test_the_losses_of_a_place(folder):
    text = words(map_html(START, 60, folder=folder))
    assert "Held-out loss 0.500 (the base's 1.000), loss on training pictures 0.500." in text
    assert "The held-out losses of 3 seeds: 0.500, 0.500, 0.500." in text
    assert "3 seeds: 0.400, 0.450, 0.350." in words(map_html(START, 100, folder=folder))
    assert "seeds" not in words(map_html(START | {"rank": 16}, 100, folder=folder))
    assert "Held-out loss no number" in words(map_html(START | {"learning_rate": 1e-1}, 50, folder=folder))


def test_six_pictures_are_shown_in_two_threes(folder):
    """Each a window of three on a picture as wide as six, at the row of its updates."""
    path = folder / "atlas.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"prompts": list("abcdef")}))
    shown = atlas_html(START, 100, "files/", folder)
    looks = attributes(shown, "img", "alt", "style")
    where = [(alt[:7], *re.findall(r"(?:left|top|width): (-?\d+)%", look)) for alt, look in looks]
    goal, lora = ("-0", "200"), ("-300", "200")
    assert where == [
        ("a, b, c", "-0", *goal),
        ("a, b, c", "-0", *lora),
        ("d, e, f", "-100", *goal),
        ("d, e, f", "-100", *lora),
    ]
    assert texts(shown, "b") == list("abcdef")


def test_a_run_that_was_made_is_said_to_be(folder):
    text = words(atlas_html(START, 100, folder=folder))
    assert "A run that was made: learning_rate 0.001" in text and "differs" not in text
    alts = attributes(atlas_html(START, 0, folder=folder), "img", "alt")
    assert alts[1] == 'fox, a "trophy": the base model, before the first update'


def test_another_model_s_pictures_are_not_claimed(folder):
    text = words(atlas_html(START | {"pretrained_model_name_or_path": "a/model"}, 100, folder=folder))
    assert "The small embedded model drew these, not a/model, whose rates are others." in text
    assert text.startswith("embedded model: right")
    own = words(atlas_html(START | {"pretrained_model_name_or_path": "embedded"}, 100, folder=folder))
    assert own == words(atlas_html(START, 100, folder=folder)) and "small" not in own


def test_pictures_by_their_addresses(folder):
    shown = atlas_html(START, 100, "files/", folder)
    assert attributes(shown, "img", "src") == ["files/goal.webp", "files/everything-cosine-4-0.001.webp"]


def test_a_run_that_ended_by_itself(folder):
    high = START | {"learning_rate": 1e-1}
    before, after = (atlas_html(high, updates, folder=folder) for updates in (25, 50))
    assert len(attributes(before, "img", "src")) == 2 and len(attributes(after, "img", "src")) == 1
    text = words(after)
    assert text.startswith("✗ broken") and "No picture: the run had ended before." in text and ERROR in text


def test_the_chart_of_a_place(folder):
    shown = map_html(START | {"learning_rate": 1e-1}, 25, folder=folder)
    ((label,),) = [[label] for label in attributes(shown, "svg", "aria-label")]
    assert label.startswith("Losses of this run, which go on above the edge: held-out loss: 1.000, 9.500, no number,")
    here = [path for path in attributes(shown, "path", "d") if path.endswith("V150")]
    assert "M202.0 30V150" in here  # a quarter of 464 pixels behind 86
    calm = map_html(START, 25, folder=folder)
    assert attributes(calm, "svg", "aria-label")[0].startswith("Losses of this run: held-out loss: 1.000, 0.700")


def test_the_map(folder):
    shown = map_html(START, 100, folder=folder)
    assert table(shown) == [
        ["", "1e-5", "1e-3", "1e-1"],
        ["16", "…", "0.38★", "4.00\xa0"],
        ["4", "0.96\xa0", "0.40◉", "✗\xa0"],
    ]
    cells = attributes(shown, "td", "data-rate", "data-rank", "aria-current", "title")
    assert [cell for cell in cells if cell[0]] == [
        ("0.001", "16", None, "learning_rate 0.001, rank 16: 0.380, right"),
        ("0.1", "16", None, "learning_rate 0.1, rank 16: 4.000, broken"),
        ("1e-05", "4", None, "learning_rate 1e-05, rank 4: 0.960, too low"),
        ("0.001", "4", "true", "learning_rate 0.001, rank 4: 0.400, right, you are here"),
        ("0.1", "4", None, "learning_rate 0.1, rank 4: no number, broken"),
    ]
    assert texts(shown, "caption") == ["Held-out loss after 100 updates, cosine, everything: rank ↓, learning_rate →"]
    assert "4 pictures an update, no warm-up, 100 updates planned" in words(shown)
    assert "script" not in {tag for tag, _, _ in elements(shown)}


def test_the_map_follows_the_updates_and_the_other_knobs(folder):
    assert table(map_html(START, 0, folder=folder))[2] == ["4", "1.00★", "1.00◉★", "1.00★"]
    assert table(map_html(START | {"lr_scheduler": "constant"}, 100, folder=folder)) == [["", "1e-3"], ["4", "0.70◉★"]]


def luminance(colour):
    parts = [part / 255 / 12.92 if part <= 0.04045 * 255 else ((part / 255 + 0.055) / 1.055) ** 2.4 for part in colour]
    return sum(share * part for share, part in zip((0.2126, 0.7152, 0.0722), parts, strict=True))


def test_every_number_of_the_map_can_be_read(folder):
    """Its contrast is at least 4.5, whatever the loss."""
    path = folder / "atlas.json"
    losses = [0.02 + step / 30 for step in range(60)]
    runs = [run(10**-step, 4, [1.0, loss, loss, loss]) for step, loss in enumerate(losses)]
    path.write_text(json.dumps(json.loads(path.read_text()) | {"runs": runs}))
    cells = [cell for row in read_html(map_html(START, 25, folder=folder)).tables[0] for cell in row if "color" in cell]
    for cell in cells:
        light = luminance([int(part) for part in re.findall(r"\d+", cell["background"])])
        ink = {"#000000": 0.0, "#ffffff": 1.0}[cell["color"]]
        assert (max(light, ink) + 0.05) / (min(light, ink) + 0.05) >= 4.5, cell
    lights = [luminance([int(part) for part in re.findall(r"\d+", cell["background"])]) for cell in cells[::-1]]
    assert len(cells) == 60 and lights[0] == 1  # white, of the lowest
    assert lights[:30] == sorted(lights[:30], reverse=True) and lights[30:] == sorted(lights[30:], reverse=True)
    assert lights[30] < 0.8  # just above the base's loss a cell is clearly no white


def test_a_rate_in_few_letters():
    from lora_kit.explorer.atlas import _short

    assert [_short(rate) for rate in (1e-5, 3e-4, 0.05, 0.2, 1.0)] == ["1e-5", "3e-4", "5e-2", "2e-1", "1e0"]


# in notebooks


def test_without_an_atlas_nothing_is_shown(tmp_path, monkeypatch):
    assert (
        read_atlas(tmp_path) is None
        and atlas_html(START, 0, folder=tmp_path) == map_html(START, 0, folder=tmp_path) == ""
    )
    monkeypatch.setattr("lora_kit.explorer.atlas.read_atlas", lambda folder=None: None)
    with pytest.raises(ValueError, match=r"holds no atlas: run python scripts/train_atlas\.py, then again with --pack"):
        atlas()


def test_an_atlas_in_a_notebook(folder, monkeypatch):
    of_folder = read_atlas(folder)
    monkeypatch.setattr("lora_kit.explorer.atlas.read_atlas", lambda _=None: of_folder)
    monkeypatch.setattr("lora_kit.explorer.atlas._content", lambda path: path.name)
    shown = lora_kit.atlas(100, learning_rate=1e-3, rank=4)
    assert repr(shown) == "<Atlas: learning_rate 0.001, rank 4, cosine, everything, after 100 updates: right>"
    assert shown.place.run == RUNS[0] and shown.place.differs == () and shown.name == "right"
    page = shown._repr_html_()
    assert attributes(page, "img", "src")[1].endswith("everything-cosine-4-0.001.webp") and "◉" in page
    for options, kind, message in (
        ({"learning_rat": 1e-3}, TypeError, "'learning_rat' is not one of learning_rate, rank"),
        ({"rank": 0}, ValueError, "rank 0 must be at least 1"),
        ({"updates": -1}, ValueError, "updates -1 is not a whole number of at least 0"),
    ):
        with pytest.raises(kind, match=message):
            atlas(**options)


# how it is made


def test_the_grid():
    cells = [script.name_of(cell) for cell in script.grid()]
    assert len(cells) == len(set(cells)) == len(script.RATES) * 4 * 2 * 2
    assert {1e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 5e-2, 2e-1} == set(script.RATES) and set(script.RANKS) == {1, 4, 16, 64}
    grid = script.grid()
    assert {(cell["rank"], cell["targets"]) for cell in grid[:16]} == {(16, "everything")}


def test_other_seeds_are_of_the_best_rates_and_of_what_a_notebook_compares():
    def record(rate, loss, **others):
        return script.cell(rate, 4, "cosine", "attention", **others) | {"fixed": [1.0, loss]}

    runs = [record(1e-3, 0.5), record(1e-2, 0.4), record(1e-1, None), record(1e-4, 0.1, seed=1)]
    assert script.other_seeds(runs) == [script.cell(1e-2, 4, "cosine", "attention", seed) for seed in (1, 2)]
    runs = [one | {"targets": "everything"} for one in (record(3e-4, 0.5), record(2e-1, 0.6), record(1e-3, 0.4))]
    compared = [(one["learning_rate"], one["seed"]) for one in script.other_seeds(runs)]
    assert compared == [(3e-4, 1), (3e-4, 2), (1e-3, 1), (1e-3, 2)]


def test_a_run_that_is_done_is_never_made_again(tmp_path, capsys):
    wanted = script.grid()[:2]
    (tmp_path / "runs").mkdir()
    for cell in wanted:
        (tmp_path / "runs" / f"{script.name_of(cell)}.json").write_text("{}")
    script.make_all(wanted, tmp_path, 2)
    assert capsys.readouterr().out == "0 of 2 runs to make, 2 at a time\n"
    with pytest.raises(SystemExit, match="no run in .*: train first"):
        script.pack(tmp_path / "none", tmp_path)


@pytest.fixture
def short(monkeypatch):
    """The script with runs of two updates."""
    monkeypatch.setattr(script, "UPDATES", (0, 2))
    monkeypatch.setattr(script, "PROMPTS", ("fox", "trophy"))
    monkeypatch.setattr(script, "SETTINGS", script.SETTINGS | {"max_train_steps": 2, "max_train_samples": 8})
    return script


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers' DPM-Solver++ of NumPy
def test_a_run_is_made_packed_and_shown_and_one_that_breaks_is_kept(short, tmp_path, capsys):
    (tmp_path / "work" / "runs").mkdir(parents=True)
    made = {"commit": "0a1b", "date": "2026-01-01", "versions": {}, "device": "cpu"}
    fine = script.make(script.cell(1e-3, 16, "cosine", "attention"), tmp_path / "work" / "runs", made)
    broken = script.make(script.cell(1e30, 1, "constant", "attention", 1), tmp_path / "work" / "runs", made)
    assert fine["state"] == "done" and fine["updates"] == [0, 2]
    assert all(0.5 < loss < 2 for loss in fine["fixed"] + fine["training"]) and fine["error"] is None
    assert broken["state"] == "failed" and "nan" in broken["error"].lower()
    assert broken["fixed"][0] == fine["fixed"][0] and broken["fixed"][-1] is None and len(broken["fixed"]) == 2
    assert not [path for path in (tmp_path / "work").iterdir() if path.name.startswith("making-")]

    script.pack(tmp_path / "work", tmp_path / "files")
    assert "2 runs in" in capsys.readouterr().out
    packed = read_atlas(tmp_path / "files")
    assert [(one["seed"], one["pictures"]) for one in packed["runs"]] == [(0, 2), (1, 0)]
    assert packed["made_with"]["commit"] == ["0a1b"] and "made_with" not in packed["runs"][0]
    sheet = script.opened(tmp_path / "files" / packed["runs"][0]["sprite"])
    assert sheet.size == (128, 128) and script.opened(tmp_path / "files" / "goal.webp").size == (128, 64)
    page = atlas_html(START | {"target_modules": TARGET_MODULES}, 2, folder=tmp_path / "files")
    assert words(page).startswith("▽ too low")


# what is packed


@pytest.fixture(scope="module")
def packed():
    return read_atlas() or pytest.skip("no atlas is packed yet")


def test_what_is_packed_is_whole(packed):
    assert packed["schema"] == script.SCHEMA and packed["updates"] == list(script.UPDATES)
    assert packed["made_with"]["settings"] == script.SETTINGS and packed["prompts"] == list(script.PROMPTS)
    names = {script.name_of(cell) for cell in script.grid()}
    for record in packed["runs"]:
        assert record["seed"] or script.name_of(record) in names
        assert len(record["fixed"]) == len(record["training"]) == len(packed["updates"])
        assert (record["state"] == "failed") == (record["error"] is not None)
        assert all(loss is None or math.isfinite(loss) for loss in record["fixed"] + record["training"])
    files = {record["sprite"] for record in packed["runs"] if record["sprite"]} | {packed["base"], packed["goal"]}
    assert {path.name for path in FILES.glob("*")} == files | {"atlas.json", "README.md"}
    assert sum(path.stat().st_size for path in FILES.glob("*")) <= script.LIMIT
    for record in packed["runs"]:
        if record["sprite"]:
            assert script.opened(FILES / record["sprite"]).size == (64 * 6, 64 * record["pictures"])
    assert "CC-BY 4.0" in (FILES / "README.md").read_text()


@pytest.mark.slow
def test_a_run_that_is_made_anew_has_the_stored_loss(packed, tmp_path):
    """At 25 updates of a constant rate, which is the same run however long it is planned."""
    from lora_kit.evaluation import fixed_inputs, fixed_loss
    from lora_kit.models import load_models
    from lora_kit.training import train

    stored = next(
        one for one in packed["runs"]
        if one["lr_scheduler"] == "constant" and one["learning_rate"] == 1e-3 and not one["seed"]
    )  # fmt: skip
    config = quiet_config(script.settings_of(stored, tmp_path) | {"max_train_steps": 25})
    models = load_models(config, parts=("tokenizer", "text_encoder", "vae", "noise_scheduler"))
    measured = []

    def measure(done, unet):
        if done == 25:
            splits = [fixed_inputs("outlined", models, split=split) for split in ("held_out", "lora")]
            measured.extend(fixed_loss(unet, inputs) for inputs in splits)

    train(config, progress=False, on_update=measure)
    index = packed["updates"].index(25)
    # other processors round otherwise
    assert measured == pytest.approx([stored["fixed"][index], stored["training"][index]], rel=1e-3)
