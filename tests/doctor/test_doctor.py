"""Each trap is set for real, and the doctor must name it; what is sound must be called fine."""

import json
import re
import shutil
import subprocess
import sys
import warnings
from functools import partial
from pathlib import Path

import pytest
import torch
from diffusers.optimization import get_scheduler
from torch.utils.checkpoint import checkpoint

from lora_kit import doctor
from lora_kit.config import ConfigWarning, TrainingConfig
from lora_kit.doctor.examine import ERROR, FINE, WARNING, Watch, examine, examine_settings
from lora_kit.models import load_models
from lora_kit.output.checkpoints import seal
from lora_kit.parameters import add_lora
from lora_kit.steps import Steps

SOUND = dict(style="outlined", resolution=64, learning_rate=1e-3, train_batch_size=8, max_train_steps=100)


@pytest.fixture(autouse=True)
def elsewhere(monkeypatch, tmp_path):
    """An output folder of its own, and no precision from outside."""
    monkeypatch.chdir(tmp_path)
    for name in ("ACCELERATE_MIXED_PRECISION", "MIXED_PRECISION"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("accelerate.commands.config.config_args.default_config_file", str(tmp_path / "none.yaml"))


def found(check, settings=SOUND, num_examples=400, **options):
    """The findings of one check."""
    return [one for one in examine(settings, num_examples=num_examples, **options) if one.check == check]


def loaded_unet(**settings):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConfigWarning)
        return load_models(TrainingConfig(**SOUND | settings), parts=("unet",)).unet


def test_what_is_sound_is_fine():
    findings = examine(SOUND, num_examples=400)
    assert {one.status for one in findings} == {FINE}
    assert findings.status == FINE
    assert len(findings) > 10


CASES = [  # settings, options, check, status, words of value, reason or cure
    (dict(lr_scheduler="constant", lr_warmup_steps=10), {}, "warm-up", WARNING, "ignores it"),
    (dict(lr_scheduler="cosine", lr_warmup_steps=100), {}, "warm-up", ERROR, "never reaches its peak"),
    (dict(lr_scheduler="cosine", lr_warmup_steps=150), {}, "warm-up", ERROR, "the run has 100 updates"),
    (dict(lr_scheduler="cosine", lr_warmup_steps=99), {}, "warm-up", WARNING, "most of the run is warm-up"),
    (dict(lr_scheduler="cosine", lr_warmup_steps=51), {}, "warm-up", WARNING, "51% of the 100 updates"),
    (dict(lr_scheduler="cosine", lr_warmup_steps=0.1), {}, "warm-up", ERROR, "lr_warmup_steps 10 is 10% of 100"),
    (dict(lr_scheduler="cosine", lr_warmup_steps=-1), {}, "warm-up", ERROR, "at least 0"),
    (dict(lr_scheduler="cosine", lr_warmup_steps="ten"), {}, "warm-up", ERROR, "'ten'"),
    (dict(match_diffusers=True), {}, "warm-up", WARNING, "lr_warmup_steps 500"),
    (dict(lr_scheduler="cosine_with_restarts"), {}, "restarts", WARNING, "nothing restarts"),
    (dict(lr_scheduler="polynomial", learning_rate=1e-7), {}, "polynomial", ERROR, "1e-07"),
    (
        dict(lr_scheduler="piecewise_constant", lr_step_rules="1:200,0.1"), {}, "step rules", WARNING, "boundary 200",
    ),
    (dict(gradient_accumulation_steps=3), {}, "accumulation", WARNING, "leave 2 for its last update"),
    (dict(scale_lr=True), dict(num_processes=2), "learning rate", WARNING, "already scaled"),
    (dict(learning_rate=0.5), {}, "learning rate", WARNING, "outside 1e-05..0.01"),
    (dict(use_8bit_adam=True), {}, "8-bit Adam", WARNING, "saves nothing"),
    (dict(match_diffusers=True, seed=0), dict(num_processes=2), "noise of each process", WARNING, "D4"),
    (dict(match_diffusers=True), {}, "clipping", WARNING, "D1"),
    (dict(match_diffusers=True, mixed_precision="bf16"), {}, "LoRA dtype", ERROR, "D2"),
    (dict(), dict(num_examples=7), "images", WARNING, "one update asks for 8"),
    (dict(), dict(num_examples=7, num_processes=2), "images", WARNING, "already repeat"),
    (dict(target_modules=["to_z"]), {}, "trainable parameters", ERROR, "no module matched 'to_z'"),
    (dict(pretrained_model_name_or_path="./nowhere"), {}, "base model", ERROR, "does not exist"),
    (dict(rank=0), {}, "settings", ERROR, "rank 0 must be at least 1"),
    (dict(ranks=4), {}, "settings", ERROR, "did you mean 'rank'?"),
    (dict(style="outline"), {}, "settings", ERROR, "did you mean 'outlined'?"),
    (dict(resume_from_checkpoint="latest"), {}, "output folder", WARNING, "holds no checkpoint"),
    (dict(resume_from_checkpoint="checkpoint-5"), {}, "output folder", ERROR, "not among its checkpoints: none"),
]  # fmt: skip


