"""The house keeps its shape: imports run down, files stay short, what is public is annotated, and examples are true."""

import ast
import doctest
import importlib
import inspect
import pkgutil
from pathlib import Path

import pytest

import lora_kit

PACKAGE = Path(lora_kit.__file__).parent
# lowest first; names on one floor don't know each other
FLOORS = [
    ["system"],
    ["script", "lr_settings"],
    ["config"],
    ["accelerator", "models", "parameters", "optimizers", "loss"],
    ["command_line", "steps"],
    ["schedules", "data", "memory"],
    ["output", "evaluation", "trainers"],
    ["training", "plots"],
    ["launch", "doctor"],
    ["explorer"],
]
FLOOR = {name: floor for floor, names in enumerate(FLOORS) for name in names}
LESSONS = ["config", "parameters", "optimizers", "schedules", "steps", "loss", "training", "launch"]
FILES = sorted(PACKAGE.rglob("*.py"))
MODULES = sorted(module.name for module in pkgutil.walk_packages(lora_kit.__path__, "lora_kit."))
PLAIN = [name for name in MODULES if not name.endswith("__main__")]


def module_of(path):
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path):
    """The modules of this package that a file imports, wherever in it, relative imports and imports by name included."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}:{node.lineno}: write the import out, from lora_kit on"
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        else:
            continue
        yield from (name for name in names if name in MODULES)


def room(module):
    return module.split(".")[1]


def test_every_file_has_a_floor():
    rooms = {room(module) for module in MODULES}
    assert rooms == set(FLOOR)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_import_runs_up(path):
    module = module_of(path)
    if module == "lora_kit":
        return  # gives names of all floors, each from its home, when it is asked
    for name in imports(path):
        same_room = room(name) == room(module)
        assert same_room or FLOOR[room(name)] < FLOOR[room(module)], f"{module} imports {name}"


def test_there_is_no_circle():
    arrows = {module_of(path): {name for name in imports(path) if name != module_of(path)} for path in FILES}
    while lowest := [module for module, lower in arrows.items() if not lower & arrows.keys()]:
        for module in lowest:
            del arrows[module]
    assert arrows == {}, f"a circle among {sorted(arrows)}"


def test_the_test_of_imports_can_fail(tmp_path):
    (tmp_path / "a.py").write_text("def f():\n    from lora_kit import training\n    import lora_kit.explorer.page\n")
    assert set(imports(tmp_path / "a.py")) == {"lora_kit.training", "lora_kit.explorer.page"}


def lines(path):
    return len(path.read_text(encoding="utf-8").splitlines())


def test_files_are_short():
    assert {str(path.relative_to(PACKAGE)): lines(path) for path in FILES if lines(path) > 260} == {}


def test_the_lessons_are_read_in_an_hour():
    assert sum(lines(PACKAGE / f"{name}.py") for name in LESSONS) <= 1400


def public(module):
    """(name, function) of the public functions, and of the methods of public classes, that a module defines."""
    for name, item in vars(module).items():
        if name.startswith("_") or getattr(item, "__module__", None) != module.__name__:
            continue
        if inspect.isfunction(item):
            yield name, item
        elif inspect.isclass(item):
            for key, member in vars(item).items():
                member = member.fget if isinstance(member, property) else member
                member = getattr(member, "__func__", member)
                generated = key.startswith("_") and key != "__init__"
                if inspect.isfunction(member) and not generated and member.__module__ == module.__name__:
                    yield f"{name}.{key}", member


@pytest.mark.parametrize("name", PLAIN)
def test_what_is_public_is_annotated(name):
    bare = []
    for title, function in public(importlib.import_module(name)):
        signature = inspect.signature(function)
        parameters = [parameter for parameter in signature.parameters.values() if parameter.name not in ("self", "cls")]
        missing = [parameter.name for parameter in parameters if parameter.annotation is parameter.empty]
        if signature.return_annotation is signature.empty and not title.endswith("__init__"):
            missing.append("return")
        if missing:
            bare.append(f"{title}: {', '.join(missing)}")
    assert not bare, bare


@pytest.mark.parametrize("name", MODULES)
def test_every_module_and_public_function_says_what_it_is(name):
    if name.endswith("__main__"):
        return
    module = importlib.import_module(name)
    silent = [title for title, function in public(module) if not function.__doc__ and "." not in title]
    assert module.__doc__ and not silent, silent


@pytest.mark.slow
@pytest.mark.parametrize("name", PLAIN)
def test_examples_are_true(name):
    module = importlib.import_module(name)
    for example in doctest.DocTestFinder().find(module, name):
        outcome = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(example)
        assert outcome.failed == 0, example.name


def test_there_are_examples():
    """Of what the lessons teach, none skipped."""
    with_example = set()
    for name in LESSONS:
        for example in doctest.DocTestFinder().find(importlib.import_module(f"lora_kit.{name}")):
            if example.examples:
                assert not any(doctest.SKIP in one.options for one in example.examples), example.name
                with_example.add(name)
    assert with_example >= {"config", "schedules", "steps", "optimizers", "parameters"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_the_script_s_behaviour_is_asked_in_one_place(path):
    """Only the configuration turns match_diffusers into a `Behaviour`; all else asks that."""
    if path.name == "config.py":
        return
    tree = ast.parse(path.read_text(encoding="utf-8"))
    asked = [
        node.lineno for node in ast.walk(tree) if isinstance(node, ast.Attribute) and node.attr == "match_diffusers"
    ]
    assert not asked, f"{path.name}, lines {asked}: ask config.behaviour"


def test_import_is_light():
    import subprocess
    import sys

    heavy = "{'torch', 'numpy', 'diffusers', 'peft', 'matplotlib', 'ipywidgets', 'bitsandbytes'}"
    modules = [name for name in MODULES if not name.endswith("__main__")]
    code = f"import importlib, sys\nfor name in {modules!r}: importlib.import_module(name)\nprint({heavy} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.strip() == "set()", done.stdout + done.stderr[-2000:]


def test_the_readme_s_floors_are_these():
    text = (PACKAGE.parent / "README.md").read_text(encoding="utf-8")
    floors = " < ".join(", ".join(names) for names in FLOORS)
    assert f"`{floors}`" in text


SINCE_311 = {
    "typing": "Self Never assert_never assert_type reveal_type LiteralString Unpack Required NotRequired TypeVarTuple override",
    "enum": "StrEnum", "datetime": "UTC", "contextlib": "chdir", "hashlib": "file_digest",
}  # fmt: skip


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_the_oldest_python_that_is_promised_can_read_it(path):
    """Names that only checkers of types need are imported for them alone."""
    tree = ast.parse(path.read_text(encoding="utf-8"), feature_version=(3, 10))
    for_checkers = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and id(node) not in for_checkers:
            assert not {alias.name for alias in node.names} & set(SINCE_311.get(node.module, "").split())
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            assert node.attr not in SINCE_311.get(node.value.id, "").split(), f"{path}:{node.lineno}"
