"""A configuration as text, and text as a configuration: shell lines, diffusers' own command line, Python and YAML.

`write` gives all four; `read` takes any of them back, and command lines as they stand in READMEs, with exported variables.
"""

import ast
import re
import shlex
import string
from pathlib import PurePath

from lora_kit.config import MATCHED_DEFAULTS, OWN_SETTINGS, build_parser, flags, nearest_flags

SCRIPT = "train_text_to_image_lora.py"
MODULES = ("lora_kit.training", "lora_kit.launch", "lora_kit.doctor")
ASSIGNMENT = re.compile(r"^(?:export\s+)?([A-Za-z_]\w*)=(.*)$")


def write(config, num_processes=1, num_examples=None):
    """The same run as text: {"accelerate": ..., "diffusers": ..., "python": ..., "yaml": ...}.

    config: a `TrainingConfig`. num_examples: pictures, which only YAML records. Each is read back by `read` to the same
    settings; but for what diffusers' script has no flag for, which a comment above its line names.
    """
    import yaml

    from lora_kit.launch import command_lines

    settings = config.changes()
    lines = "".join(f"    {name}={_plain(value)!r},\n" for name, value in settings.items())
    record = {"num_processes": num_processes} | ({"num_examples": num_examples} if num_examples else {})
    record["training"] = {name: _plain(value) for name, value in settings.items()}
    return {
        "accelerate": command_lines(config, num_processes)["accelerate"],
        "diffusers": _diffusers_line(config, num_processes),
        "python": "from lora_kit import TrainingConfig\nfrom lora_kit.launch import launch\n\n"
        f"config = TrainingConfig(\n{lines})\nlaunch(config, num_processes={num_processes})\n",
        "yaml": yaml.safe_dump(record, sort_keys=False, allow_unicode=True, width=2**16),
    }


def _plain(value):
    return list(value) if isinstance(value, tuple) else value


def _diffusers_line(config, num_processes):
    changes = config.changes(matched=True)
    always = ("pretrained_model_name_or_path", "learning_rate")
    changes = {name: getattr(config, name) for name in always} | changes
    lost = {name: changes.pop(name) for name in OWN_SETTINGS if name in changes}
    notes = [f"# no flag in diffusers' script: {shlex.join(flags(lost))}"] if lost else []
    if config.pretrained_model_name_or_path == "embedded":
        notes.append("# the embedded model is lora_kit's own: give a model of the Hub")
    if config.style:
        notes.append("# so is --style: give a data set as --dataset_name or --train_data_dir")
    launcher = ["accelerate", "launch", *(["--multi_gpu"] if num_processes > 1 else [])]
    line = shlex.join([*launcher, "--num_processes", str(num_processes), SCRIPT, *flags(changes)])
    return "\n".join([*notes, line])


def read(text):
    """What a text of `write`, or a command line from elsewhere, asks for, as a dict: settings, a dict of `TrainingConfig`
    fields, not checked; num_processes, over all machines; num_examples, or None; said, sentences about the reading.

    Raises ValueError, which quotes what can't be read.

    >>> read("accelerate launch --num_processes 4 train_text_to_image_lora.py --rank=8")["settings"]["rank"]
    8
    """
    found = dict(settings={}, num_processes=1, num_examples=None, said=[])
    if not text.strip():
        raise ValueError("nothing to read: paste a command line, Python with TrainingConfig(...), or YAML")
    if "TrainingConfig(" in text:
        return found | _read_python(text)
    if re.match(r"(\s*#.*\n|\s*\n)*\w+:(\s|$)", text):
        return found | _read_yaml(text)
    return found | _read_shell(text)


def _read_python(text):
    try:
        calls = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call)]
    except SyntaxError as error:
        raise ValueError(f"Python that can't be read, line {error.lineno}: {(error.text or '').strip()!r}") from None

    def arguments(name):
        for call in calls:
            if getattr(call.func, "id", getattr(call.func, "attr", None)) == name:
                return {one.arg: one.value for one in call.keywords}
        return {}

    def value(name, node):
        try:
            return ast.literal_eval(node)
        except ValueError:
            raise ValueError(f"{name}={ast.unparse(node)}: only plain values can be read") from None

    settings = {name: value(name or "**", node) for name, node in arguments("TrainingConfig").items()}
    processes = arguments("launch").get("num_processes")
    return dict(settings=settings) | ({"num_processes": value("num_processes", processes)} if processes else {})