@pytest.mark.parametrize("settings, options, check, status, words", CASES, ids=[f"{one[2]}-{one[4]}" for one in CASES])
def test_a_trap_is_named(settings, options, check, status, words):
    (finding,) = found(check, SOUND | settings, **options)
    assert finding.status == status
    assert words in f"{finding.value} {finding.reason} {finding.cure}"
    assert finding.cure


def test_sound_neighbours_of_the_traps_are_fine():
    for settings, options, check in (
        (dict(lr_scheduler="cosine", lr_warmup_steps=50), {}, "warm-up"),
        (dict(lr_scheduler="cosine_with_restarts", lr_num_cycles=3), {}, "restarts"),
        (dict(lr_scheduler="polynomial", learning_rate=1e-4), {}, "scheduler total"),
        (dict(lr_scheduler="piecewise_constant", lr_step_rules="1:50,0.1"), {}, "step rules"),
        (dict(gradient_accumulation_steps=5), {}, "accumulation"),
        (dict(scale_lr=True, learning_rate=1e-5), {}, "learning rate"),
        (dict(use_8bit_adam=True, rank=64), {}, "8-bit Adam"),
        (dict(match_diffusers=True, seed=0), {}, "noise of each process"),
        (dict(mixed_precision="bf16"), {}, "LoRA dtype"),
        (dict(), dict(num_examples=8), "images"),
    ):
        (finding,) = found(check, SOUND | settings, **options)
        assert finding.status == FINE, (settings, finding)


def test_8bit_adam_saves_what_the_optimizer_saves():
    unet = loaded_unet()
    parameters = add_lora(unet, rank=64)
    (finding,) = found("8-bit Adam", SOUND | dict(use_8bit_adam=True, rank=64))
    sizes = []
    for eight in (False, True):
        from lora_kit.optimizers import make_optimizer, state_bytes

        for parameter in parameters:
            parameter.grad = torch.ones_like(parameter)
        optimizer = make_optimizer(parameters, TrainingConfig(**SOUND, use_8bit_adam=eight))
        optimizer.step()
        sizes.append(sum(row["bytes"] for row in state_bytes(optimizer)))
    full, small = sizes
    assert f"{full / 1e6:.2f} MB become {small / 1e6:.2f} MB" in finding.reason
    assert small < full


# the scheduler's total


@pytest.mark.parametrize("scheduler", ["linear", "cosine", "cosine_with_restarts", "polynomial"])
def test_a_total_without_the_processes_is_an_error(scheduler):
    settings = SOUND | dict(lr_scheduler=scheduler, lr_num_cycles=3 if "restarts" in scheduler else 1)
    (finding,) = found("scheduler total", settings, num_processes=4, num_training_steps=100)
    assert finding.status == ERROR
    assert "num_training_steps=400" in finding.cure
    assert ("RISES again" in finding.reason) == (scheduler == "cosine")
    assert found("scheduler total", settings, num_processes=4, num_training_steps=400)[0].status == FINE
    (finding,) = found("scheduler total", settings, num_processes=1, num_training_steps=400)
    assert "ends in the middle" in finding.reason


def test_a_total_that_nothing_reads_is_fine():
    (finding,) = found("scheduler total", num_processes=4, num_training_steps=100)
    assert finding.status == FINE and "doesn't read it" in finding.reason


def test_a_warm_up_without_the_processes_is_an_error():
    settings = SOUND | dict(lr_scheduler="cosine", lr_warmup_steps=20)
    findings = found("warm-up", settings, num_processes=4, num_warmup_steps=20)
    assert [one.status for one in findings] == [ERROR, FINE]
    assert "5 updates" in findings[0].reason and "num_warmup_steps=80" in findings[0].cure
    assert [one.status for one in found("warm-up", settings, num_processes=4, num_warmup_steps=80)] == [FINE]


