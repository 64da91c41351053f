import dataclasses
import os
import re
import shutil
import time

import huggingface_hub
import pytest
import torch
from accelerate import Accelerator
from PIL import Image
from test_encoding import config, write_folder

from lora_kit.config import TrainingConfig
from lora_kit.data.cache import EncodingCache, evict
from lora_kit.data.encoding import Plan
from lora_kit.data.identity import data_identity
from lora_kit.data.prepared import Pictures
from lora_kit.models import EMBEDDED_MODEL
from lora_kit.system.files import in_bytes
from lora_kit.system.state import own_accelerate_state

# the defaults of diffusers' script are out of the ordinary
pytestmark = pytest.mark.filterwarnings("ignore::lora_kit.config.ConfigWarning")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Seven pictures in five captions, and a cache of their own."""
    monkeypatch.setenv("LORA_KIT_CACHE", str(tmp_path / "cache"))
    write_folder(tmp_path / "data", [(64, 64)] * 7)
    return tmp_path / "data"


def cache(made, seed=0, num_processes=1, dtype=torch.float32):
    return EncodingCache(made, seed, num_processes, dtype, torch.device("cpu"), data_identity(made))


PLAN = Plan([0, [1, 0], 1], (2, 77, 8), (1, 2, 3, 2, 4, 16, 16), 0.18215, (8,), cut=1, dropped="a red", digest="d")


def test_written_is_read_back(folder):
    store = cache(config(folder))
    assert store.read() is None
    for plan in (PLAN, PLAN._replace(picture_shape=None, batch_sizes=(3, 1))):
        store.write(plan)
        assert cache(config(folder)).read() == plan
    assert [path.name for path in store.path.parent.glob("encoded-*")] == [store.path.name]
    assert [path.name for path in store.path.iterdir()] == ["plan.json"]


CHANGES = {
    "resolution": 32, "center_crop": True, "random_flip": True, "image_interpolation_mode": "bilinear",
    "max_train_samples": 5, "train_batch_size": 2, "match_diffusers": True,
}  # fmt: skip


@pytest.mark.parametrize("name", CHANGES)
def test_another_setting_is_another_key_and_both_are_kept(name, folder):
    made = config(folder)
    old = cache(made)
    old.write(PLAN)
    new = cache(dataclasses.replace(made, **{name: CHANGES[name]}))
    assert new.read() is None and new.path != old.path
    new.write(PLAN._replace(cut=2))
    assert new.read().cut == 2 and old.read() == PLAN


def test_what_does_not_touch_the_encodings_keeps_the_key(folder):
    made = config(folder)
    for change in ({"learning_rate": 1.0}, {"rank": 16}, {"lr_scheduler": "cosine"}, {"output_dir": "x"}, {"seed": 4}):
        assert cache(dataclasses.replace(made, **change)).key == cache(made).key
    assert cache(made, dtype=torch.bfloat16).key != cache(made).key
    few = dataclasses.replace(made, max_train_samples=3)
    assert cache(few, seed=1).key != cache(few, seed=2).key


def test_processes_and_batches_change_the_key_only_where_they_change_the_encodings(folder):
    own, script = config(folder), config(folder, match_diffusers=True)
    assert len({cache(own, num_processes=number).key for number in (1, 2, 3)}) == 1
    keys = [cache(script, num_processes=number).key for number in (1, 2, 3)]
    assert keys[0] != keys[1] == keys[2]  # on several the last batch is filled up
    assert cache(own).key not in keys
    sizes = {size: dataclasses.replace(own, train_batch_size=size) for size in (2, 8, 9, 16)}
    keys = {size: cache(made).key for size, made in sizes.items()}
    assert keys[2] != keys[8] == keys[9] == keys[16]  # the kit encodes at most 8 together
    assert len({cache(dataclasses.replace(script, train_batch_size=size)).key for size in sizes}) == 4


def test_a_changed_picture_caption_or_model_is_noticed(folder, tmp_path):
    model = tmp_path / "model"
    shutil.copytree(EMBEDDED_MODEL, model)
    made = config(folder, pretrained_model_name_or_path=str(model))
    os.utime(folder / "metadata.jsonl", ns=(2, 2))  # so that what is written below has another time, however soon
    keys = [cache(made).key]
    Image.new("RGB", (64, 64), "red").save(folder / "3.png")
    keys.append(cache(made).key)
    text = (folder / "metadata.jsonl").read_text()
    (folder / "metadata.jsonl").write_text(text.replace("a picture of 1", "a picture of 9"))
    keys.append(cache(made).key)
    weights = model / "vae" / "diffusion_pytorch_model.safetensors"
    os.utime(weights, ns=(1, 1))
    keys.append(cache(made).key)
    assert len(set(keys)) == 4
    os.utime(model / "unet" / "diffusion_pytorch_model.safetensors", ns=(1, 1))  # it encodes nothing
    assert cache(made).key == keys[-1]


def test_a_model_of_the_hub_is_known_by_its_commit_from_the_first_run_on(folder, monkeypatch):
    made, stored, commit = config(folder, pretrained_model_name_or_path="someone/some"), {}, "a"

    def download(name, file, cache_dir, revision):
        stored[file] = f"snapshots/{commit}/{file}"
        return stored[file]

    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda name, file, **_: stored.get(file))
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    first = cache(made).key
    assert sorted(stored) == ["text_encoder/config.json", "vae/config.json"] and cache(made).key == first
    stored.clear()
    commit = "b"
    assert cache(made).key != first


def test_a_style_s_key_is_the_style(folder):
    keys = {
        cache(TrainingConfig(style=style, learning_rate=1e-3, resolution=size)).key
        for style, size in (("outlined", 64), ("blueprint", 64), ("outlined", 32))
    }
    assert len(keys) == 3


def test_a_fingerprint_is_part_of_the_key(folder):
    made = config(folder)
    more = made, 0, 1, torch.float32, torch.device("cpu"), "the same"
    assert len({EncodingCache(*more, fingerprint).key for fingerprint in (None, "a", "b")}) == 3


def test_what_nobody_uses_goes_and_what_is_too_much_too(tmp_path, monkeypatch):
    now, day = time.time(), 86_400
    for name, days in {"new": 0, "used": 2, "older": 3, "old": 31}.items():
        (tmp_path / f"encoded-{name}").mkdir()
        for file, more in (("plan.json", 0), ("pictures", 50)):  # the newest file counts
            path = tmp_path / f"encoded-{name}" / file
            path.write_bytes(bytes(4096))
            os.utime(path, (now - (days + more) * day,) * 2)
    for name, days in {"encoded-old.safetensors": 31, "encoded-new.safetensors": 1, "another-file": 99}.items():
        (tmp_path / name).write_bytes(bytes(4096))
        os.utime(tmp_path / name, (now - days * day,) * 2)

    def left():
        return {path.name.removeprefix("encoded-") for path in tmp_path.iterdir()} - {"another-file"}

    evict(tmp_path)
    assert left() == {"new", "used", "older", "new.safetensors"}
    monkeypatch.setenv("LORA_KIT_CACHE_GB", "2.1e-5")
    evict(tmp_path)
    assert left() == {"new", "used", "new.safetensors"}
    monkeypatch.setenv("LORA_KIT_CACHE_GB", "0")
    evict(tmp_path, kept=tmp_path / "encoded-used")
    assert left() == {"used"} and (tmp_path / "another-file").exists()


@pytest.mark.parametrize("value", ["many", "-1", "nan"])
def test_a_limit_that_is_none_is_refused_before_anything_is_encoded(value, folder, monkeypatch):
    monkeypatch.setenv("LORA_KIT_CACHE_GB", value)
    with pytest.raises(ValueError, match=f"^LORA_KIT_CACHE_GB '{value}' is not a number of at least 0, such as 50$"):
        cache(config(folder))


def test_reading_counts_as_use(folder):
    store = cache(config(folder))
    store.write(PLAN)
    os.utime(store.path / "plan.json", (1, 1))
    assert store.read() is not None and time.time() - (store.path / "plan.json").stat().st_mtime < 86_400


def test_any_bit_of_the_plan_counts_wherever_it_is_cut(folder):
    """Either it is made anew, or it says the very same."""
    store = cache(config(folder))
    store.write(PLAN)
    path = store.path / "plan.json"
    content = path.read_bytes()
    for place in range(len(content)):
        damaged = bytearray(content)
        damaged[place] ^= 1 << place % 8
        for other in (damaged, content[:place]):
            path.write_bytes(other)
            assert store.read() in (None, PLAN), place
    store.write(PLAN)
    assert store.read() == PLAN


def test_a_plan_without_its_files_and_files_without_their_plan_are_made_whole(folder):
    store = cache(config(folder))
    captions, pictures = store.open(PLAN)
    assert (
        captions.count == 2 and captions.shape == (77, 8) and pictures.count == 6 and pictures.shape == (2, 4, 16, 16)
    )
    assert store.read() is None
    store.write(PLAN)
    captions.path.unlink()
    assert store.read() == PLAN and store.open(PLAN)[0].missing() == 2
    assert store.open(PLAN._replace(picture_shape=None))[1] is None


def test_room_is_made_for_what_will_be_written(folder, monkeypatch):
    store = cache(config(folder))
    older = store.path.with_name("encoded-older")
    older.mkdir(parents=True)
    (older / "pictures").write_bytes(bytes(100_000))
    need = 6 * (2 * 4 * 16 * 16 * 4 + 16) + 2 * (77 * 8 * 4 + 16)
    monkeypatch.setenv("LORA_KIT_CACHE_GB", str((102_400 + need) / 1e9))
    store.open(PLAN)
    assert older.exists()
    monkeypatch.setenv("LORA_KIT_CACHE_GB", str((102_400 + need - 1) / 1e9))
    store.open(PLAN)
    assert not older.exists() and store.path.exists()


def test_encodings_and_what_the_run_writes_must_fit_together(folder, monkeypatch):
    store, said = cache(config(folder)), []
    need = 6 * (2 * 4 * 16 * 16 * 4 + 16) + 2 * (77 * 8 * 4 + 16)
    monkeypatch.setattr("lora_kit.data.cache.free_bytes", lambda path: need + 1_000_000)
    store.open(PLAN, 900_000, 1_000_000, said.append)
    store.open(PLAN, 900_000, 9_000_000, said.append)  # too much by itself, which was said before
    assert said == []
    store.open(PLAN, 900_000, 1_000_001, said.append)
    beside = f"need {in_bytes(need)} more, and what the run writes into output_dir on the same disk needs 1.0 MB, but the disk of"
    assert len(said) == 1 and said[0].startswith("warning: the encodings of 3 pictures") and beside in said[0]
    with pytest.raises(ValueError, match=beside):
        store.open(PLAN, 1_000_001, 2_000_000)


@pytest.mark.parametrize("same", [True, False])
def test_what_the_run_writes_counts_on_one_disk_alone(same, folder, monkeypatch):
    counted = []
    monkeypatch.setattr("lora_kit.data.prepared.same_disk", lambda path, other: same)
    monkeypatch.setattr(
        EncodingCache, "open", lambda self, plan, least, most, say: counted.append((least, most)) or 1 / 0
    )
    with own_accelerate_state(), pytest.raises(ZeroDivisionError):
        Pictures(config(folder), Accelerator(cpu=True), 0, torch.float32).prepare(1, 2)
    assert counted == [(1, 2) if same else (0, 0)]


def test_a_disk_that_takes_nothing_is_a_clear_error(folder, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LORA_KIT_CACHE", str(tmp_path / "file" / "inside"))
    store = cache(config(folder))
    for call in (store.write, store.open):
        with pytest.raises(
            ValueError, match="can't be written: .*; set LORA_KIT_CACHE to a folder with room, or use no_cache"
        ):
            call(PLAN)


def test_the_disk_is_asked_for_room_before_anything_is_encoded(folder):
    """As many pictures of 512 pixels, with a caption each, as need a tenth more than the disk has."""
    captions, latents = 77 * 768 * 4 + 16, 2 * 4 * 64 * 64 * 4 + 16
    count = int(1.1 * shutil.disk_usage(folder).free / (captions + latents))
    many = PLAN._replace(
        captions=range(count), caption_shape=(count, 77, 768), picture_shape=(1, 1, count, 2, 4, 64, 64)
    )
    store, need = cache(config(folder)), count * (captions + latents)
    text = (
        f"{count:,} pictures and {count:,} captions need {in_bytes(need)} more, but the disk of {store.path.parent} has"
    )
    with pytest.raises(ValueError, match=re.escape(text)):
        store.open(many)
    assert sum(512 * path.stat().st_blocks for path in store.path.iterdir()) < 1_000_000  # and none of it is taken
