import re

from lora_kit.explorer.panels import pictures_html, running_html, runs_html
from lora_kit.explorer.trials import PROMPTS


def test_progress_of_runs_as_html():
    one = dict(
        state="running", total_updates=10, updates=[0, 1], loss=[1.0, 0.5], lr=[0.0, 1e-3], grad_norm=[2.0, None]
    )
    one |= dict(fixed=[(0, 1.0)], samples=[], error=None, seconds=1.0)
    other = one | dict(state="failed", error="ValueError: <no>", updates=[], loss=[], lr=[], grad_norm=[], fixed=[])
    progress = dict(running=True, trials={"learning_rate 0.001, rank 4": one, "b": other})
    text = running_html(progress)
    assert "2 of 20 updates; runs: 1 running, 1 failed" in text and "&lt;no&gt;" in text
    assert running_html(progress, "a < b").count("a &lt; b") == 1
    assert runs_html(progress["trials"]).count("<svg") == 4
    assert "…" in runs_html(progress["trials"], ([4], [1e-3]))
    done = {"learning_rate 0.001, rank 4": one | dict(state="done")}
    assert "★ 1.0000" in runs_html(done, ([4], [1e-3]))


def test_pictures_stand_in_a_column_for_each_prompt(tmp_path):
    def picture(name):
        (tmp_path / name).write_bytes(name.encode())
        return str(tmp_path / name)

    base, goal = picture("base"), picture("goal")
    runs = {
        name: dict(samples=[(0, base), (10, picture(name))], target=goal) for name in ("run 1: a < b", "run 2: cosine")
    }
    text = pictures_html(runs)
    assert [words for words in re.findall(r'scope="row"[^>]*>([^<]*)<', text)] == [
        "the goal: the style&#x27;s own pictures", "the base model, before training",
        "run 1: a &lt; b, after 10 updates", "run 2: cosine, after 10 updates",
    ]  # fmt: skip
    assert re.findall(r'scope="col"[^>]*>([^<]*)<', text) == list(PROMPTS)
    assert text.count('alt="fox, octopus, birthday cake, hatching chick: ') == 4
    assert pictures_html({"a": dict(samples=[], target=None)}) == ""
