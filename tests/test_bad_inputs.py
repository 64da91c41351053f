"""Bad inputs on the command line: each is refused with a sentence that names the culprit, before the UNet is loaded, and
leaves everything on disk as it was."""

import io
import json
import os
import shutil
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import pytest
from PIL import Image

import lora_kit.training
from lora_kit.config import FIELDS, TrainingConfig, kind_of
from lora_kit.models import EMBEDDED_MODEL
from lora_kit.system.imports import NEEDED

RUN = dict(style="outlined", resolution=64, learning_rate=1e-3, max_train_steps=2, train_batch_size=2)


def below(low):
    return str(low - 1) if isinstance(low, int) else f"{low - 0.5:g}"


def bad_values():
    """(flag, value, words of the error) for every setting: out of its range, and of the wrong type."""
    for name, field in FIELDS.items():
        (kind, optional), rules = kind_of(name), field.metadata["rules"]
        if kind is int:
            low = rules.get("low", 1)
            for value in ("many", "1.5", "1e3"):
                yield name, value, [f"--{name}", repr(value)]
            yield name, below(low), [name, below(low), f"at least {low}"]
            if "below" in rules:
                yield name, str(rules["below"]), [name, str(rules["below"]), f"less than {rules['below']}"]
        elif kind is float:
            yield name, "fast", [f"--{name}", "'fast'"]
            for value in ("nan", "inf"):
                yield name, value, [name, value, "finite"]
            for rule in {"low", "above"} & rules.keys():
                yield name, below(float(rules[rule])), [name, below(float(rules[rule]))]
            if "below" in rules:
                yield name, str(rules["below"]), [name, str(rules["below"]), "less than"]
        elif kind is bool:
            yield f"{name}=yes", None, [f"--{name}", "'yes'"]
        elif "choices" in rules:
            close = rules["choices"][0] + "x"
            yield name, close, [name, repr(close), f"did you mean {rules['choices'][0]!r}?"]
        elif kind is str and not (optional and field.default is not None):  # there an empty text is None
            yield name, "", [name, "''", "not a text"]


FLAGS = [
    *bad_values(),
    # unknown flags, with the nearest real one
    ("ranks", "4", ["--ranks", "did you mean --rank?"]),
    ("lr", "1e-3", ["--lr"]),
    ("learning-rate", "1e-3", ["--learning-rate", "did you mean --learning_rate?"]),
    ("batch_size", "4", ["--batch_size", "did you mean --train_batch_size?"]),
    ("warmup_steps", "4", ["--warmup_steps", "did you mean --lr_warmup_steps?"]),
    ("gradient_accumulation", "4", ["did you mean --gradient_accumulation_steps?"]),
    ("mixed_precison", "bf16", ["did you mean --mixed_precision?"]),
    ("max_steps", "4", ["did you mean --max_train_steps?"]),
    ("use_8bit", None, ["did you mean --use_8bit_adam?"]),
    # settings that don't go together
    ("train_data_dir", ".", ["style 'outlined' and train_data_dir '.'"]),
    ("push_to_hub", None, ["push_to_hub: HF_HUB_OFFLINE is set"]),
    ("max_train_samples", "400", ["max_train_samples 400 is more than the 399 pictures"]),
    ("resume_from_checkpoint", "checkpoint-7", ["resume_from_checkpoint 'checkpoint-7'", "holds none"]),
    ("target_modules", "to_z", ["no module matched 'to_z'"]),
    ("target_modules", "attn1", ["'attn1' matched", "did you mean"]),
    ("pretrained_model_name_or_path", "./nowhere", ["'./nowhere' does not exist"]),
    ("pretrained_model_name_or_path", "embeded", ["'embeded' is no model", "did you mean 'embedded'?"]),
]
TOGETHER = [
    (dict(lr_scheduler="cosine", lr_warmup_steps="2"), ["lr_warmup_steps 2 is not shorter than the 2 updates"]),
    (dict(lr_scheduler="polynomial", learning_rate="1e-8"), ["learning_rate 1e-08 is not above 1e-07"]),
    (dict(lr_scheduler="piecewise_constant"), ["lr_step_rules None"]),
    (dict(lr_scheduler="piecewise_constant", lr_step_rules="1:x,2"), ["lr_step_rules '1:x,2' can't be read"]),
    (dict(lr_scheduler="piecewise_constant", lr_step_rules="1:9,2:3,4"), ["boundaries [9, 3] must rise"]),
    (dict(lr_scheduler="piecewise_constant", lr_step_rules="-1:9,2"), ["each factor must be"]),
    (dict(report_to="wandb", hub_token="secret"), ["hub_token with report_to 'wandb'"]),
]


