"""Build the site of the notebooks, the README, the glossary and the explorer in build/site. No notebook is executed; npm fetches
the explorer's Python once (scripts/build_explorer.py).

    .venv-site/bin/python scripts/build_site.py [--notebooks build/tutorial] [--out build/site]

The outputs are those stored in the notebooks; with `--notebooks build/tutorial` those that `make tutorial` has made on this
machine. The site works from its folder (open index.html) and from any web server. Exit status 1 where Sphinx warns, as of a
link that leads nowhere.
"""

import argparse
import html
import json
import re
import shutil
import sys
from pathlib import Path

import build_explorer
from docutils.nodes import make_id
from myst_parser.slugs import github_slugify
from sphinx.cmd.build import build_main

ROOT = Path(__file__).resolve().parent.parent
PAGES = {"docs/glossary.md": "Glossary", "CHANGELOG.md": "Changes"}
PAGES |= {"benchmarks/README.md": "Benchmarks", "benchmarks/RESULTS.md": "Benchmarks: results"}
PAGES |= {"docs/reliability.md": "Reliability", "lora_kit/embedded_model/README.md": "The embedded model"}
BESIDE = ("LICENSE", "docs/*.png", "lora_kit/embedded_model/*.png")  # what the pages show or link to
ANCHOR = re.compile(r"(?<=\.ipynb)#((?:[^()\s]|\([^()\s]*\))+)")


def page(markdown):
    """The text of a page or of a cell as the site has it: badges are words, and links lead to the site's own pages."""
    markdown = re.sub(r"\[!\[([^\]]+)\]\(https:[^)]+\)\]", r"[\1]", markdown)  # the badges' pictures are Google's
    markdown = markdown.replace("](../README.md", "](../index.md")
    return ANCHOR.sub(lambda found: "#" + github_slugify(found[1]), markdown)


def linked(output):
    """An output's HTML, whose links to sections of notebooks are JupyterLab's, with links to the site's pages."""
    link = r'href="(\w+)\.ipynb#([^"]*)"'
    return re.sub(link, lambda found: f'href="{found[1]}.html#{make_id(html.unescape(found[2]))}"', output)


def prepared(notebook):
    """A notebook (as JSON) for the site: see `page`; solutions are folded, and figures have the words below them as alt, or
    those in their cell's metadata. Raises ValueError for a figure without."""
    cells = notebook["cells"]
    for cell, following in zip(cells, [*cells[1:], None], strict=True):
        if cell["cell_type"] == "markdown":
            cell["source"] = page("".join(cell["source"]))
            continue
        if "solution" in cell["metadata"].get("tags", []):
            cell["metadata"]["tags"].append("hide-cell")
        words = re.match(r"\*([^*]+)\*", "".join(following["source"])) if following else None
        if words:
            cell["metadata"]["mystnb"] = {"image": {"alt": " ".join(words[1].split())}}
        elif "mystnb" not in cell["metadata"] and any("image/png" in one.get("data", {}) for one in cell["outputs"]):
            raise ValueError(f"a figure has no alt text; it is drawn by:\n{''.join(cell['source'])}")
        for data in (output.get("data", {}) for output in cell["outputs"]):
            data.pop("application/vnd.jupyter.widget-view+json", None)
            if "text/html" in data:
                data["text/html"] = linked("".join(data["text/html"]))
    return notebook


def contents(readme):
    """The site's navigation: the notebooks in the order and with the names of the README's table, then the other pages."""
    notebooks = re.findall(r"\[([^\]]+)\]\((notebooks/\w+)\.ipynb\)", readme)
    others = [(title, path.removesuffix(".md")) for path, title in PAGES.items()]
    trees = [
        f"```{{toctree}}\n:hidden:\n:caption: {caption}\n"
        + "".join(f"{title} </{path}>\n" for title, path in pages)
        + "```\n"
        for caption, pages in (("Notebooks", notebooks), ("More", others))
    ]
    return "\n".join(["", *trees])


def lay_out(notebooks, source):
    """Write the pages to the folder `source`, in the folders that they have in the repository, so that links between them hold."""
    shutil.rmtree(source, ignore_errors=True)
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    texts = {"index.md": page(readme) + contents(readme)}
    texts |= {path: page((ROOT / path).read_text(encoding="utf-8")) for path in PAGES}
    for path in sorted(notebooks.glob("[0-9]*.ipynb")):
        texts[f"notebooks/{path.name}"] = json.dumps(prepared(json.loads(path.read_text(encoding="utf-8"))))
    files = [path.relative_to(ROOT) for pattern in BESIDE for path in ROOT.glob(pattern)]
    for path in [*texts, *files]:
        (source / path).parent.mkdir(parents=True, exist_ok=True)
    for path, text in texts.items():
        (source / path).write_text(text, encoding="utf-8")
    for path in files:
        shutil.copy(ROOT / path, source / path)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--notebooks", type=Path, default=ROOT / "notebooks", help="the folder with executed notebooks")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "site", help="where the site goes")
    args = parser.parse_args(argv)
    if not any(args.notebooks.glob("[0-9]*.ipynb")):
        return f"no notebook in {args.notebooks}" + ": `make tutorial` first" * (args.notebooks.name == "tutorial")
    shutil.rmtree(args.out, ignore_errors=True)  # no page of an earlier build stays
    source = args.out.with_name(f"{args.out.name}-source")
    lay_out(args.notebooks, source)
    settings = ["-c", ROOT / "docs" / "site", "-d", source / ".doctrees"]
    failed = build_main([str(word) for word in ("-q", "-W", "--keep-going", *settings, source, args.out)])
    if not failed:
        build_explorer.build(args.out / "explorer", site=True)
        print(f"The site: {args.out / 'index.html'}")
    return failed


if __name__ == "__main__":
    sys.exit(main())