def _read_yaml(text):
    import yaml

    try:
        record = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"YAML that can't be read: {' '.join(str(error).split())}") from None
    settings = record.get("training")
    if not isinstance(settings, dict):
        raise ValueError("YAML without settings: put them under training:, such as\ntraining:\n  learning_rate: 0.001")
    numbers = {name: record[name] for name in ("num_processes", "num_examples") if name in record}
    for name, number in numbers.items():
        if not isinstance(number, int) or isinstance(number, bool) or number < 1:
            raise ValueError(f"{name} {number!r} is not a whole number of at least 1")
    return dict(settings=settings, **numbers)


def _read_shell(text):
    words, said = _command(text), []
    index = next((i for i, word in enumerate(words) if word.endswith(".py") or word in MODULES), None)
    if index is None:
        raise ValueError(f"no program in {shlex.join(words)[:80]!r}: it must name {SCRIPT}, or {MODULES[0]} after -m")
    program, launcher = PurePath(words[index]).name, words[:index]
    parser = build_parser()
    parser.error = _refuse
    for name in ("num_processes", "num_examples"):
        parser.add_argument(f"--{name}", type=int)
    given, unknown = parser.parse_known_args(words[index + 1 :])
    if unknown:
        raise ValueError("; ".join(f"unknown {word!r}{hint}" for word, hint in nearest_flags(unknown)))
    settings = vars(given)
    processes, examples = settings.pop("num_processes"), settings.pop("num_examples")
    processes = processes or _processes(launcher)
    precision = _option(launcher, "--mixed_precision")
    if precision:
        settings.setdefault("mixed_precision", precision)
        said.append(f"mixed_precision {precision} is the launcher's")
    if program.endswith(".py"):
        given_names = settings.keys()
        settings = MATCHED_DEFAULTS | settings
        taken = ", ".join(f"{name} {value:g}" for name, value in MATCHED_DEFAULTS.items() if name not in given_names)
        said += [f"not given, so {SCRIPT}'s own: {taken}"] if taken else []
        if program != SCRIPT:
            said.append(f"{program} is read as if it were {SCRIPT}")
    return dict(settings=settings, num_processes=processes, num_examples=examples, said=said)


def _refuse(message):
    raise ValueError(message)


def _command(text):
    """The words of the last command in a shell text, continued lines joined and variables filled in."""
    variables, words = {}, []
    for line in re.sub(r"\\\s*\n", " ", text).splitlines():
        line = re.sub(r"^\s*(?:\$|!|%%?\w+)?\s*", "", line)
        try:
            found = shlex.split(string.Template(line).safe_substitute(variables), comments=True)
        except ValueError as error:
            raise ValueError(f"a line that can't be read ({error}): {line[:80]!r}") from None
        while found and (assignment := ASSIGNMENT.match(" ".join(found[:2]) if found[0] == "export" else found[0])):
            variables[assignment[1]] = assignment[2]
            found = found[2:] if found[0] == "export" else found[1:]
        words = found or words
    if not words:
        raise ValueError("no command in the text: it has comments and variables only")
    return words


def _option(words, name):
    """The value of a launcher's option, given as two words or as one; None where it isn't there."""
    for word, following in zip(words, [*words[1:], ""], strict=True):
        if word.split("=")[0].replace("-", "_") == name.replace("-", "_"):
            return word.split("=", 1)[1] if "=" in word else following
    return None


def _processes(launcher):
    counts = []
    for name in ("--num_processes", "--nproc_per_node", "--nnodes"):
        value = _option(launcher, name)
        if value is not None and not (value.isdigit() and int(value) > 0):
            raise ValueError(f"{name} {value!r} is not a whole number of at least 1")
        counts.append(int(value) if value else 1)
    return counts[0] * counts[1] * counts[2]
