import itertools
import json
import math
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from running import fingerprint
from waiting import session, wait_until

from lora_kit.config import TrainingConfig
from lora_kit.data.emoji import emoji_captions, held_out, load_style
from lora_kit.evaluation import fixed_inputs, fixed_loss
from lora_kit.explorer.trial_process import target
from lora_kit.explorer.trials import EVENTS, PROMPTS, Trials, _Trial, sweep, trial_settings
from lora_kit.models import load_models
from lora_kit.output.lora_file import LORA
from lora_kit.output.metrics import METRICS, read_metrics
from lora_kit.schedules import rising_step_rules
from lora_kit.training import train

SMALL = {"learning_rate": 1e-4, "train_batch_size": 2, "max_train_samples": 6}  # 3 updates an epoch
UPDATES = 4
TRIALS = {
    "low": SMALL,
    "broken": {**SMALL, "max_train_samples": 100_000},
    "high": {**SMALL, "learning_rate": 2e-2, "seed": 5},
    "script": {**SMALL, "match_diffusers": True, "lr_warmup_steps": 0},
}


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """One thread here and in the trials: then equal runs are equal to the last bit."""
    before, threads = os.environ.get("OMP_NUM_THREADS"), torch.get_num_threads()
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    os.environ.pop("OMP_NUM_THREADS")
    if before is not None:
        os.environ["OMP_NUM_THREADS"] = before


def wait(trials, until, seconds=300):
    """Every progress until `until` holds for one, which is the last."""
    seen = []

    def reached():
        seen.append(trials.progress())
        return until(seen[-1])

    wait_until(reached, seconds)
    return seen