def test_what_was_told_is_what_a_stepped_scheduler_does():
    config = TrainingConfig(**SOUND | dict(lr_scheduler="cosine", lr_warmup_steps=8))
    steps = Steps.of(config, 400, num_processes=4)
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=config.learning_rate)
    scheduler = get_scheduler("cosine", optimizer, num_warmup_steps=8, num_training_steps=100)
    rates = []
    for _ in range(steps.total_updates):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        for _ in range(4):  # what accelerate's prepared scheduler does
            scheduler.step()
    assert doctor.told_learning_rates(config, steps, 100, 8).tolist() == rates
    assert rates[50] > rates[25]  # it rose again

    axes = doctor.plot_schedule(config, 400, 4, 100, 8)
    meant, told = (line.get_ydata() for line in axes.get_lines()[:2])
    assert told.tolist() == rates and meant[-1] < 1e-2 * config.learning_rate
    assert [text.get_text() for text in axes.get_legend().get_texts()][:2] == ["as meant: 400", "as told: 100"]


# models


def test_a_model_without_lora_has_nothing_to_train():
    (finding,) = found("trainable parameters", unet=loaded_unet())
    assert finding.status == ERROR and finding.value == "0"


@pytest.mark.parametrize("rank", [4, 64])
def test_the_size_of_the_base_is_counted_without_the_lora(rank):
    (finding,) = found("base model", SOUND | dict(rank=rank))
    size = sum(parameter.numel() for parameter in loaded_unet().parameters())
    assert finding.reason == f"a UNet of {size:,} parameters"


def test_a_trainable_base_is_an_error():
    unet = loaded_unet()
    add_lora(unet)
    assert found("frozen base", unet=unet)[0].status == FINE
    unet.conv_in.requires_grad_(True)
    (finding,) = found("frozen base", unet=unet)
    assert finding.status == ERROR and "conv_in" in finding.reason and finding.value.startswith("2 tensors")


def test_parameter_lists():
    unet = loaded_unet()
    parameters = add_lora(unet)

    def status(given):
        return found("parameter list", unet=unet, parameters=given)[0]

    assert status(parameters).status == FINE
    assert status([{"params": parameters, "lr": 1e-3}]).status == FINE
    assert "filter" in status(filter(lambda one: one.requires_grad, unet.parameters())).value
    assert status([]).status == ERROR
    assert "10 of the model's 112" in status(parameters[10:]).reason
    assert "1 of them are frozen" in status([*parameters, unet.conv_in.weight]).reason


def test_16_bit_lora_is_an_error():
    unet = loaded_unet()
    add_lora(unet)
    for dtype, words in ((torch.bfloat16, "round away"), (torch.float16, "unscale FP16")):
        unet.to(dtype)
        (finding,) = found("LoRA dtype", unet=unet)
        assert finding.status == ERROR and words in finding.reason


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_that_cuts_the_gradient_is_an_error(reentrant):
    unet = loaded_unet()
    parameters = add_lora(unet)
    assert found("gradient checkpointing", unet=unet)[0].value == "off"
    unet.enable_gradient_checkpointing(partial(checkpoint, use_reentrant=reentrant))
    (finding,) = found("gradient checkpointing", unet=unet)
    assert finding.status == (ERROR if reentrant else FINE)

    unet.train()  # and it is true: with it the whole output has no gradient
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        drawn = unet(torch.randn(1, 4, 8, 8), torch.tensor([10]), torch.randn(1, 16, unet.config.cross_attention_dim))
    assert drawn.sample.requires_grad != reentrant
    if not reentrant:
        drawn.sample.sum().backward()
        assert all(parameter.grad is not None for parameter in parameters)


def test_the_settings_own_checkpointing_is_fine():
    (finding,) = found("gradient checkpointing", SOUND | dict(gradient_checkpointing=True))
    assert finding.status == FINE and "blocks" in finding.reason


# the machine


def test_precision_in_one_place_only(monkeypatch, tmp_path):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    assert found("precision")[0].status == WARNING
    assert found("precision", SOUND | dict(mixed_precision="bf16"))[0].status == FINE
    (finding,) = found("precision", SOUND | dict(mixed_precision="no"))
    assert "disagree" in finding.reason
    (finding,) = found("precision", SOUND | dict(match_diffusers=True))
    assert finding.status == WARNING and "D3" in finding.reason
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION")
    monkeypatch.setenv("MIXED_PRECISION", "bf16")
    (finding,) = found("precision")
    assert "nothing reads it" in finding.reason


def test_precision_from_accelerate_s_file(monkeypatch, tmp_path):
    file = tmp_path / "default_config.yaml"
    file.write_text(
        "compute_environment: LOCAL_MACHINE\ndistributed_type: 'NO'\nmixed_precision: bf16\nnum_processes: 1\nuse_cpu: true\n"
    )
    monkeypatch.setattr("accelerate.commands.config.config_args.default_config_file", str(file))
    monkeypatch.setattr("accelerate.commands.config.config_args.default_yaml_config_file", str(file))
    (finding,) = found("precision")
    assert finding.status == WARNING and "'bf16'" in finding.value


