"""Build the explorer's page: a folder of files whose Python is lora_kit itself, in the browser by Pyodide.

    .venv-site/bin/python scripts/build_explorer.py [--out build/site/explorer] [--serve [--no-browser]]

npm fetches Pyodide once, into build/npm, and node packs what the page uses of it and of lora_kit; both come with the site's
environment, and neither torch nor a network is needed the second time. The page works from any web server, not from the folder alone. Its first
picture is made here, by the functions that make all others in the browser.
"""

import argparse
import base64
import functools
import gzip
import hashlib
import html
import importlib.metadata
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import threading
import webbrowser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "docs" / "site" / "explorer"
SCRIPTS = ROOT / "scripts"
PYODIDE = "pyodide", "314.0.7"
INTEGRITY = {  # of npm's packages, as in a package-lock.json
    PYODIDE: "sha512-0YvXxEhfEdpLfb/XkM2BFAeMROq0iMUX2bzzH9pOttyMcWkwq+HbE5uyuGD82LN7y2q+SNvi/6V5JEsOlD2R1A==",
}
SKIN = ("explorer.css", "explorer.js", "worker.js")
DATA = ("model_shapes.json", "explorer/atlas_files/atlas.json")  # what lora_kit reads, as far as it is there
TEMPORARY = "making-"  # how folders begin that another build may be at
LINKS = {"Lessons": "index.html", "Glossary": "docs/glossary.html"}


def fetched(name, version, integrity=None):
    """The folder with npm's package, fetched where it isn't there yet and compared with what it has to be."""
    wanted = integrity or INTEGRITY[name, version]

    def fetch(temporary):
        _run("npm", "pack", "--silent", f"{name}@{version}", "--pack-destination", temporary)
        (archive,) = temporary.glob("*.tgz")
        integrity = "sha512-" + base64.b64encode(hashlib.sha512(archive.read_bytes()).digest()).decode()
        if integrity != wanted:
            raise SystemExit(f"{name} {version} as npm has it has the integrity {integrity}, not {wanted}")
        with tarfile.open(archive) as packed:
            packed.extractall(temporary / "unpacked", filter="data")
        return temporary / "unpacked"

    return made_once(ROOT / "build" / "npm" / f"{name}-{version}", fetch) / "package"


def made_once(folder, make):
    """The folder, made where it isn't there yet: `make` is called with a temporary one beside it, and returns what becomes it. Two
    builds at once end with one of theirs."""
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=TEMPORARY, dir=folder.parent) as temporary:
            made = make(Path(temporary))
            try:
                made.replace(folder)
            except OSError:
                if not folder.is_dir():
                    raise
    return folder


def _run(program, *arguments):
    programs = os.pathsep.join(
        [str(ROOT / ".venv-site" / "bin"), os.environ["PATH"]]
    )  # npm looks for its node there, too
    if not (path := shutil.which(program, path=programs)):
        raise SystemExit(f"{program} is needed to build the explorer's page: `make site` installs it")
    done = subprocess.run(
        [path, *map(str, arguments)], capture_output=True, text=True, env=os.environ | {"PATH": programs}
    )
    if done.returncode:
        raise SystemExit(f"{program} {arguments[0]} failed:\n{done.stderr.strip()[-2000:]}")


def kit_files():
    """{name: bytes} of all of lora_kit that could be used, and of PyYAML without its part in C."""
    paths = {path.relative_to(ROOT): path for path in (ROOT / "lora_kit").rglob("*.py")}
    yaml = Path(importlib.util.find_spec("yaml").origin).parent
    paths |= {Path("yaml") / path.name: path for path in yaml.glob("*.py")}
    paths |= {Path("lora_kit") / name: ROOT / "lora_kit" / name for name in DATA if (ROOT / "lora_kit" / name).exists()}
    return {str(name): path.read_bytes() for name, path in sorted(paths.items())}


def packed():
    """The folder with python_stdlib.zip and kit.zip: all that the page imports, compiled. Made anew where anything it is of changed."""
    files = kit_files()
    makers = [(SCRIPTS / name).read_bytes() for name in ("pack_explorer.py", "pack_explorer.mjs")]
    parts = [*makers, *PYODIDE, *files.items()]

    def pack(temporary):
        for name, data in files.items():
            path = temporary / "kit" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        _run("node", SCRIPTS / "pack_explorer.mjs", fetched(*PYODIDE), temporary / "kit", temporary / "out")
        return temporary / "out"

    folder = made_once(ROOT / "build" / "explorer-packed" / _digest(parts), pack)
    for earlier in folder.parent.iterdir():
        if earlier != folder and not earlier.name.startswith(TEMPORARY):
            shutil.rmtree(earlier, ignore_errors=True)
    return folder


