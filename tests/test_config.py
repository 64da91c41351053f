import dataclasses
import inspect
import re
import warnings
from pathlib import Path

import pytest
from IPython.core.completer import provisionalcompleter

from lora_kit.command_line.flags import parse_args, to_argv
from lora_kit.config import FIELDS, OWN_SETTINGS, ConfigWarning, TrainingConfig, quiet_config
from lora_kit.lr_settings import parse_step_rules
from lora_kit.script import DEFECTS, KIT, SCRIPT
from lora_kit.steps import Steps

# every flag of diffusers' examples/text_to_image/train_text_to_image_lora.py, in its order
REFERENCE_FLAGS = """
pretrained_model_name_or_path revision variant dataset_name dataset_config_name train_data_dir image_column
caption_column validation_prompt num_validation_images validation_epochs max_train_samples output_dir cache_dir seed
resolution center_crop random_flip train_batch_size num_train_epochs max_train_steps gradient_accumulation_steps
gradient_checkpointing learning_rate scale_lr lr_scheduler lr_warmup_steps snr_gamma use_8bit_adam allow_tf32
dataloader_num_workers adam_beta1 adam_beta2 adam_weight_decay adam_epsilon max_grad_norm push_to_hub hub_token
prediction_type hub_model_id logging_dir mixed_precision report_to local_rank checkpointing_steps
checkpoints_total_limit resume_from_checkpoint enable_xformers_memory_efficient_attention noise_offset rank
image_interpolation_mode
""".split()
OWN_FLAGS = set(
    """style target_modules lora_alpha lr_num_cycles lr_power lr_step_rules match_diffusers no_cache allow_nan
    attention channels_last torch_compile ddp_timeout hub_private_repo""".split()
)
# the defaults of the training configuration that this kit teaches
DEFAULTS = {
    "adam_beta1": 0.9,
    "adam_beta2": 0.999,
    "adam_weight_decay": 1e-2,
    "adam_epsilon": 1e-8,
    "lr_scheduler": "constant",
    "lr_warmup_steps": 0,
    "use_8bit_adam": False,
    "scale_lr": False,
}
# the reference's own, where that configuration says nothing
REFERENCE_DEFAULTS = {
    "resolution": 512,
    "train_batch_size": 16,
    "num_train_epochs": 100,
    "max_train_steps": None,
    "gradient_accumulation_steps": 1,
    "max_grad_norm": 1.0,
    "rank": 4,
    "checkpointing_steps": 500,
    "checkpoints_total_limit": None,
    "output_dir": "sd-model-finetuned-lora",
    "image_column": "image",
    "caption_column": "text",
    "num_validation_images": 4,
    "validation_epochs": 1,
    "noise_offset": 0.0,
    "snr_gamma": None,
    "dataloader_num_workers": 0,
    "image_interpolation_mode": "lanczos",
    "seed": None,
    "target_modules": ("to_k", "to_q", "to_v", "to_out.0"),
}


def config(**settings):
    return TrainingConfig(**{"style": "outlined", "learning_rate": 1e-3} | settings)


def test_every_flag_of_the_reference_is_a_field():
    fields = {one.name for one in dataclasses.fields(TrainingConfig)}
    assert len(REFERENCE_FLAGS) == len(set(REFERENCE_FLAGS)) == 51
    assert fields == {*REFERENCE_FLAGS, *OWN_FLAGS} - {"local_rank"}  # a launcher's word, not a choice
    assert set(OWN_SETTINGS) == OWN_FLAGS


def test_defaults():
    made = config()
    wanted = DEFAULTS | REFERENCE_DEFAULTS
    assert {name: getattr(made, name) for name in wanted} == wanted


@pytest.mark.filterwarnings("ignore::lora_kit.config.ConfigWarning")  # which don't go together
def test_match_diffusers_takes_the_scripts_defaults():
    argv = ["--style=outlined", "--match_diffusers"]
    matched = parse_args(argv)
    assert (matched.learning_rate, matched.lr_warmup_steps) == (1e-4, 500)
    assert matched == TrainingConfig(style="outlined", match_diffusers=True)
    chosen = parse_args([*argv, "--learning_rate=1e-3", "--lr_warmup_steps=0"])
    assert (chosen.learning_rate, chosen.lr_warmup_steps) == (1e-3, 0)


def test_match_diffusers_takes_a_warmup_longer_than_the_run():
    settings = dict(lr_scheduler="linear", lr_warmup_steps=500, max_train_steps=40)
    with pytest.raises(ValueError, match="lr_warmup_steps 500 is not shorter than the 40 updates"):
        config(**settings)
    with pytest.warns(ConfigWarning, match="lr_warmup_steps 500 is not shorter than the 40 updates"):
        made = config(**settings, match_diffusers=True)
    assert Steps.of(made, 20, 2).num_warmup_steps_for_scheduler == 1000


