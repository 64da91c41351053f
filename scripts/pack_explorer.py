"""Runs in Pyodide: finds what of Python's library and of the kit the explorer's page uses, and packs that, compiled.

The page is used in every way that a reader has, and what it then has imported is what it needs. Compiled, since a browser takes
seconds to compile the sources. `scripts/pack_explorer.mjs` starts it; /in and /out are its folders.
"""

import contextlib
import importlib
import importlib._bootstrap_external as bootstrap
import importlib.util
import json
import pathlib
import sys
import zipfile

LIBRARY = next(path for path in sys.path if path.endswith(".zip"))
RARE = ("_pylong", "_strptime", "difflib")  # numbers of thousands of digits; dates; names like another
KIT = "/in/kit"


def use(page):
    """Everything that a reader can do."""
    start = json.loads(page.start("rank=8&rnak=1&hide=memory&embed=picture&learning_rate=many"))

    def act(do, **given):
        return json.loads(page.act(json.dumps({"do": do, **given})))

    def offered(control):
        return [value for _, value in control["options"]]

    for name, control in start["controls"].items():
        for value in (*offered(control), control["low"], control["high"], -1, "x", True, None):
            act("turn", name=name, value=value)
        for text in ("1e-4", "3", "x", "", "9" * 3000):
            act("type", name=name, text=text)
    for name in ("preset", "kind", "axis", "log", "cursor"):
        for value in (*offered(start["looks"][name]), True, 3, "x"):
            if name == "preset":
                act("take_preset", name=str(value))
                act("mend")
            else:
                act("look", **{name: value})
    act("look", trainers=offered(start["looks"]["trainers"]))
    for kind in offered(start["looks"]["kind"]):
        changed = act("look", kind=kind) | json.loads(page.start(""))["view"]
        act("read", text=changed["commands"].get(kind, ""))
    for text in (
        "",
        "x = [",
        "a: [",
        "accelerate launch --learning_rate",
        "TrainingConfig(rank='x')",
        "- 1\n-",
        "{",
        "0x" * 99,
    ):
        act("read", text=text)
    for do in ("pin", "unpin", "mend"):
        act(do)


def compiled(source, name):
    """A module's source as the bytes of a .pyc that is never compared with it."""
    code = compile(source, name, "exec", dont_inherit=True, optimize=0 if "lora_kit" in name else 2)
    return bytes(bootstrap._code_to_hash_pyc(code, importlib.util.source_hash(source), False))


def pack(path, files):
    """Write {name: bytes} to a zip, as they are: it is compressed as a whole, and read faster so."""
    with zipfile.ZipFile(path, "w") as packed:
        for name, data in sorted(files.items()):
            packed.writestr(zipfile.ZipInfo(name), data)


def main():
    from lora_kit.explorer.web import Page

    use(Page())
    for name in RARE:
        importlib.import_module(name)
    with contextlib.suppress(SystemExit):
        importlib.import_module("traceback").print_exception(ValueError("x"), file=open("/dev/null", "w"))
    with zipfile.ZipFile(LIBRARY) as sources:  # as the page unpacks the kit
        sources.extractall("/unpacked")
    used = {module.__file__ for module in list(sys.modules.values()) if getattr(module, "__file__", None)}
    library, kit = {}, {}
    for path in pathlib.Path("/unpacked").rglob("*.py"):
        name = str(path.relative_to("/unpacked"))
        if f"{LIBRARY}/{name}" in used:
            library[name + "c"] = compiled(path.read_bytes(), name)
    for path in used:
        if path.startswith(f"{KIT}/"):
            name = path.removeprefix(f"{KIT}/")
            kit[name + "c"] = compiled(pathlib.Path(path).read_bytes(), name)
    for path in pathlib.Path(KIT).rglob("*.json"):
        kit[str(path.relative_to(KIT))] = path.read_bytes()
    pack("/out/python_stdlib.zip", library)
    pack("/out/kit.zip", kit)
    return json.dumps({"library": sorted(library), "kit": sorted(kit)})


main()
