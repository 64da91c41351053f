import json

import numpy as np
import pytest
import torch
from PIL import Image

from lora_kit.evaluation import dark_pixel_share, draw, gap_closed, show_rows, through_vae
from lora_kit.models import load_pipeline
from lora_kit.parameters import add_lora
from lora_kit.plots import COLOURS, LINE_STYLES, plot_learning_rates, plot_run, read_metrics
from lora_kit.steps import Steps
from lora_kit.training import save_lora

PROMPTS = ["cat face", "dog face", "red apple"]
QUICK = {"num_inference_steps": 3}


@pytest.fixture(scope="module")
def pipeline():
    return load_pipeline("embedded")


def distance(images, others):
    pairs = zip(images, others, strict=True)
    return max(np.abs(np.asarray(a).astype(int) - np.asarray(b).astype(int)).max() for a, b in pairs)


@pytest.mark.slow
def test_draw(pipeline):
    images = draw(pipeline, PROMPTS, **QUICK)
    assert [(image.size, image.mode) for image in images] == [((64, 64), "RGB")] * 3
    assert distance(images, draw(pipeline, PROMPTS, **QUICK)) == 0
    assert distance(images, draw(pipeline, PROMPTS, batch_size=2, **QUICK)) <= 1  # whatever the batch
    assert distance(images, draw(pipeline, PROMPTS, seed=1, **QUICK)) > 20
    assert distance(images[:1], draw(pipeline, PROMPTS[1:2], **QUICK)) > 20


@pytest.mark.slow
def test_draw_starts_from_the_noise_that_is_promised(pipeline):
    generator, size = torch.Generator().manual_seed(2 * 100_003 + 1), pipeline.unet.config.sample_size
    noise = torch.randn(1, 4, size, size, generator=generator)
    (expected,) = pipeline(PROMPTS[1], latents=noise, guidance_scale=3.0, **QUICK).images
    drawn = draw(pipeline, PROMPTS[:2], seed=2, guidance_scale=3.0, **QUICK)
    assert distance(drawn[1:], [expected]) <= 1


@pytest.mark.slow
def test_lora_scale(tmp_path):
    pipeline = load_pipeline("embedded")
    base = draw(pipeline, PROMPTS[:1], **QUICK)
    other = load_pipeline("embedded")
    torch.manual_seed(0)
    for one in add_lora(other.unet):
        torch.nn.init.normal_(one, std=0.3)
    save_lora(other.unet, tmp_path)
    pipeline.load_lora_weights(str(tmp_path))
    full, half, none = (draw(pipeline, PROMPTS[:1], lora_scale=scale, **QUICK) for scale in (1.0, 0.5, 0.0))
    assert distance(base, none) <= 1
    assert distance(full, draw(pipeline, PROMPTS[:1], **QUICK)) <= 1
    assert distance(base, full) > 20 and distance(half, full) > 5 and distance(base, half) > 5


@pytest.mark.slow
def test_through_vae_comes_close(pipeline):
    from lora_kit.data.emoji import load_style

    images = [record["image"] for record in load_style("twemoji", "lora", size=64)[:4]]
    seen = through_vae(pipeline.vae, images)
    assert [image.size for image in seen] == [(64, 64)] * 4
    errors = [
        np.mean((np.asarray(a, float) - np.asarray(b.convert("RGB"), float)) ** 2)
        for a, b in zip(seen, images, strict=True)
    ]
    assert 0 < min(errors) and max(errors) < 255**2 / 10**2  # 20 dB each
    assert distance(seen, through_vae(pipeline.vae, images)) == 0


def test_dark_pixel_share_by_hand():
    half = Image.new("RGB", (4, 4), "white")
    half.paste((0, 0, 0), (0, 0, 4, 2))
    white = Image.new("RGB", (4, 4), "white")
    assert dark_pixel_share([half]) == 0.5
    assert dark_pixel_share([half, white]) == 0.25
    grey = Image.new("RGB", (2, 2), (64, 64, 64))
    assert (dark_pixel_share([grey]), dark_pixel_share([grey], threshold=65)) == (0, 1)
    assert dark_pixel_share([Image.new("RGB", (2, 2), (0, 0, 255))]) == 1  # blue has a luminance of 29


