"""Runs are watched for real: sound ones, and ones with a trap in them."""

import torch
from doctor_cases import SOUND

from lora_kit.config import TrainingConfig, quiet_config
from lora_kit.doctor import ERROR, FINE, WARNING, Watch, try_run


def tiny_loop(model, parameters, rate=1e-2, updates=4, clip=None, scale=1.0):
    optimizer = torch.optim.AdamW(parameters, lr=rate)
    for _ in range(updates):
        loss = scale * (model(torch.ones(1, 4)) ** 2).sum()
        loss.backward()
        if clip is not None:
            torch.nn.utils.clip_grad_norm_(clip[0], clip[1])
        optimizer.step()
        optimizer.zero_grad()


def statuses(watch):
    return {finding.check: finding.status for finding in watch.findings()}


def test_watch_calls_a_sound_loop_fine():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 1))
    with Watch(model, max_grad_norm=1e3) as watch:
        tiny_loop(model, list(model.parameters()), clip=(list(model.parameters()), 1e3))
    assert statuses(watch) == {"gradients": FINE, "movement": FINE, "clipping": FINE}
    assert watch.updates == 4


def test_watch_sees_what_is_cut_off_and_what_does_not_move():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 1))
    model.register_parameter("unused", torch.nn.Parameter(torch.ones(2)))
    with Watch(model) as watch:
        tiny_loop(model, list(model[1].parameters()))
    by_check = {finding.check: finding for finding in watch.findings()}
    assert by_check["gradients"].status == ERROR and by_check["gradients"].value == "1 of 5 tensors"
    assert "unused" in by_check["gradients"].reason
    assert by_check["movement"].status == ERROR and by_check["movement"].value == "3 of 5 tensors"
    with Watch(model) as watch:
        tiny_loop(model, list(model.parameters()), rate=0.0)
    assert {finding.check: finding for finding in watch.findings()}["movement"].value == "5 of 5 tensors"


def test_watch_sees_clipping_that_always_bites_or_never():
    torch.manual_seed(0)
    model = torch.nn.Linear(4, 1)
    listed = list(model.parameters())
    with Watch(model, max_grad_norm=1e-3) as watch:
        tiny_loop(model, listed, clip=(listed, 1e-3))
    assert statuses(watch)["clipping"] == WARNING
    exhausted = filter(lambda parameter: parameter.requires_grad, model.parameters())
    with Watch(model, max_grad_norm=1e-3) as watch:
        tiny_loop(model, exhausted, clip=(exhausted, 1e-3), scale=10.0)
    assert statuses(watch)["clipping"] == ERROR


def test_watch_without_updates():
    with Watch(torch.nn.Linear(1, 1)) as watch:
        pass
    assert watch.findings().status == ERROR


def test_try_run_looks_at_real_updates(tmp_path):
    config = TrainingConfig(
        **SOUND | dict(output_dir=str(tmp_path / "run"), max_train_samples=8, lr_scheduler="cosine")
    )
    findings = try_run(config, updates=4)
    assert {finding.check: finding.status for finding in findings} == {
        "gradients": FINE,
        "movement": FINE,
        "clipping": FINE,
    }
    assert "112 of 112 tensors" in findings[0].value
    assert not (tmp_path / "run").exists()
    tight = quiet_config(SOUND | dict(max_train_samples=8, max_grad_norm=1e-6, learning_rate=1e-30))
    by_check = {finding.check: finding for finding in try_run(tight, updates=2)}
    assert by_check["clipping"].status == WARNING
    assert by_check["movement"].status == ERROR  # 1e-30 is lost beside what A holds