def test_help_names_each_defect_on_its_line(capsys):
    with pytest.raises(SystemExit):
        parse_args(["--help"])
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    assert [line[:3] for line in lines if line in DEFECTS] == ["D1:", "D2:", "D4:", "D7:"]


def test_learning_rate_must_be_chosen():
    with pytest.raises(TypeError, match="learning_rate is missing.*1e-4 to 1e-3"):
        TrainingConfig(style="outlined")


@pytest.mark.parametrize(
    ("name", "value", "cure"),
    [
        ("lr_scheduler", "Cosine", "did you mean 'cosine'"),
        ("lr_scheduler", "step", "constant_with_warmup, linear, cosine, cosine_with_restarts, polynomial"),
        ("style", "outline", "did you mean 'outlined'"),
        ("mixed_precision", "bf32", "no, fp16, bf16"),
        ("prediction_type", "sample", "epsilon, v_prediction"),
        ("image_interpolation_mode", "cubic", "did you mean 'bicubic'"),
        ("learning_rate", -1e-4, "greater than 0"),
        ("learning_rate", 0, "greater than 0"),
        ("learning_rate", float("nan"), "finite number"),
        ("learning_rate", float("inf"), "finite number"),
        ("learning_rate", "1e-4", "finite number"),
        ("learning_rate", True, "finite number"),
        ("learning_rate", None, "a value is needed"),
        ("adam_beta1", 1.0, "less than 1"),
        ("adam_beta1", -0.1, "at least 0"),
        ("adam_beta2", 1, "less than 1"),
        ("adam_beta2", 1.5, "less than 1"),
        ("adam_weight_decay", -1e-2, "at least 0"),
        ("adam_epsilon", -1e-8, "at least 0"),
        ("max_grad_norm", -1.0, "at least 0"),
        ("snr_gamma", 0, "greater than 0"),
        ("noise_offset", -0.1, "at least 0"),
        ("lr_power", 0, "greater than 0"),
        ("lr_warmup_steps", 0.1, "whole number"),
        ("lr_warmup_steps", -1, "at least 0"),
        ("train_batch_size", 0, "at least 1"),
        ("train_batch_size", 2.0, "whole number"),
        ("train_batch_size", True, "whole number"),
        ("gradient_accumulation_steps", 0, "at least 1"),
        ("num_train_epochs", 0, "at least 1"),
        ("max_train_steps", 0, "at least 1"),
        ("max_train_samples", 0, "at least 1"),
        ("lr_num_cycles", 0.5, "whole number"),
        ("rank", 0, "at least 1"),
        ("rank", "4", "whole number"),
        ("lora_alpha", 0, "at least 1"),
        ("resolution", 4, "at least 8"),
        ("seed", -1, "at least 0"),
        ("seed", 1.5, "whole number"),
        ("dataloader_num_workers", -1, "at least 0"),
        ("checkpointing_steps", 0, "at least 1"),
        ("checkpoints_total_limit", 0, "at least 1"),
        ("num_validation_images", 0, "at least 1"),
        ("scale_lr", 1, "True or False"),
        ("use_8bit_adam", "yes", "True or False"),
        ("output_dir", None, "a value is needed"),
        ("output_dir", "", "a text"),
        ("validation_prompt", 3, "a text"),
        ("target_modules", "to_q", "a list of names"),
        ("target_modules", ("to_q", 3), "a list of names"),
        ("target_modules", (), "to_out.0"),
    ],
)
def test_error_names_the_field_quotes_the_value_and_helps(name, value, cure):
    with pytest.raises(ValueError) as caught:
        config(**{name: value})
    message = str(caught.value)
    assert message.startswith(f"{name} {value!r}")
    assert cure in message


@pytest.mark.parametrize("name", [one.name for one in dataclasses.fields(TrainingConfig)])
def test_every_field_refuses_what_is_no_value_for_it(name):
    with pytest.raises(ValueError, match=rf"^{name} (<object|\*{{3}} is not a text)"):
        config(**{name: object()})


def test_beta_zero_and_count_limits_are_legal():
    made = config(adam_beta1=0, adam_beta2=0.0, max_grad_norm=0, adam_weight_decay=0, seed=0)
    assert (made.adam_beta1, made.max_grad_norm, made.seed) == (0.0, 0.0, 0)
    assert isinstance(made.adam_beta1, float)


