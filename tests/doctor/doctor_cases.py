"""What the doctor's tests share: sound settings, the traps of its checks, and how to ask for the findings of one check."""

from lora_kit.config import quiet_config
from lora_kit.doctor import ERROR, WARNING, examine
from lora_kit.models import load_models

SOUND = dict(
    style="outlined", resolution=64, learning_rate=1e-3, train_batch_size=8, max_train_steps=100, report_to="none"
)  # fmt: skip

TRAPS = [  # settings, options, check, status, words of value, reason or cure
    (dict(lr_scheduler="constant", lr_warmup_steps=10), {}, "warm-up", WARNING, "ignores it"),
    (dict(lr_scheduler="cosine", lr_warmup_steps=100), {}, "warm-up", ERROR, "never reaches its peak"),
    (dict(lr_scheduler="cosine", lr_warmup_steps=150), {}, "warm-up", ERROR, "the run has 100 updates"),
    (dict(lr_scheduler="cosine", lr_warmup_steps=99), {}, "warm-up", WARNING, "most of the run is warm-up"),
    (dict(lr_scheduler="cosine", lr_warmup_steps=51), {}, "warm-up", WARNING, "51% of the 100 updates"),
    (dict(lr_scheduler="cosine", lr_warmup_steps=0.1), {}, "warm-up", ERROR, "lr_warmup_steps 10 is 10% of 100"),
    (dict(lr_scheduler="cosine", lr_warmup_steps=-1), {}, "warm-up", ERROR, "at least 0"),
    (dict(lr_scheduler="cosine", lr_warmup_steps="ten"), {}, "warm-up", ERROR, "'ten'"),
    (dict(lr_scheduler="cosine", lr_warmup_steps=float("nan")), {}, "warm-up", ERROR, "lr_warmup_steps nan"),
    (dict(lr_scheduler="cosine", lr_warmup_steps=True), {}, "warm-up", ERROR, "lr_warmup_steps True"),
    (dict(lr_scheduler="cosine", lr_warmup_steps=None), {}, "warm-up", ERROR, "lr_warmup_steps None"),
    (dict(lr_scheduler="cosine", lr_warmup_steps=10.0), {}, "warm-up", ERROR, "lr_warmup_steps 10"),
    (dict(lr_scheduler="cosine", lr_warmup_steps=10**400), {}, "warm-up", ERROR, "more updates than can be counted"),
    (dict(match_diffusers=True), {}, "warm-up", WARNING, "lr_warmup_steps 500"),
    (dict(lr_scheduler="cosine_with_restarts"), {}, "restarts", WARNING, "nothing restarts"),
    (dict(lr_scheduler="polynomial", learning_rate=1e-7), {}, "polynomial", ERROR, "1e-07"),
    (dict(lr_scheduler="piecewise_constant", lr_step_rules="1:200,0.1"), {}, "step rules", WARNING, "boundary 200"),
    (dict(gradient_accumulation_steps=3), {}, "accumulation", WARNING, "leave 2 for its last update"),
    (dict(scale_lr=True), dict(num_processes=2), "learning rate", WARNING, "already scaled"),
    (dict(learning_rate=0.5), {}, "learning rate", WARNING, "outside 1e-05..0.01"),
    (dict(use_8bit_adam=True), {}, "8-bit Adam", WARNING, "saves nothing"),
    (dict(match_diffusers=True, seed=0), dict(num_processes=2), "noise of each process", WARNING, "D4"),
    (dict(match_diffusers=True), {}, "clipping", WARNING, "D1"),
    (dict(match_diffusers=True, mixed_precision="bf16"), {}, "LoRA dtype", ERROR, "D2"),
    (dict(), dict(num_examples=7), "images", WARNING, "one update asks for 8"),
    (dict(), dict(num_examples=7, num_processes=2), "images", WARNING, "already repeat"),
    (dict(gradient_accumulation_steps=3), dict(num_examples=5, num_processes=2), "images", WARNING, "train_batch_size 1 with"),
    (dict(), dict(num_examples=3, num_processes=4), "images", WARNING, "at most 3 process(es)"),
    (dict(target_modules=["to_z"]), {}, "trainable parameters", ERROR, "no module matched 'to_z'"),
    (dict(rank=2**62), {}, "trainable parameters", ERROR, "a rank such as 4 to 128"),
    (dict(pretrained_model_name_or_path="./nowhere"), {}, "base model", ERROR, "does not exist"),
    (dict(rank=0), {}, "settings", ERROR, "rank 0 must be at least 1"),
    (dict(ranks=4), {}, "settings", ERROR, "did you mean 'rank'?"),
    (dict(style="outline"), {}, "settings", ERROR, "did you mean 'outlined'?"),
    (dict(style=None), {}, "settings", ERROR, "no data: give one of"),
    (dict(max_train_steps=10**400), {}, "settings", ERROR, "is more than can be counted"),
    (dict(learning_rate=10**400), {}, "settings", ERROR, "is not a finite number"),
    (dict(lr_scheduler="piecewise_constant", lr_step_rules="1-2"), {}, "settings", ERROR, "can't be read"),
    (dict(resume_from_checkpoint="latest"), {}, "output folder", WARNING, "holds no checkpoint"),
    (dict(resume_from_checkpoint="checkpoint-5"), {}, "output folder", ERROR, "is not there; output_dir"),
]  # fmt: skip
TRAP_NAMES = [f"{check}-{words}" for _, _, check, _, words in TRAPS]


def findings_of(check, settings=SOUND, num_examples=400, **options):
    """The findings of one check."""
    return [finding for finding in examine(settings, num_examples=num_examples, **options) if finding.check == check]


def loaded_unet(**settings):
    return load_models(quiet_config(SOUND | settings), parts=("unet",)).unet