def ended(progress):
    return not progress["running"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """(all that progress said, the folder) of four trials."""
    folder = tmp_path_factory.mktemp("trials")
    trials = Trials(folder)
    trials.start(TRIALS, updates=UPDATES)
    seen = wait(trials, ended)
    trials.close()
    return seen, folder


def trial(finished, name):
    return finished[0][-1]["trials"][name]


@pytest.mark.slow
@pytest.mark.long  # notebook 06 makes one too
def test_a_range_test(tmp_path):
    rules = rising_step_rules(6, 1e-3)
    settings = {
        **SMALL,
        "learning_rate": 1e-2,
        "lr_scheduler": "piecewise_constant",
        "lr_step_rules": rules,
        "max_train_steps": 6,
    }
    trials = Trials(tmp_path)
    trials.start({"rising": settings}, updates=6, prompts=(), fixed_every=2)
    (seen,) = wait(trials, ended)[-1]["trials"].values()
    trials.close()
    assert seen["state"] == "done" and [done for done, _ in seen["fixed"]] == [0, 2, 4, 6] and seen["samples"] == []
    assert seen["lr"] == pytest.approx([1e-5 * 1000 ** (update / 5) for update in range(6)], rel=1e-5)


# settings


def test_settings_of_a_trial():
    settings = {
        "learning_rate": 2e-3,
        "rank": 16,
        "lr_scheduler": "cosine",
        "lr_warmup_steps": 20,
        "max_train_steps": 300,
    }
    made, sentences = trial_settings({**settings, "hub_token": "hf_secret", "train_data_dir": "pictures"}, 100)
    config = TrainingConfig(**made)
    assert (config.learning_rate, config.rank, config.lr_scheduler) == (2e-3, 16, "cosine")
    assert (config.max_train_steps, config.lr_warmup_steps, config.resolution, config.seed) == (100, 7, 64, 0)
    assert (config.style, config.train_data_dir, config.report_to, config.hub_token) == ("outlined", None, "none", None)
    assert "lr_warmup_steps 20 is 7 here: the warm-up keeps its share of the run" in sentences
    assert any(sentence.startswith("train_data_dir 'pictures' is None here") for sentence in sentences)
    assert not any("rank" in sentence or "hf_secret" in sentence for sentence in sentences)


def test_settings_that_a_trial_keeps():
    made, sentences = trial_settings(
        {"learning_rate": 1e-3, "style": "blueprint", "seed": 7, "use_8bit_adam": True}, 10
    )
    assert (made["style"], made["seed"], made["use_8bit_adam"]) == ("blueprint", 7, True)
    assert not any(sentence.startswith(("style", "seed", "lr_", "checkpointing")) for sentence in sentences)
    again, more = trial_settings(made, 10)
    assert (again, more) == (made, [])
    assert trial_settings({"learning_rate": 1e-3, "checkpointing_steps": 2}, 10)[0]["checkpointing_steps"] == 11


@pytest.mark.parametrize(
    ("warmup", "total", "updates", "expected"),
    [(0, 300, 100, 0), (150, 300, 1, 0), (299, 300, 10, 9), (3, 10, 100, 30)],
)
def test_share_of_the_warmup(warmup, total, updates, expected):
    settings = {
        "learning_rate": 1e-3,
        "lr_scheduler": "linear",
        "lr_warmup_steps": warmup,
        "max_train_steps": total,
    }
    assert trial_settings(settings, updates)[0]["lr_warmup_steps"] == expected


@pytest.mark.parametrize("style", ["outlined", "openmoji_line"])
def test_share_where_epochs_give_the_length(style):
    pictures = len(load_style(style, "lora"))
    settings = {"style": style, "learning_rate": 1e-3, "lr_scheduler": "linear", "train_batch_size": pictures - 1}
    # two updates an epoch
    settings |= {"num_train_epochs": 10, "lr_warmup_steps": 5}
    assert trial_settings(settings, 100)[0]["lr_warmup_steps"] == 25


def test_rules_keep_their_share():
    settings = {"learning_rate": 1e-3, "lr_scheduler": "piecewise_constant", "max_train_steps": 1000}
    rules = trial_settings({**settings, "lr_step_rules": "1:100,0.1:500,0.01"}, 100)[0]["lr_step_rules"]
    assert rules == "1:10,0.1:50,0.01"
    rules = trial_settings({**settings, "lr_step_rules": "1:1,0.5:2,0.1"}, 100)[0]["lr_step_rules"]
    assert rules == "1:1,0.5:2,0.1"


@pytest.mark.parametrize(
    ("settings", "culprit"),
    [
        ({}, "learning_rate is missing"),
        ({"learning_rate": 1e-3, "rnak": 4}, "'rnak' is not a setting: did you mean 'rank'?"),
        ({"learning_rate": -1.0}, "learning_rate -1.0 must be greater than 0"),
        (
            {"learning_rate": 1e-3, "pretrained_model_name_or_path": "big/model"},
            "'big/model': a trial trains the embedded",
        ),
        (
            {"learning_rate": 1e-3, "lr_scheduler": "linear", "lr_warmup_steps": 9, "max_train_steps": 9},
            "lr_warmup_steps 9",
        ),
    ],
)
def test_bad_settings_start_nothing(settings, culprit, tmp_path):
    trials = Trials(tmp_path)
    with pytest.raises(ValueError) as error:
        trials.start({"good": SMALL, "bad": settings})
    assert "trial 'bad': " in str(error.value) and culprit in str(error.value)
    assert list(tmp_path.iterdir()) == []
    assert trials.progress() == {"running": False, "trials": {}}


def test_bad_arguments_start_nothing(tmp_path):
    trials = Trials(tmp_path)
    for arguments, message in (
        (({},), "trials {} is empty"),
        (({"a": SMALL}, 0), "updates 0 is not a whole number of at least 1"),
        (({"a": SMALL}, 5, 0), "sample_every 0 is not a whole number of at least 1"),
        (({"a": SMALL}, 5, 1, (), 0), "fixed_every 0 is not a whole number of at least 1"),
    ):
        with pytest.raises(ValueError, match=message):
            trials.start(*arguments)
    assert list(tmp_path.iterdir()) == []


def test_sweep():
    made = sweep({"lr_scheduler": "cosine"}, ("learning_rate", [1e-4, 1e-3]), ("rank", [1, 4, 16]))
    assert list(made)[3] == "learning_rate 0.001, rank 1" and len(made) == 6
    assert made["learning_rate 0.001, rank 4"] == {"lr_scheduler": "cosine", "learning_rate": 1e-3, "rank": 4}
    assert list(sweep(SMALL, ("snr_gamma", [None, 5.0]))) == ["snr_gamma None", "snr_gamma 5.0"]


@pytest.mark.parametrize(
    ("base", "first", "second", "culprit"),
    [
        ({}, ("learning_rate", [1e-3]), ("rnak", [1]), "'rnak' is not a setting: did you mean 'rank'?"),
        ({"rnak": 4}, ("learning_rate", [1e-3]), ("rank", [1]), "'rnak' is not a setting"),
        (SMALL, ("rank", [1, 0]), ("seed", [1]), "trial 'rank 0, seed 1': rank 0 must be at least 1"),
        (SMALL, ("rank", [1]), ("rank", [4]), "first and second are both 'rank'"),
    ],
)
def test_bad_sweep(base, first, second, culprit):
    with pytest.raises(ValueError) as error:
        sweep(base, first, second)
    assert culprit in str(error.value)


def test_no_trial_trains_on_the_prompts():
    captions = {caption for emoji, caption in emoji_captions().items() if held_out(emoji)}
    assert set(PROMPTS) <= captions


# the hook of the loop


@pytest.mark.slow
@pytest.mark.parametrize("match_diffusers", [False, True])
def test_hook_changes_nothing(match_diffusers, tmp_path):
    settings, _ = trial_settings({**SMALL, "match_diffusers": match_diffusers, "lr_warmup_steps": 0}, 5)
    called = []

    def hook(update, unet):
        called.append((update, unet.training))
        unet.eval()
        torch.rand(update)
        with torch.no_grad():
            unet(torch.randn(1, 4, 16, 16), torch.tensor([500]), torch.zeros(1, 77, unet.config.cross_attention_dim))

    for name, on_update in (("plain", None), ("hooked", hook)):
        config = TrainingConfig(**settings, output_dir=str(tmp_path / name))
        train(config, progress=False, on_update=on_update)
    assert called == [(update, True) for update in range(1, 6)]
    assert fingerprint(tmp_path / "plain" / LORA) == fingerprint(tmp_path / "hooked" / LORA)


# trials


@pytest.mark.slow
def test_states(finished):
    seen, _ = finished
    states = {name: [progress["trials"][name]["state"] for progress in seen] for name in TRIALS}
    order = ["waiting", "starting", "running", "done"]
    assert sorted(states["low"], key=order.index) == states["low"]
    folder = Path(trial(finished, "low")["target"]).parent
    written = [json.loads(line) for line in (folder / EVENTS).read_text().splitlines()]
    assert [record["state"] for record in written if "state" in record] == order[1:]
    high = json.loads((folder.parent / "trial-2" / EVENTS).read_text().splitlines()[0])
    assert (written[-1]["state"], high["state"]) == ("done", "starting") and written[-1]["time"] <= high["time"]
    assert [progress["running"] for progress in seen] == [True] * (len(seen) - 1) + [False]
    final = {name: states[name][-1] for name in TRIALS}
    assert final == {"low": "done", "broken": "failed", "high": "done", "script": "done"}
    assert all(trial(finished, name)["seconds"] > 0 for name in TRIALS)
    json.dumps(seen[-1])  # plain


@pytest.mark.slow
def test_progress_only_grows(finished):
    seen, _ = finished
    for before, after in itertools.pairwise(seen):
        for name in TRIALS:
            for column in ("updates", "loss", "lr", "grad_norm", "fixed", "samples"):
                earlier, later = before["trials"][name][column], after["trials"][name][column]
                assert later[: len(earlier)] == earlier


@pytest.mark.slow
def test_failing_trial_is_told(finished):
    broken = trial(finished, "broken")
    assert broken["error"].startswith("ValueError: max_train_samples 100000 is more than the")
    assert "\n" not in broken["error"]
    assert (broken["updates"], broken["fixed"], broken["samples"]) == ([], [], [])
    assert trial(finished, "low")["error"] is None


@pytest.mark.slow
@pytest.mark.parametrize("name", ["low", "script"])
def test_trial_is_the_run_that_train_makes(finished, name, tmp_path):
    settings, _ = trial_settings(TRIALS[name], UPDATES)
    train(TrainingConfig(**settings, output_dir=str(tmp_path)), progress=False)
    run, (_, records) = trial(finished, name), read_metrics(tmp_path / METRICS)
    assert run["total_updates"] == len(records) == UPDATES
    for column, field in (("updates", "update"), ("loss", "loss"), ("lr", "lr"), ("grad_norm", "grad_norm")):
        assert run[column] == [record[field] for record in records]
    folder = Path(run["samples"][0][1]).parent
    assert fingerprint(folder / LORA) == fingerprint(tmp_path / LORA)
    assert not list(folder.glob("checkpoint-*"))


@pytest.mark.slow
def test_fixed_loss(finished):
    low, high = (trial(finished, name)["fixed"] for name in ("low", "high"))  # of two seeds
    assert [done for done, _ in low] == [done for done, _ in high] == [0, 1, 2, 3, 4]
    assert low[0] == high[0]
    assert abs(high[4][1] - high[0][1]) > 10 * abs(low[4][1] - low[0][1]) > 0
    config = TrainingConfig(style="outlined", learning_rate=1e-3)
    models = load_models(config)
    inputs = fixed_inputs("outlined", models)
    assert fixed_loss(models.unet, inputs) == pytest.approx(low[0][1], rel=1e-6)
    noisy, timesteps, hidden, target = inputs
    assert noisy.shape == target.shape == (32, 4, 16, 16)
    assert len(hidden) == 32
    assert timesteps.diff().unique().tolist() in ([31], [31, 32]) and (timesteps[0], timesteps[-1]) == (15, 984)
    predicted = models.unet(noisy, timesteps, hidden).sample
    assert fixed_loss(models.unet, inputs) == pytest.approx((predicted - target).square().mean().item())


@pytest.mark.slow
def test_samples(finished):
    low, high = (dict(trial(finished, name)["samples"]) for name in ("low", "high"))
    assert list(low) == list(high) == [0, 2, 4]
    for path in [*low.values(), *high.values()]:
        with Image.open(path) as image:
            assert (image.format, image.size, image.mode) == ("PNG", (64 * len(PROMPTS), 64), "RGB")
    with Image.open(trial(finished, "low")["target"]) as image:
        fox = next(
            record["image"] for record in load_style("outlined", "held_out", size=64) if record["text"] == PROMPTS[0]
        )
        assert image.size == (64 * len(PROMPTS), 64)
        assert image.crop((0, 0, 64, 64)).tobytes() == fox.tobytes()
    assert target("outlined", ["fox", "a fox that nobody drew"]) is None
    read = {done: (Path(low[done]).read_bytes(), Path(high[done]).read_bytes()) for done in low}
    assert read[0][0] == read[0][1]
    assert read[4][0] != read[4][1]


@pytest.mark.slow
def test_stop_in_the_middle_and_start_again(tmp_path):
    trials = Trials(tmp_path)
    long = {**SMALL, "max_train_samples": 64, "dataloader_num_workers": 1}
    trials.start({"first": long, "second": long}, updates=1000, sample_every=1000, prompts=("fox",))
    wait(trials, lambda progress: len(progress["trials"]["first"]["updates"]) > 2)
    with pytest.raises(RuntimeError, match="trials are running already: stop them"):
        trials.start({"another": SMALL})
    number = trials._groups[0].pid
    wait_until(lambda: len(session(number)) > 1)  # with a worker that loads pictures, between two epochs another
    trials.stop()
    assert session(number) == []
    stopped = trials.progress()
    first, second = stopped["trials"]["first"], stopped["trials"]["second"]
    assert not stopped["running"]
    assert [(run["state"], run["error"]) for run in (first, second)] == [("stopped", None)] * 2
    assert len(first["updates"]) == len(first["loss"]) > 2 and first["fixed"][0][0] == 0
    with Image.open(first["samples"][0][1]) as image:
        assert image.size == (64, 64)
    trials.stop()
    assert trials.progress() == stopped

    trials.start({"again": SMALL}, updates=1, prompts=())
    again = wait(trials, ended)[-1]["trials"]
    assert list(again) == ["again"]
    assert (again["again"]["state"], again["again"]["updates"], again["again"]["samples"]) == ("done", [0], [])
    assert Path(first["samples"][0][1]).exists()
    trials.close()
    assert Path(first["samples"][0][1]).exists()  # the folder was given


@pytest.mark.slow
def test_process_that_is_killed(tmp_path):
    trials = Trials(tmp_path)
    trials.start({"a": SMALL, "b": SMALL})
    os.kill(trials._groups[0].pid, signal.SIGKILL)
    killed = wait(trials, ended)[-1]["trials"]
    assert [run["state"] for run in killed.values()] == ["failed", "failed"]
    assert "the process ended with status -9; see " in killed["a"]["error"]
    trials.close()


@pytest.mark.slow
def test_close_ends_all():
    trials = Trials()
    trials.start({"a": SMALL})
    number = trials._groups[0].pid
    assert session(number) and trials.folder.exists()
    trials.close()
    assert not session(number) and not trials.folder.exists()
    assert trials.progress()["trials"]["a"]["state"] == "stopped"
    trials.close()
    with pytest.raises(RuntimeError, match="closed"):
        trials.start({"a": SMALL})


def test_what_can_not_be_read_fails_that_trial_alone(tmp_path):
    """A file that is no JSON, and one that is no file: the page goes on, and others can be started."""
    trials = Trials(tmp_path)
    for name, content in (
        ("a", "{broken\n"),
        ("b", None),
        ("c", '{"fixed": [0, null]}\n{"state": "done", "time": 5}\n'),
    ):
        folder = tmp_path / name
        folder.mkdir()
        trials._trials[name] = _Trial({"output_dir": str(folder), "max_train_steps": 3})
        (folder / EVENTS).write_text(content) if content else (folder / EVENTS).mkdir()
    progress = trials.progress()
    assert {name: run["state"] for name, run in progress["trials"].items()} == {
        "a": "failed",
        "b": "failed",
        "c": "done",
    }
    assert progress["trials"]["a"]["error"].startswith("what it wrote can't be read: ")
    ((done, loss),) = progress["trials"]["c"]["fixed"]
    assert done == 0 and math.isnan(loss)  # a run whose loss was no number
    assert not progress["running"]


PAGE = """
import sys, time
from lora_kit.explorer.trials import Trials, sweep
trials = Trials()
trials.start(sweep({}, ("learning_rate", [1e-3]), ("rank", [1, 4])))
while any(trial["state"] == "waiting" for trial in list(trials.progress()["trials"].values())[:1]):
    time.sleep(0.02)
heavy = [name for name in ("torch", "numpy", "PIL", "diffusers") if name in sys.modules]
print(trials._groups[0].pid, trials.folder, heavy, flush=True)
sys.stdin.readline()
"""
LAST = {
    "dropped": "del trials\nprint('gone', flush=True)\nsys.stdin.readline()",
    "exits": "sys.exit()",
    "forks": "import os\nif os.fork() == 0: sys.exit()\nos.wait()\nprint('gone', flush=True)\nsys.stdin.readline()",
    "killed": "sys.stdin.readline()",
}


@pytest.mark.slow
@pytest.mark.parametrize("how", LAST)
def test_page_that_goes(how):
    """Its trainings go with it, whether it drops them, exits or is killed, but not with a process that it forked; and it has
    imported nothing heavy."""
    page = subprocess.Popen(
        [sys.executable, "-c", PAGE + LAST[how]], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    number, folder, heavy = page.stdout.readline().split(maxsplit=2)
    try:
        assert heavy.strip() == "[]"
        assert session(int(number)) and Path(folder).exists()
        if how == "killed":
            page.kill()
            wait_until(lambda: not session(int(number)))
            return
        page.stdin.write("\n")
        page.stdin.flush()
        assert page.wait() == 0 if how == "exits" else page.stdout.readline() == "gone\n"
        assert (bool(session(int(number))), Path(folder).exists()) == (
            (True, True) if how == "forks" else (False, False)
        )
    finally:
        page.kill()
        page.communicate()
        wait_until(lambda: not session(int(number)))
        shutil.rmtree(folder, ignore_errors=True)  # left by a page that was killed
