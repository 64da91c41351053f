"""What the project's files say of each other: dependencies, lock, commands, links."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomli")

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def ranges(lines):
    """{canonical name: range} of requirement lines, the project itself left out."""
    requirements = [Requirement(line) for line in lines]
    return {canonicalize_name(r.name): r.specifier for r in requirements if r.name != PROJECT["name"]}


RUNTIME = ranges(PROJECT["dependencies"])
LAB = ranges(PROJECT["optional-dependencies"]["lab"])
TEST = ranges(PROJECT["optional-dependencies"]["test"])
GROUPS = tomllib.loads((ROOT / "pyproject.toml").read_text())["dependency-groups"]
LOCKS = {"site": "docs/site/requirements.txt", "widgets7": "tests/browser/widgets7.txt"}


def pins(lock):
    """{canonical name: version} of a lock's lines; those with hashes go on below."""
    lines = re.findall(r"^[\w.-]+==.*?(?= \\$|$)", (ROOT / lock).read_text(), flags=re.MULTILINE)
    found = {canonicalize_name(r.name): r.specifier for r in map(Requirement, lines)}
    assert len(found) == len(lines)  # one version for every Python and platform
    return {name: str(specifier).removeprefix("==") for name, specifier in found.items()}


PINS = pins("requirements.lock")


def test_environment_names_the_packages_of_pyproject():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    *conda, pip = environment["dependencies"]
    assert conda == ["python=3.11", "pip"]
    assert pip["pip"][-1] == "-e ."
    assert ranges(pip["pip"][:-1]) == RUNTIME | LAB


def test_no_package_stands_in_two_groups():
    assert not RUNTIME.keys() & (LAB | TEST).keys()
    assert not LAB.keys() & TEST.keys()


@pytest.mark.parametrize(("name", "version"), [("diffusers", "0.37.1"), ("accelerate", "1.13.0")])
def test_versions_that_fail_are_out_of_range(name, version):
    """The ones just below the floors, which their lines in pyproject.toml give the reasons for."""
    assert not RUNTIME[name].contains(version)


def test_every_dependency_has_a_reason():
    lines = (ROOT / "pyproject.toml").read_text().splitlines()
    named = [line for line in lines if re.match(r'\s+"[a-z][a-z0-9-]*[>=]', line)]
    assert len(named) == len(RUNTIME) + len(LAB) + len(TEST) + sum(map(len, GROUPS.values()))
    assert [line for line in named if not re.search(r"# \S", line)] == []


@pytest.mark.parametrize("name", sorted(RUNTIME | LAB | TEST))
def test_lock_pins_within_the_range(name):
    assert name in PINS, f"requirements.lock lacks {name}: run 'make lock'"
    wanted = (RUNTIME | LAB | TEST)[name]
    assert wanted.contains(PINS[name]), f"{name}: {PINS[name]} is outside {wanted}: run 'make lock'"


@pytest.mark.parametrize("group", GROUPS)
def test_locks_pin_within_the_ranges_of_their_group(group):
    found = pins(LOCKS[group])
    outside = {name: found[name] for name, wanted in ranges(GROUPS[group]).items() if not wanted.contains(found[name])}
    assert not outside, "run 'make lock'"


@pytest.mark.parametrize("lock", ["requirements.lock", *LOCKS.values()])
def test_lock_has_hashes_of_all_but_torch(lock):
    """torch's depend on which index its build is from."""
    blocks = re.split(r"\n(?=\w)", (ROOT / lock).read_text())[1:]
    assert {block.strip() for block in blocks if "--hash=sha256:" not in block} <= {f"torch=={PINS['torch']}"}


def test_lock_is_portable():
    assert [name for name in PINS if re.match("torchvision|nvidia|cuda|triton", name)] == []
    assert [version for version in PINS.values() if not re.fullmatch(r"[\w.]+", version)] == []  # no +cpu, no path


def test_hooks_run_the_ruff_of_the_lock():
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    hooks = [hook for repo in config["repos"] for hook in repo["hooks"]]
    assert [hook["additional_dependencies"] for hook in hooks] == [[f"ruff=={PINS['ruff']}"]] * 2


def test_uv_is_told_what_pip_is_configured_for(tmp_path):
    spec = importlib.util.spec_from_file_location("uv", ROOT / "scripts" / "uv.py")
    uv = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(uv)
    (tmp_path / "pip.conf").write_text(
        "[global]\nindex-url = https://a/simple\nextra-index-url =\n  https://b/simple\n  https://c/simple\n"
        "find-links = /d /e\nproxy = http://f:1\ncert = /g.pem\n[install]\nindex-url = https://h/simple\n"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PIP_")}
    environment |= {"PIP_CONFIG_FILE": str(tmp_path / "pip.conf"), "PIP_PROXY": "http://i:2", "PIP_TIMEOUT": "9"}
    listing = subprocess.check_output([sys.executable, "-m", "pip", "config", "list"], text=True, env=environment)
    told = uv.variables(listing)
    assert told["UV_DEFAULT_INDEX"] == "https://h/simple"
    assert told["UV_INDEX"] == "https://b/simple https://c/simple"
    assert told["UV_FIND_LINKS"] == "/d,/e"
    assert (told["ALL_PROXY"], told["SSL_CERT_FILE"], told["UV_HTTP_TIMEOUT"]) == ("http://i:2", "/g.pem", "9")


def without_code(text):
    return re.sub(r"```.*?```|`[^`\n]*`", "", text, flags=re.DOTALL)


def relative_links(markdown):
    """The relative paths that a Markdown text links to or shows as a picture, without their #anchors."""
    found = re.findall(r'\]\(<?([^)>\s]+)|(?:src|href)="([^"]+)"', without_code(markdown))
    targets = [a or b for a, b in found]
    return [t.partition("#")[0] for t in targets if not re.match(r"[a-z]+:|#|attachment", t)]


def test_relative_links_are_found():
    text = '[a](b.md#c) ![d](<e.png>) <img src="f.png"> [g](https://h.i) [j](#k) `[l](m.md)` [![n](o.svg)](p.ipynb)'
    assert relative_links(text) == ["b.md", "e.png", "f.png", "o.svg", "p.ipynb"]


def test_readme_commands_exist():
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    named = set(re.findall(r"(?:^|[`$;&])\s*make ([a-z]+)", (ROOT / "README.md").read_text(), flags=re.MULTILINE))
    assert {"tutorial", "test"} <= named
    assert named <= targets


def test_readme_links_exist():
    links = relative_links((ROOT / "README.md").read_text())
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_readme_names_every_notebook():
    text = (ROOT / "README.md").read_text()
    assert [path.name for path in NOTEBOOKS if path.name not in text] == []


def test_notebook_links_exist():
    assert NOTEBOOKS
    links = []
    for path in NOTEBOOKS:
        cells = [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "markdown"]
        links += [(path.name, link) for cell in cells for link in relative_links("".join(cell["source"]))]
    assert links
    assert [(name, link) for name, link in links if not (ROOT / "notebooks" / link).exists()] == []
