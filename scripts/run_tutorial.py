"""Run every notebook in order, each in a fresh kernel, and keep executed copies and HTML in build/tutorial.

    python scripts/run_tutorial.py [notebook ...] [--folder notebooks]

Stops at the first cell that fails (exit status 1). Tracked files stay as they were: the notebooks write what they make
to $LORA_KIT_OUTPUT_DIR, which this script sets to build/tutorial/runs.
"""

import argparse
import os
import shutil
import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellControlSignal, DeadKernelError
from nbconvert import HTMLExporter
from traitlets.config import Config

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "build" / "tutorial"
RUNS = BUILD / "runs"
PICTURE = RUNS / "before_after.png"
CELL_TIMEOUT = 600  # seconds
# Without keys ipykernel 7.4 warns, rightly, that anyone on this machine can read what passes over its TCP sockets.
ENCRYPTED = Config({"KernelManager": {"transport_encryption": "auto"}})


def run(path):
    """Execute the notebook at `path`; None, or a text that names the failed cell and its error."""
    notebook = nbformat.read(path, as_version=4)
    started = []
    client = NotebookClient(
        notebook,
        timeout=CELL_TIMEOUT,
        kernel_name="python3",  # the running Python's own: its prefix comes first in a virtual environment
        resources={"metadata": {"path": str(path.parent)}},
        config=ENCRYPTED,
        on_cell_execute=lambda cell, cell_index: started.append(cell),
    )
    failure = None
    try:
        client.execute()
    except (CellControlSignal, DeadKernelError) as error:  # CellControlSignal: a cell's error or its timeout
        first_line = started[-1].source.strip().partition("\n")[0] if started else "(no cell had started)"
        failure = f"{path.name}, cell {len(started)}: {first_line}\n{error}"
    nbformat.write(notebook, BUILD / path.name)
    exporter = HTMLExporter(embed_images=True)
    html, _ = exporter.from_notebook_node(notebook, {"metadata": {"name": path.stem, "path": str(path.parent)}})
    (BUILD / f"{path.stem}.html").write_text(html, encoding="utf-8")
    return failure


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", metavar="notebook", help="names such as 03_schedules; default: all")
    parser.add_argument("--folder", type=Path, default=ROOT / "notebooks", help="where the notebooks are")
    args = parser.parse_args(argv)
    paths = sorted(args.folder.resolve().glob("*.ipynb"))
    if not paths:
        return f"no notebook in {args.folder}"
    if unknown := set(args.names) - {path.stem for path in paths}:
        return f"no notebook {sorted(unknown)[0]!r} in {args.folder}; there are {', '.join(p.stem for p in paths)}"
    chosen = [path for path in paths if not args.names or path.stem in args.names]

    if not args.names:
        shutil.rmtree(BUILD, ignore_errors=True)  # no picture of an earlier run passes for this one's
    RUNS.mkdir(parents=True, exist_ok=True)
    os.environ["LORA_KIT_OUTPUT_DIR"] = str(RUNS)
    begin = time.perf_counter()
    for number, path in enumerate(chosen, 1):
        print(f"[{number}/{len(chosen)}] {path.stem}: running ...", end=" ", flush=True)
        start = time.perf_counter()
        failure = run(path)
        print(f"{'failed after ' if failure else ''}{time.perf_counter() - start:.1f} s", flush=True)
        if failure:
            return failure
    print(f"{len(chosen)} notebooks in {time.perf_counter() - begin:.1f} s; copies and HTML: {BUILD.relative_to(ROOT)}")
    if args.names:
        return 0
    if not PICTURE.is_file():
        return f"no notebook wrote the before/after picture {PICTURE.relative_to(ROOT)}"
    print(f"Before and after: {PICTURE.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