@pytest.mark.parametrize(("warmup", "tenth"), [(10, 1), (11, 1), (500, 1)])
def test_warmup_as_long_as_training(warmup, tenth):
    with pytest.raises(ValueError, match=rf"lr_warmup_steps {warmup} .*10 updates.*about {tenth} \(a tenth\)"):
        config(lr_scheduler="cosine", lr_warmup_steps=warmup, max_train_steps=10)
    assert config(lr_scheduler="cosine", lr_warmup_steps=9, max_train_steps=10).lr_warmup_steps == 9
    with pytest.warns(ConfigWarning):  # ignored there, so no error
        config(lr_scheduler="constant", lr_warmup_steps=warmup, max_train_steps=10)


@pytest.mark.parametrize(
    ("misspelt", "meant"),
    [("learning_rte", "learning_rate"), ("lr_warmup_step", "lr_warmup_steps"), ("batch_size", "train_batch_size")],
)
def test_misspelt_field(misspelt, meant):
    with pytest.raises(TypeError, match=f"'{misspelt}' is not a setting: did you mean '{meant}'"):
        config(**{misspelt: 1})


def test_unknown_field_points_to_help():
    with pytest.raises(TypeError, match="'zzz' is not a setting: see `python -m lora_kit.training --help`"):
        config(zzz=1)


def test_data_must_be_named_once():
    with pytest.raises(ValueError, match="style, dataset_name or train_data_dir"):
        TrainingConfig(learning_rate=1e-3)
    for other in ("dataset_name", "train_data_dir"):
        with pytest.raises(ValueError, match=f"style 'outlined' and {other} 'here'"):
            config(**{other: "here"})
    both = config(style=None, dataset_name="imagefolder", train_data_dir="here")  # the reference passes both on
    assert both.train_data_dir == "here"


def test_token_is_not_published_or_shown():
    with pytest.raises(ValueError, match="hf auth login") as caught:
        config(report_to="wandb", hub_token="hf_secret")
    assert "hf_secret" not in str(caught.value)


def test_polynomial_ends_at_1e_7():
    with pytest.raises(ValueError, match="learning_rate 1e-07 .* 'polynomial'"):
        config(lr_scheduler="polynomial", learning_rate=1e-7)


@pytest.mark.parametrize(
    "rules",
    ["", "1:100", "a:1,0.1", "1,2,0.1", "1:1.5,0.1", "1:0,0.1", "1:6,0.1:3,0.01", "1:3,0.1:3,0.01", "1:3:9,0.1",
     "-1:3,0.1", "nan:3,0.1", "1:3,inf", None],
)  # fmt: skip
def test_step_rules_that_cannot_work(rules):
    with pytest.raises(ValueError, match=re.escape(f"lr_step_rules {rules!r}")):
        config(lr_scheduler="piecewise_constant", lr_step_rules=rules)


def test_step_rules():
    assert parse_step_rules("1:100,0.1:200,0.01") == ([(100, 1.0), (200, 0.1)], 0.01)
    assert parse_step_rules("0.5") == ([], 0.5)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"learning_rate": 1e-6}, "learning_rate 1e-06 is outside 1e-05..0.01"),
        ({"learning_rate": 0.5}, "learning_rate 0.5 is outside 1e-05..0.01"),
        ({"lr_warmup_steps": 500}, "'constant' ignores lr_warmup_steps 500: choose constant_with_warmup"),
        (
            {"lr_scheduler": "piecewise_constant", "lr_step_rules": "1:5,0.1", "lr_warmup_steps": 2},
            "'piecewise_constant' ignores lr_warmup_steps 2",
        ),
        (
            {"lr_scheduler": "cosine", "lr_num_cycles": 3},
            "lr_scheduler 'cosine' ignores lr_num_cycles 3: only 'cosine_with_restarts' reads it",
        ),
        ({"lr_scheduler": "linear", "lr_power": 2.0}, "lr_scheduler 'linear' ignores lr_power 2.0"),
        ({"lr_step_rules": "1:5,0.1"}, "lr_scheduler 'constant' ignores lr_step_rules '1:5,0.1'"),
    ],
)
def test_warnings(settings, said):
    with pytest.warns(ConfigWarning) as caught:
        made = config(**settings)
    assert len(caught) == 1
    assert said in str(caught[0].message)
    assert caught[0].filename == __file__  # points at the caller, here `config`
    assert made.notices() == [str(caught[0].message)]


@pytest.mark.parametrize(
    "settings",
    [
        {"learning_rate": 1e-5},
        {"learning_rate": 1e-2},
        {"learning_rate": 1e-6, "scale_lr": True},
        {"lr_scheduler": "constant_with_warmup", "lr_warmup_steps": 500},
        {"lr_scheduler": "cosine_with_restarts", "lr_num_cycles": 3},
        {"lr_scheduler": "polynomial", "lr_power": 2.0},
        {"lr_scheduler": "piecewise_constant", "lr_step_rules": "1:5,0.1"},
    ],
)
def test_no_warning_for_the_usual(settings):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        config(**settings)