def snapshot(folder):
    return {path: path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}


@pytest.fixture
def refused(tmp_path, monkeypatch, capsys):
    """A function that runs a command line and returns what it says when it refuses it; the UNet must not be loaded."""
    load = lora_kit.training.load_models

    def load_models(config, dtype=None, parts=(), **options):
        assert "unet" not in parts or allowed, "the UNet was loaded before the input was refused"
        return load(config, dtype, parts, **options)

    monkeypatch.setattr(lora_kit.training, "load_models", load_models)
    output = tmp_path / "output"
    output.mkdir()
    (output / "pytorch_lora_weights.safetensors").write_bytes(b"an earlier LoRA")
    allowed = []

    def run(settings, unet=False):
        allowed[:] = [True] * unet
        argv = []
        for name, value in settings.items():
            argv += [f"--{name}"] if value is None else [f"--{name}={value}"]
        before = snapshot(tmp_path)
        with pytest.raises(SystemExit) as stop:
            lora_kit.training.main([f"--output_dir={output}", "--report_to=none", *argv])
        said = f"{stop.value.code if isinstance(stop.value.code, str) else ''}{capsys.readouterr().err}"
        assert stop.value.code not in (0, None)
        assert snapshot(tmp_path) == before
        return said

    return run


@pytest.mark.parametrize("name, value, words", FLAGS, ids=[f"{one[0]}-{one[1]}" for one in FLAGS])
def test_a_bad_flag_is_refused(name, value, words, refused):
    settings = {one: each for one, each in RUN.items() if one != name}
    said = refused({**settings, name: value})
    for word in words:
        assert word in said


@pytest.mark.parametrize("settings, words", TOGETHER, ids=[str(one[0]) for one in TOGETHER])
def test_settings_that_don_t_go_together_are_refused(settings, words, refused):
    said = refused(RUN | settings)
    assert all(word in said for word in words), said


def test_a_missing_rate_or_missing_data_is_refused(refused):
    assert "--learning_rate is required" in refused({name: RUN[name] for name in RUN if name != "learning_rate"})
    assert "no data: give one of style" in refused({name: RUN[name] for name in RUN if name != "style"})


# data