@pytest.mark.skipif(torch.accelerator.is_available(), reason="fp16 works on an accelerator")
def test_fp16_without_a_gpu_is_an_error():
    assert found("precision", SOUND | dict(mixed_precision="fp16"))[0].status == ERROR


# the output folder


def test_output_folders(tmp_path):
    def finding(folder, **settings):
        return found("output folder", SOUND | settings | dict(output_dir=str(folder)))[0]

    assert finding(tmp_path / "new").status == FINE
    (tmp_path / "file").write_text("")
    assert finding(tmp_path / "file").status == ERROR
    assert finding(tmp_path / "file" / "below").status == ERROR
    other = tmp_path / "other"
    (other / "checkpoint-5").mkdir(parents=True)
    (other / "metrics.jsonl").write_text("")
    one = finding(other)
    assert one.status == WARNING and "metrics.jsonl, checkpoint-5" in one.reason
    assert finding(other, resume_from_checkpoint="checkpoint-5").reason == "goes on with checkpoint-5"
    one = finding(other, resume_from_checkpoint="latest")
    assert one.status == ERROR and "it was not finished" in one.reason and "none is whole" in one.reason
    settings = TrainingConfig(**SOUND)
    (other / "checkpoint-3").mkdir()
    seal(other / "checkpoint-3", settings, update=3, num_processes=1, num_examples=8, next_learning_rate=1e-3)
    one = finding(other, resume_from_checkpoint="latest")
    assert one.status == WARNING and "goes on with checkpoint-3" in one.reason
    shutil.rmtree(other / "checkpoint-5")
    assert finding(other, resume_from_checkpoint="latest").reason == "goes on with checkpoint-3"
    assert sorted(path.name for path in other.iterdir()) == ["checkpoint-3", "metrics.jsonl"]


# data


def test_pictures_are_counted(tmp_path):
    (finding,) = found("data", num_examples=None)
    assert finding.status == FINE and "399 pictures" in finding.reason
    (finding,) = found("data", dict(learning_rate=1e-3, train_data_dir=str(tmp_path / "none")), num_examples=None)
    assert finding.status == ERROR


# a run


def tiny_loop(parameters, given, rate=1e-2, updates=4, clip=None, scale=1.0):
    optimizer = torch.optim.AdamW(given, lr=rate)
    for _ in range(updates):
        loss = scale * (parameters.forward(torch.ones(1, 4)) ** 2).sum()
        loss.backward()
        if clip is not None:
            torch.nn.utils.clip_grad_norm_(clip[0], clip[1])
        optimizer.step()
        optimizer.zero_grad()


def statuses(watch):
    return {one.check: one.status for one in watch.findings()}


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
    by_check = {one.check: one for one in watch.findings()}
    assert by_check["gradients"].status == ERROR and by_check["gradients"].value == "1 of 5 tensors"
    assert "unused" in by_check["gradients"].reason
    assert by_check["movement"].status == ERROR and by_check["movement"].value == "3 of 5 tensors"
    with Watch(model) as watch:
        tiny_loop(model, list(model.parameters()), rate=0.0)
    assert {one.check: one for one in watch.findings()}["movement"].value == "5 of 5 tensors"


def test_watch_sees_clipping_that_always_bites_or_never():
    torch.manual_seed(0)
    model = torch.nn.Linear(4, 1)
    listed = list(model.parameters())
    with Watch(model, max_grad_norm=1e-3) as watch:
        tiny_loop(model, listed, clip=(listed, 1e-3))
    assert statuses(watch)["clipping"] == WARNING
    exhausted = filter(lambda one: one.requires_grad, model.parameters())
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
    findings = doctor.try_run(config, updates=4)
    assert {one.check: one.status for one in findings} == {"gradients": FINE, "movement": FINE, "clipping": FINE}
    assert "112 of 112 tensors" in findings[0].value
    assert not (tmp_path / "run").exists()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConfigWarning)
        tight = TrainingConfig(**SOUND | dict(max_train_samples=8, max_grad_norm=1e-6, learning_rate=1e-30))
    found = {one.check: one for one in doctor.try_run(tight, updates=2)}
    assert found["clipping"].status == WARNING
    assert found["movement"].status == ERROR  # 1e-30 is lost beside what A holds