def _digest(parts):
    digest = hashlib.sha256()
    for part in parts:
        data = repr(part).encode()
        digest.update(len(data).to_bytes(8, "big") + data)
    return digest.hexdigest()[:12]


def assets():
    """{name: bytes} of the files that a build never changes: the skin, Pyodide and what is packed, with the licences of both."""
    pyodide, ready = fetched(*PYODIDE), packed()
    sys.path.insert(0, str(ROOT))
    from lora_kit.explorer.widgets import LINES

    files = {name: (SOURCE / name).read_bytes() for name in SKIN}
    lock = json.loads((pyodide / "pyodide-lock.json").read_text())["info"] | {"version": PYODIDE[1]}
    files["worker.js"] = files["worker.js"].replace(b"{{lock}}", json.dumps(lock).encode())
    files["explorer.css"] = files["explorer.css"].replace(b"{{lines}}", LINES.encode())
    files["pyodide.mjs"] = (pyodide / "pyodide.mjs").read_bytes()
    core = (pyodide / "pyodide.asm.mjs", pyodide / "pyodide.asm.wasm")
    for path in (*core, ready / "python_stdlib.zip", ready / "kit.zip"):
        files[f"{path.name}.gz"] = gzip.compress(path.read_bytes(), 9, mtime=0)
    files |= {
        f"atlas/{path.name}": path.read_bytes()
        for path in sorted((ROOT / "lora_kit/explorer/atlas_files").glob("*.webp"))
    }
    return files | {"licences.txt": _licences(pyodide).encode()}


def _licences(pyodide):
    """What is said of the programs of others that the page brings."""
    about = json.loads((pyodide / "package.json").read_text())
    yaml = importlib.metadata.distribution("PyYAML")
    (licence,) = (path for path in yaml.files if path.name == "LICENSE")
    return (
        f"Pyodide {about['version']}: {about['license']}, {about['homepage']}\n"
        "Python's standard library, a part: Python Software Foundation License, https://docs.python.org/3/license.html\n\n"
        f"PyYAML {yaml.version}, its files in Python:\n\n{licence.read_text()}"
    )


def build(out, site=False):
    """Write the page to the folder `out`. site: whether it is part of the site, to which it then links."""
    files = assets()
    name = _digest(sorted(files.items()))
    shutil.rmtree(out, ignore_errors=True)
    (out / name).mkdir(parents=True)
    for path, data in files.items():
        (out / name / path).parent.mkdir(exist_ok=True)
        (out / name / path).write_bytes(data)
    from lora_kit.explorer.web import Page, parts

    start = Page(f"{name}/atlas/").start()
    view = json.loads(start)["view"]
    links = "".join(f'<a href="../{page}">{words}</a>' for words, page in LINKS.items()) if site else ""
    train = 'It is in <a href="../notebooks/06_explore.html">notebook 06</a>.' if site else "It is in notebook 06."
    texts = {
        "assets": name,
        "links": links,
        "train": train,
        "rate": html.escape(view["rate"]),
        "said": html.escape(view["cursor"]["said"]),
        "title": html.escape(view["title"]),
        "answer": view["answer"],
        "start": start.replace("</", "<\\/"),
    }
    texts |= view["panels"] | parts()
    page = (SOURCE / "index.html").read_text(encoding="utf-8")
    page = re.sub(r"\{\{([\w.]+)\}\}", lambda place: texts[place[1]], page)
    kept = [f"{name}/{path}" for path in files if path != "licences.txt"]
    worker = (SOURCE / "service-worker.js").read_text(encoding="utf-8")
    build_name = _digest([name, page])
    worker = worker.replace("{{build}}", build_name).replace("{{files}}", json.dumps(kept))
    (out / "index.html").write_text(page, encoding="utf-8")
    (out / "service-worker.js").write_text(worker, encoding="utf-8")


class Handler(SimpleHTTPRequestHandler):
    """Files of a folder, whatever this machine holds to be the type of a script."""

    extensions_map = SimpleHTTPRequestHandler.extensions_map | {".mjs": "text/javascript", ".js": "text/javascript"}

    def log_message(self, *args):
        pass


def serve(folder, browser):
    """Serve the folder until Ctrl-C."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=folder))
    address = f"http://127.0.0.1:{server.server_port}/"
    print(f"The explorer: {address}", flush=True)
    if browser:
        threading.Thread(target=webbrowser.open, args=(address,), daemon=True).start()
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        print()


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "explorer", help="where the page goes")
    parser.add_argument("--serve", action="store_true", help="serve it, and open it")
    parser.add_argument("--no-browser", action="store_true", help="only say where it is")
    args = parser.parse_args(argv)
    build(args.out)
    if args.serve:
        serve(args.out, not args.no_browser)
    else:
        print(f"The explorer's page: {args.out}")


if __name__ == "__main__":
    main()