def png(width, height):
    """A PNG that says it is so large, and holds nothing of it."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def long_picture():
    Image.new("RGB", (30_000, 1)).save(file := io.BytesIO(), "PNG")
    return file.getvalue()


def pictures(folder):
    folder.mkdir()
    lines = []
    for index in range(4):
        Image.new("RGB", (64, 64), (60 * index, 0, 0)).save(folder / f"{index}.png")
        lines.append({"file_name": f"{index}.png", "text": f"red {index}"})
    return lines


def put(folder, lines, content=None, name="2.png", **changes):
    if content is not None:
        (folder / name).write_bytes(content)
    if name != "2.png":
        (folder / "2.png").unlink()
        lines[2]["file_name"] = name
    lines[2].update(changes)


def saved(folder, lines, name, frames=1, mode="RGB", **options):
    images = [Image.new("RGB", (64, 64), (90 * index, 10, 0)).convert(mode) for index in range(frames)]
    images[0].save(folder / name, **(dict(save_all=True, append_images=images[1:]) if frames > 1 else {}))
    put(folder, lines, name=name)


DATA = {  # what is done to a sound folder: words of the error
    "zero bytes": (lambda f, n: put(f, n, b""), ["2.png", "can't be read"]),
    "cut short": (lambda f, n: put(f, n, (f / "1.png").read_bytes()[:60]), ["2.png", "can't be read"]),
    "no picture": (lambda f, n: put(f, n, b"a text"), ["2.png", "can't be read"]),
    "damaged": (lambda f, n: put(f, n, (f / "1.png").read_bytes()[:45] + b"XXXX" + (f / "1.png").read_bytes()[49:]), ["2.png", "can't be read"]),
    "huge": (lambda f, n: put(f, n, png(60000, 60000)), ["2.png", "can't be read", "3600000000 pixels"]),
    "long": (lambda f, n: put(f, n, long_picture()), ["2.png is 30,000 x 1: at resolution 64 it would become 1,920,000 x 64 pixels; crop"]),
    "CMYK": (lambda f, n: saved(f, n, "2.jpg", mode="CMYK"), ["2.jpg", "CMYK"]),
    "animated GIF": (lambda f, n: saved(f, n, "2.gif", frames=3), ["2.gif", "animated", "3 frames"]),
    "animated WebP": (lambda f, n: saved(f, n, "2.webp", frames=2), ["2.webp", "animated"]),
    "animated PNG": (lambda f, n: saved(f, n, "2a.png", frames=2), ["2a.png", "animated"]),
    "a caption missing": (lambda f, n: n[2].update(text=None), ["2.png", "has no caption"]),
    "a caption empty": (lambda f, n: n[2].update(text=""), ["2.png", "has no caption", "''"]),
    "a caption of spaces": (lambda f, n: n[2].update(text="  "), ["2.png", "has no caption"]),
    "a caption of 10,000": (lambda f, n: n[2].update(text="long " * 2000), ["2.png", "10,000 characters"]),
    "captions that are numbers": (lambda f, n: [one.update(text=7) for one in n], ["caption_column 'text' must hold a text"]),
    "a line missing": (lambda f, n: n.pop(2), ["2.png", "no line of metadata names it"]),
    "a picture missing": (lambda f, n: (f / "2.png").unlink(), ["2.png"]),
    "another column": (lambda f, n: [one.update(caption=one.pop("text")) for one in n], ["caption_column 'text' is not a column"]),
    "a broken line": (lambda f, n: n.append("not json"), ["can't be loaded", "metadata"]),
    "no captions at all": (lambda f, n: n.clear(), ["has no captions", "metadata.jsonl"]),
    "nothing": (lambda f, n: [*(path.unlink() for path in f.iterdir()), n.clear()], ["has no pictures in it"]),
}  # fmt: skip


SCRIPT = {"match_diffusers": None, "lr_warmup_steps": 0}


@pytest.mark.parametrize("case, more", [*((case, {}) for case in DATA), ("long", SCRIPT), ("long", {"no_cache": None})])
def test_bad_data_are_refused(case, more, tmp_path, refused):
    folder = tmp_path / "pictures"
    lines = pictures(folder)
    change, words = DATA[case]
    change(folder, lines)
    if lines:
        text = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
        (folder / "metadata.jsonl").write_text(text + "\n")
    settings = {name: value for name, value in RUN.items() if name != "style"}
    said = refused(settings | more | dict(train_data_dir=str(folder), cache_dir=str(tmp_path.parent / "datasets")))
    assert all(word in said for word in words), said


def test_a_folder_that_is_none_or_the_wrong_one_is_refused(tmp_path, refused):
    (tmp_path / "file").write_text("")
    settings = {name: value for name, value in RUN.items() if name != "style"}
    assert "is not a folder" in refused(settings | dict(train_data_dir=str(tmp_path / "file")))
    assert "is not there" in refused(settings | dict(train_data_dir=str(tmp_path / "none")))
    assert f"lies inside train_data_dir '{tmp_path}'" in refused(settings | dict(train_data_dir=str(tmp_path)))
    assert "is a file" in refused(RUN | dict(pretrained_model_name_or_path=str(tmp_path / "file")))
    said = refused(RUN | dict(output_dir=str(tmp_path / "file"), report_to="none"))
    assert "output_dir" in said and "can't be written" in said


# models


MODELS = {  # what is done to a copy of the embedded model: words of the error
    "no index": (lambda m: (m / "model_index.json").unlink(), ["has no model_index.json"]),
    "no unet": (lambda m: shutil.rmtree(m / "unet"), ["its unet can't be loaded"]),
    "no vae": (lambda m: shutil.rmtree(m / "vae"), ["its vae can't be loaded"]),
    "no text encoder": (lambda m: shutil.rmtree(m / "text_encoder"), ["its text_encoder can't be loaded"]),
    "no tokenizer": (lambda m: shutil.rmtree(m / "tokenizer"), ["its tokenizer can't be loaded"]),
    "no scheduler": (lambda m: shutil.rmtree(m / "scheduler"), ["its scheduler can't be loaded"]),
    "weights cut short": (lambda m: cut(m / "unet" / "diffusion_pytorch_model.safetensors"), ["its unet can't be loaded"]),
    "weights of zero bytes": (lambda m: (m / "vae" / "diffusion_pytorch_model.safetensors").write_bytes(b""), ["its vae can't be loaded"]),
    "weights gone": (lambda m: (m / "unet" / "diffusion_pytorch_model.safetensors").unlink(), ["its unet can't be loaded"]),
    "a config that is no JSON": (lambda m: (m / "unet" / "config.json").write_text("{"), ["its unet can't be loaded"]),
    "weights of another shape": (lambda m: widen(m / "unet" / "config.json"), ["its unet can't be loaded"]),
}  # fmt: skip


def cut(path):
    path.write_bytes(path.read_bytes()[:-1000])


def widen(path):
    about = json.loads(path.read_text())
    about["cross_attention_dim"] *= 2
    path.write_text(json.dumps(about))


@pytest.mark.parametrize("case", MODELS)
def test_a_bad_model_is_refused(case, tmp_path, refused, monkeypatch):
    monkeypatch.setenv("LORA_KIT_CACHE", str(tmp_path.parent / f"cache-{case.replace(' ', '-')}"))
    model = tmp_path / "model"
    shutil.copytree(EMBEDDED_MODEL, model)
    change, words = MODELS[case]
    change(model)
    said = refused(RUN | dict(pretrained_model_name_or_path=str(model), max_train_samples=2), unet=True)
    assert all(word in said for word in [*words, str(model)]), said


def test_what_is_legal_is_taken(tmp_path, monkeypatch):
    """The same command line without anything bad runs: the table above can fail."""
    lora_kit.training.main([f"--{name}={value}" for name, value in RUN.items()] + [f"--output_dir={tmp_path / 'run'}", "--max_train_samples=4", "--report_to=none"])  # fmt: skip
    assert (tmp_path / "run" / "pytorch_lora_weights.safetensors").exists()


def test_no_home_at_all(tmp_path):
    """A user that is in no list of users, and no HOME, as in a container that is started with --user: what needs a home says so."""
    nobody = ["unshare", "--user", "--map-user=23456", "env", "-u", "HOME"]
    nobody += [
        word
        for name in ("LORA_KIT_CACHE", "HF_HOME", "HF_HUB_CACHE", "HF_DATASETS_CACHE", "XDG_CACHE_HOME")
        for word in ("-u", name)
    ]
    if shutil.which("unshare") is None or subprocess.run([*nobody, "true"], capture_output=True).returncode:
        pytest.skip("this machine allows no user namespaces")
    run = [sys.executable, "-m", "lora_kit.training", *(f"--{name}={value}" for name, value in RUN.items())]

    def said(**changes):
        flags = [f"--{name}={value}" for name, value in changes.items()]
        own = {"PYTHONPATH": str(Path(lora_kit.training.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [*nobody, *run, "--report_to=none", *flags],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env=os.environ | own,
        )
        assert "Traceback" not in done.stderr and done.returncode in (1, 2), done.stderr
        return done.stderr

    assert "LORA_KIT_CACHE '~/.cache/lora_kit': this user has no home folder" in said(output_dir=tmp_path / "run")
    assert (
        "error: output_dir '~/run': this user has no home folder; set HOME, or give output_dir a path without ~"
        in said(output_dir="~/run")
    )
    hub = said(output_dir=tmp_path / "run", pretrained_model_name_or_path="someone/some-model")
    assert "HF_HOME '~/.cache/huggingface/hub': this user has no home folder" in hub
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    Image.new("RGB", (64, 64)).save(pictures / "a.png")
    (pictures / "metadata.jsonl").write_text('{"file_name": "a.png", "text": "a"}')
    run = [*(word for word in run if not word.startswith("--style")), "--no_cache"]
    assert "HF_HOME '~/.cache/huggingface/datasets': this user has no home folder" in said(
        output_dir=tmp_path / "run", train_data_dir=pictures
    )
    assert not (tmp_path / "~").exists()


@pytest.mark.parametrize("name", ["output_dir", "validation_prompt", "hub_token", "train_data_dir"])
def test_bytes_that_are_no_text(name, refused):
    what = {name: os.fsdecode(b"a\xff")}
    said = refused(RUN | what | ({"style": "outlined"} if name != "train_data_dir" else {}))
    assert f"{name} " in said and "is not in UTF-8" in said and (name != "hub_token" or "***" in said)


@pytest.mark.parametrize("setting", NEEDED)
def test_a_package_that_is_not_there(setting, refused, monkeypatch):
    module, _ = NEEDED[setting]
    monkeypatch.setitem(sys.modules, module, None)
    said = refused(RUN | {setting: None})
    assert f"{setting}: {module.partition('.')[0]} can't be imported (ModuleNotFoundError" in said


@pytest.mark.parametrize(
    "name", ["output_dir", "train_data_dir", "pretrained_model_name_or_path", "dataset_name", "logging_dir"]
)
def test_a_tilde_is_the_home_folder_everywhere(name, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    own = {"learning_rate": 1e-3} | ({} if name in ("train_data_dir", "dataset_name") else {"style": "outlined"})
    assert getattr(TrainingConfig(**own, **{name: "~/here"}), name) == str(tmp_path / "here")
    assert getattr(TrainingConfig(**own, **{name: "./~/here"}), name) == "./~/here"