@pytest.mark.parametrize(
    ("base", "lora", "target", "closed"),
    [(0, 0, 1, 0), (0, 1, 1, 1), (0, 0.25, 1, 0.25), (0, 1.25, 1, 0.75), (0.4, 0.3, 0.2, 0.5), (0, -1, 1, -1)],
)
def test_gap_closed(base, lora, target, closed):
    assert gap_closed(base, lora, target) == pytest.approx(closed)


def test_no_gap():
    with pytest.raises(ValueError, match=r"base and target are both 0\.5"):
        gap_closed(0.5, 0.1, 0.5)


def test_show_rows():
    from matplotlib import pyplot as plt

    red, blue = Image.new("RGB", (8, 8), "red"), Image.new("RGB", (16, 16), "blue")
    figure = show_rows({"base": [red, red, red], "target": [red, blue]})
    first, second = figure.axes
    assert [axis.get_ylabel() for axis in figure.axes] == ["base", "target"]
    assert first.images[0].get_array().shape == (8, 24, 3)
    assert second.images[0].get_array().shape == (16, 32, 3)  # all at the largest size of the row
    assert first.get_xlim() == (0, 24) and second.get_xlim() == (0, 48)
    plt.close(figure)


START = {"event": "start", "num_processes": 2, "device": "a CPU", "total_updates": 4, "first_update": 0}


def metrics(path, count, tail=""):
    lines = [START, *({"update": k, "loss": 1.0 - k / 10, "lr": k * 1e-4} for k in range(count))]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines) + tail)
    return path


def test_read_metrics(tmp_path):
    path = tmp_path / "metrics.jsonl"
    assert read_metrics(path) == (None, [])
    start, updates = read_metrics(metrics(path, 3, tail='{"update": 3, "lo'))
    assert start == START
    assert [one["update"] for one in updates] == [0, 1, 2]
    _, updates = read_metrics(metrics(path, 1, tail='{"event": "end", "updates": 1}\n'))
    assert len(updates) == 1


def test_plot_run(tmp_path):
    path = tmp_path / "metrics.jsonl"
    assert plot_run(path).get_suptitle() == "starting ..."
    figure = plot_run(metrics(path, 3))
    assert figure.get_suptitle() == "3 of 4 updates, 2 process(es), a CPU"
    left, right = figure.axes
    assert left.lines[0].get_ydata().tolist() == pytest.approx([1.0, 0.9, 0.8])
    assert right.lines[0].get_ydata().tolist() == pytest.approx([0, 1e-4, 2e-4])
    assert (left.get_xlabel(), right.get_ylabel()) == ("optimizer update", "learning rate as applied")
    assert plot_run(metrics(path, 0)).get_suptitle().startswith("0 of 4")


def test_plot_learning_rates():
    from matplotlib import pyplot as plt

    steps = Steps(num_examples=8, train_batch_size=2, num_train_epochs=3, lr_warmup_steps=2)
    axes = plot_learning_rates({"a": [0, 1, 2], "b": [2, 1, 0]}, steps=steps)
    curves = [line for line in axes.lines if len(line.get_xdata()) == 3]
    assert [line.get_color() for line in curves] == list(COLOURS[:2])
    assert [line.get_linestyle() for line in curves] == list(LINE_STYLES[:2])
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["a", "b", "warm-up"]
    assert [line.get_xdata()[0] for line in axes.lines if line not in curves] == [4, 8]  # where epochs 1 and 2 begin
    plt.close(axes.figure)


def test_colours_and_lines_tell_seven_curves_apart():
    assert len(set(COLOURS)) == len(set(LINE_STYLES)) == 7