def test_frozen_keyword_only_and_replace():
    made = config()
    with pytest.raises(dataclasses.FrozenInstanceError):
        made.rank = 8
    with pytest.raises(TypeError):
        TrainingConfig(made)
    assert dataclasses.replace(made, rank=8) == config(rank=8) != made
    with pytest.raises(ValueError, match="rank 0"):
        dataclasses.replace(made, rank=0)


def test_scaled_rate():
    made = config(learning_rate=1e-4, train_batch_size=4, gradient_accumulation_steps=3)
    assert made.total_batch_size(2) == 24
    assert made.peak_learning_rate(2) == 1e-4
    assert dataclasses.replace(made, scale_lr=True).peak_learning_rate(2) == pytest.approx(24e-4)


def test_path_is_taken_as_text():
    assert config(output_dir=Path("a") / "b").output_dir == str(Path("a") / "b")


def test_the_flag_of_launchers_is_accepted():
    argv = to_argv(config())
    assert parse_args([*argv, "--local_rank=1"]) == parse_args(argv) == config()


def test_the_signature_shows_every_setting():
    parameters = inspect.signature(TrainingConfig).parameters
    assert list(parameters) == list(FIELDS)
    assert parameters["rank"].default == 4 and parameters["rank"].annotation is int
    assert parameters["learning_rate"].default is inspect.Parameter.empty


@pytest.mark.parametrize("jedi", [True, False])
def test_ipython_completes_a_setting(jedi):
    from IPython.core.interactiveshell import InteractiveShell

    shell = InteractiveShell()
    shell.Completer.use_jedi = jedi
    shell.run_cell("from lora_kit import TrainingConfig")
    text = "TrainingConfig(lr_"
    with provisionalcompleter():
        names = {completion.text.rstrip("=") for completion in shell.Completer.completions(text, len(text))}
    assert {"lr_scheduler", "lr_warmup_steps", "lr_num_cycles", "lr_power", "lr_step_rules"} <= names


def test_numpy_s_numbers_are_numbers():
    import numpy as np

    made = config(rank=np.int64(8), learning_rate=np.float32(0.5e-3), lr_warmup_steps=np.uint8(0))
    assert (made.rank, type(made.rank)) == (8, int)
    assert (made.learning_rate, type(made.learning_rate)) == (pytest.approx(0.5e-3), float)
    with pytest.raises(ValueError, match="center_crop .*True.* is not True or False"):
        config(center_crop=np.bool_(True))


@pytest.mark.parametrize("value", [10**400, -(10**400), float("nan"), float("inf"), "1e-3", True, None, 1j])
def test_what_is_no_rate(value):
    with pytest.raises(ValueError, match="^learning_rate ") as error:
        config(learning_rate=value)
    assert len(str(error.value)) < 300


def test_a_number_too_long_to_print_is_refused_in_a_line():
    with pytest.raises(ValueError, match=r"lr_power a number of about 5000 digits is not a finite number"):
        config(lr_scheduler="polynomial", lr_power=10**4999 * 9)


def test_a_draft_holds_what_does_not_go_together():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        draft = TrainingConfig.draft(
            learning_rate=1e-7, lr_scheduler="polynomial", lr_warmup_steps=500, max_train_steps=40
        )
    assert (draft.lr_warmup_steps, draft.warmup_updates) == (500, 500)
    assert [problem.split()[0] for problem in draft.problems()] == ["no", "learning_rate", "lr_warmup_steps"]
    assert TrainingConfig.draft(match_diffusers=True).lr_warmup_steps == 500  # the script's own
    with pytest.raises(ValueError, match="rank 0"):
        TrainingConfig.draft(learning_rate=1e-3, rank=0)
    with pytest.raises(TypeError, match="did you mean 'rank'"):
        TrainingConfig.draft(learning_rate=1e-3, ranks=1)


def test_a_quiet_config_is_checked_all_the_same():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert quiet_config({"style": "outlined", "learning_rate": 0.5}).learning_rate == 0.5
        with pytest.raises(ValueError, match="no data"):
            quiet_config({"learning_rate": 1e-3})


def test_the_behaviour_is_one_of_two():
    assert config().behaviour is KIT and config(match_diffusers=True, lr_warmup_steps=0).behaviour is SCRIPT
    different = {
        field.name for field in dataclasses.fields(KIT) if getattr(KIT, field.name) != getattr(SCRIPT, field.name)
    }
    assert different == {field.name for field in dataclasses.fields(KIT)}  # else it would be no difference
    for mixed_precision, kept in (("fp16", True), ("bf16", False), ("no", False), (None, False)):
        assert KIT.float32_lora(mixed_precision) and SCRIPT.float32_lora(mixed_precision) == kept