@pytest.mark.parametrize("options", [dict(num_processes=0), dict(num_examples=-1), dict(num_processes=1.5)])
def test_counts_that_are_none_are_raised(options):
    with pytest.raises(ValueError, match="is not a whole number of at least 1"):
        examine(SOUND, **options)


# how it is shown


def test_links_lead_to_headings():
    notebooks = Path(__file__).parents[1] / "notebooks"
    for check, (name, section) in doctor.PLACES.items():
        cells = json.loads((notebooks / name).read_text())["cells"]
        lines = [line.strip() for cell in cells if cell["cell_type"] == "markdown" for line in cell["source"]]
        assert f"## {section}" in lines, (check, name, section)
        assert (
            doctor.Finding(check, FINE, "", "").link == f"notebooks/{name}#{section.replace('`', '').replace(' ', '-')}"
        )


def test_every_check_has_a_place():
    source = Path(doctor.__file__).read_text()
    used = set(re.findall(r'Finding\(\s*"([^"]+)"', source)) | set(re.findall(r'_all\(\s*"([^"]+)"', source))
    assert used == set(doctor.PLACES)


def test_table_and_records():
    findings = examine(SOUND | dict(lr_scheduler="cosine", lr_warmup_steps=0.1, rank=64), num_examples=400)
    page = findings._repr_html_()
    assert page.count("<tr>") == len(findings) + 1 and "✗ error" in page and 'href="03_schedules.ipynb#' in page
    record = findings.records()[0]
    assert list(record) == ["check", "status", "value", "reason", "cure", "change", "link"]
    assert json.loads(json.dumps(record)) == record


NUMBERS = [case for case in CASES if set(case[1]) <= {"num_processes"}]


@pytest.mark.parametrize("case", NUMBERS, ids=str)
def test_a_cure_that_is_a_change_of_settings_cures(case):
    settings, options, check, status, _ = case
    (sick,) = [one for one in found(check, SOUND | settings, **options) if one.status == status]
    if sick.change is None:
        assert check not in (
            "warm-up",
            "restarts",
            "learning rate",
            "8-bit Adam",
            "polynomial",
            "accumulation",
            "images",
        )
        return
    changed = SOUND | settings | sick.change
    if sick.change.get("lr_warmup_steps"):
        assert changed["lr_warmup_steps"] < 100
    assert [one for one in found(check, changed, **options) if one.status != FINE] == []


@pytest.mark.parametrize("case", NUMBERS, ids=str)
def test_the_numbers_alone_say_the_same(case):
    settings, options, check, _, _ = case
    unet = loaded_unet()
    add_lora(unet, rank=4)
    shapes = [tuple(one.shape) for one in unet.parameters() if one.requires_grad]
    alone = examine_settings(SOUND | settings, 400, options.get("num_processes", 1), shapes)
    names = {one.check for one in alone}
    whole = examine(SOUND | settings, options.get("num_processes", 1), 400, unet=unet)
    if check in ("LoRA dtype", "precision"):
        assert check not in names
    assert list(alone) == [one for one in whole if one.check in names]
    assert check in names or check in (
        "LoRA dtype",
        "precision",
        "trainable parameters",
        "data",
        "base model",
        "output folder",
    )


def test_the_numbers_alone_need_no_torch():
    code = (
        "import sys; from lora_kit.doctor.examine import examine_settings; "
        "found = examine_settings(dict(style='outlined', learning_rate=1e-3, lr_scheduler='cosine', lr_warmup_steps=500,"
        " max_train_steps=300, use_8bit_adam=True), 400, 4, [(4, 96), (96, 4)]); "
        "assert found[0].change == {'lr_warmup_steps': 30} and len(found) >= 8; "
        "assert not {'torch', 'numpy', 'accelerate', 'diffusers'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[1])


def run_doctor(*argv):
    command = [sys.executable, "-m", "lora_kit.doctor", *argv]
    return subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[1])


def test_command_line(tmp_path):
    flags = ["--style", "outlined", "--resolution", "64", "--learning_rate", "1e-3", "--output_dir", str(tmp_path)]
    done = run_doctor(*flags, "--max_train_steps", "20", "--max_train_samples", "16", "--try_updates", "4")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 error(s)" in done.stdout and "✓ movement" in done.stdout
    done = run_doctor(*flags, "--lr_scheduler", "cosine", "--lr_warmup_steps", "0.1", "--ranks", "4", "--json")
    assert done.returncode == 1
    records = json.loads(done.stdout)
    assert [one["check"] for one in records if one["status"] == ERROR] == ["settings", "warm-up"]
    assert "did you mean --rank?" in done.stdout
    assert "Traceback" not in done.stderr
