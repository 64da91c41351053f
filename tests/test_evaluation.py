import numpy as np
import pytest
import torch
from PIL import Image

from lora_kit.config import TrainingConfig
from lora_kit.data.emoji import load_style
from lora_kit.evaluation import (
    dark_pixel_share,
    draw,
    fixed_inputs,
    fixed_loss,
    gap_closed,
    show_rows,
    through_vae,
)
from lora_kit.models import load_models, load_pipeline
from lora_kit.parameters import add_lora

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
def test_lora_scale():
    pipeline = load_pipeline("embedded")
    base = draw(pipeline, PROMPTS[:1], **QUICK)
    torch.manual_seed(0)
    for parameter in add_lora(pipeline.unet):
        torch.nn.init.normal_(parameter, std=0.3)
    full, half, none = (draw(pipeline, PROMPTS[:1], lora_scale=scale, **QUICK) for scale in (1.0, 0.5, 0.0))
    assert distance(base, none) <= 1
    assert distance(full, draw(pipeline, PROMPTS[:1], **QUICK)) <= 1
    assert distance(base, full) > 20 and distance(half, full) > 5 and distance(base, half) > 5


@pytest.mark.slow
def test_through_vae_comes_close(pipeline):
    images = [record["image"] for record in load_style("twemoji", "lora", size=64)[:4]]
    seen = through_vae(pipeline.vae, images)
    assert [image.size for image in seen] == [(64, 64)] * 4
    errors = [
        np.mean((np.asarray(a, float) - np.asarray(b.convert("RGB"), float)) ** 2)
        for a, b in zip(seen, images, strict=True)
    ]
    assert 0 < min(errors) and max(errors) < 255**2 / 10**2  # 20 dB each
    assert distance(seen, through_vae(pipeline.vae, images)) == 0


@pytest.fixture(scope="module")
def models():
    return load_models(TrainingConfig(style="outlined", learning_rate=1e-3))


def parts(noisy, velocity, timesteps, scheduler):
    """(latents, noise): noisy = a latents + b noise and velocity = a noise - b latents, where a² + b² = 1."""
    share = scheduler.alphas_cumprod[timesteps].view(-1, 1, 1, 1)
    a, b = share.sqrt(), (1 - share).sqrt()
    return a * noisy - b * velocity, b * noisy + a * velocity


def test_fixed_inputs_show_held_out_pictures_at_timesteps_that_are_spread(models):
    noisy, timesteps, hidden, target = fixed_inputs("outlined", models, pictures=4, repeats=2)
    assert noisy.shape == target.shape == (8, 4, 16, 16)
    assert timesteps.tolist() == [62, 187, 312, 437, 562, 687, 812, 937]  # the middles of eighths of 1,000
    latents, noise = parts(noisy, target, timesteps, models.noise_scheduler)  # the embedded model predicts the velocity
    seeded = torch.randn(8, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(noise, seeded, rtol=0, atol=1e-4)

    records = load_style("outlined", "held_out", size=64)[:106:35]  # 4 of 142
    ids = models.tokenizer([record["text"] for record in records], padding="max_length", return_tensors="pt").input_ids
    with torch.no_grad():
        texts = models.text_encoder(ids)[0]
    torch.testing.assert_close(hidden, torch.cat([texts, texts]), rtol=0, atol=1e-5)

    torch.testing.assert_close(latents[:4], latents[4:], rtol=0, atol=1e-4)
    with torch.no_grad():
        drawn = models.vae.decode(latents[:4] / models.vae.config.scaling_factor).sample
    pixels = torch.from_numpy(np.stack([np.asarray(record["image"]) for record in records])).permute(0, 3, 1, 2) / 255
    errors = (drawn / 2 + 0.5 - pixels).square().mean((1, 2, 3))
    assert errors.max() < 1 / 10**2  # 20 dB each


def test_fixed_inputs_of_pictures_that_are_trained_on(models):
    noisy, _, hidden, _ = fixed_inputs("outlined", models, pictures=3, repeats=1, split="lora")
    records = load_style("outlined", "lora", size=64)[:267:133]  # 3 of 399
    ids = models.tokenizer([record["text"] for record in records], padding="max_length", return_tensors="pt").input_ids
    with torch.no_grad():
        torch.testing.assert_close(hidden, models.text_encoder(ids)[0], rtol=0, atol=1e-5)
    assert len(noisy) == len(records) == 3


def test_fixed_inputs_of_a_model_that_predicts_noise(models):
    noisy, timesteps, _, velocity = fixed_inputs("outlined", models, pictures=2, repeats=1)
    scheduler = type(models.noise_scheduler).from_config(models.noise_scheduler.config, prediction_type="epsilon")
    also_noisy, _, _, noise = fixed_inputs("outlined", models._replace(noise_scheduler=scheduler), 2, 1)
    assert torch.equal(noisy, also_noisy)
    assert torch.equal(noise, torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(0)))
    assert (noise - velocity).abs().max() > 1
    torch.testing.assert_close(parts(noisy, velocity, timesteps, scheduler)[1], noise, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pictures": 143}, "pictures 143 is more than the 142 of the split 'held_out'"),
        ({"pictures": 400, "split": "lora"}, "pictures 400 is more than the 399 of the split 'lora'"),
        ({"split": "held out"}, "split 'held out' is unknown; did you mean 'held_out'?"),
        ({"pictures": 0}, "pictures 0 is not a whole number of at least 1"),
        ({"repeats": 1.5}, "repeats 1.5 is not a whole number of at least 1"),
        ({"style": "outline"}, "style 'outline' is unknown; did you mean 'outlined'?"),
    ],
)
def test_fixed_inputs_that_can_not_be(options, message, models):
    with pytest.raises(ValueError, match=message):
        fixed_inputs(**{"style": "outlined", "models": models} | options)


class Copies(torch.nn.Module):
    """Predicts what it is shown; remembers how it was asked."""

    device = torch.device("cpu")

    def forward(self, noisy, timesteps, hidden, return_dict):
        self.asked = (self.training, torch.is_grad_enabled(), timesteps, hidden)
        return (noisy.to(torch.bfloat16),)


def test_fixed_loss_by_hand():
    noisy, target = torch.tensor([[1.0, 2.0], [0.0, 4.0]]), torch.tensor([[1.0, 4.0], [1.0, 1.0]])
    unet, timesteps, hidden = Copies().train(), torch.tensor([7, 8]), torch.zeros(2, 3)
    assert fixed_loss(unet, (noisy, timesteps, hidden, target)) == (0 + 4 + 1 + 9) / 4
    assert unet.asked[:2] == (False, False) and unet.asked[2] is timesteps and unet.asked[3] is hidden
    assert not unet.training


def test_fixed_loss_of_the_embedded_model(models):
    inputs = noisy, timesteps, hidden, target = fixed_inputs("outlined", models, pictures=2)
    loss = fixed_loss(models.unet, inputs)
    assert fixed_loss(models.unet, inputs) == loss
    with torch.no_grad():
        alone = [
            (models.unet(noisy[k : k + 1], timesteps[k : k + 1], hidden[k : k + 1]).sample - target[k]).square().mean()
            for k in range(4)
        ]
    assert loss == pytest.approx(sum(alone).item() / 4, rel=1e-4)
    assert loss < 0.8 * target.square().mean().item()  # better than to predict nothing


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
