"""Sphinx's settings for the site. scripts/build_site.py lays out the pages and calls Sphinx; nothing is executed here.

The site is for reading without a network too, so no script, style, font or formula comes from elsewhere.
"""

from docutils.nodes import SkipNode
from latex2mathml.converter import convert

project = html_title = "LoRA Kit"
root_doc = "index"
extensions = ["myst_nb"]

nb_execution_mode = "off"  # the outputs are those that the notebooks carry
nb_merge_streams = True
nb_render_markdown_format = "gfm"  # which has tables
nb_code_prompt_show = "Show the solution as code"
nb_code_prompt_hide = "Hide the solution"
nb_ipywidgets_js = {}  # would come from elsewhere, and the stored outputs have no widgets
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3  # glossary.md#micro-step is a link, as on GitHub

html_theme = "furo"
html_static_path = ["static"]
html_css_files = ["site.css"]
templates_path = ["templates"]
html_sidebars = {
    "**": [
        f"sidebar/{part}.html" for part in ("brand", "search", "explorer", "scroll-start", "navigation", "scroll-end")
    ]
}
html_copy_source = html_show_sourcelink = html_show_sphinx = False
pygments_style = "a11y-high-contrast-light"
pygments_dark_style = "a11y-high-contrast-dark"


def _inline_formula(translator, node):
    translator.body.append(convert(node.astext()))
    raise SkipNode


def _formula(translator, node):
    translator.body.append(convert(node.astext(), display="block"))
    raise SkipNode


def setup(app):
    # MathML, which browsers draw by themselves: Sphinx's MathJax would be fetched by every page that has a formula.
    app.add_html_math_renderer("mathml", (_inline_formula, None), (_formula, None))
    app.config.html_math_renderer = "mathml"
