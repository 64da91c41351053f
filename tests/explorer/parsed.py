"""Pages and pictures taken apart, so that tests can compare what a reader sees with what was worked out by hand."""

import html.parser
import re
import xml.etree.ElementTree as ElementTree

VOID = ("img", "br")
SHAPES = ("svg", "desc", "title", "path", "rect", "circle", "polyline", "text")  # of which none stands within words


def elements(text):
    """What SVG or well-formed HTML text consists of, in its order: (tag, attributes, the text right inside)."""
    text = re.sub(r"(<img [^>]*)>", r"\1/>", text.replace(" xmlns=", " ns="))
    root = ElementTree.fromstring(f"<root>{text}</root>")
    found = [element for element in root.iter() if element is not root]
    assert not [element.tail for element in found if element.tag in SHAPES and (element.tail or "").strip()]
    assert not (found and found[0].tag in SHAPES and root.text), f"{root.text!r} stands before the picture"
    return [(element.tag, element.attrib, element.text or "") for element in found]


def attributes(text, tag, *names):
    """The values of these attributes of each element of this kind; of one name as a plain list."""
    chosen = [found for kind, found, _ in elements(text) if kind == tag]
    return [found.get(names[0]) if len(names) == 1 else tuple(found.get(name) for name in names) for found in chosen]


def texts(text, tag="text"):
    """The texts of all elements of a kind."""
    return [words for kind, _, words in elements(text) if kind == tag]


def lines(svg):
    """The points of each polyline, by its colour."""
    found = attributes(svg, "polyline", "stroke", "points")
    return {colour: [tuple(map(float, point.split(","))) for point in points.split()] for colour, points in found}


def style(attributes):
    """A style attribute as a dict."""
    pairs = (part.partition(":") for part in attributes.get("style", "").split(";") if part.strip())
    return {name.strip(): value.strip() for name, _, value in pairs}


class _Reader(html.parser.HTMLParser):
    def __init__(self):
        super().__init__()
        self.words, self.tables, self.cell, self.open = [], [], None, []

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("td", "th"):
            self.cell = {"tag": tag, "text": "", **style(attrs)}
            self.tables[-1][-1].append(self.cell)
        elif self.cell is not None:
            self.cell |= style(attrs) | ({"alt": attrs["alt"]} if "alt" in attrs else {})

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"</{tag}> closes another element"
        if tag in ("td", "th"):
            self.cell = None

    def handle_data(self, data):
        self.words.append(data)
        if self.cell is not None:
            self.cell["text"] += data


def read_html(text):
    """A reader of HTML text that has been fed all of it: `words` is a list, `tables` are rows of cells (dicts)."""
    reader = _Reader()
    reader.feed(text)
    reader.close()
    assert not reader.open, f"{reader.open} are never closed"
    return reader


def words(text):
    """The text of a page as it is read, without its tags."""
    return "".join(read_html(text).words)


def table(text, *looks):
    """The only table of a page as rows of texts; with `looks`, of tuples: the text and these of the cell's attributes."""
    (rows,) = read_html(text).tables
    if not looks:
        return [[cell["text"] for cell in row] for row in rows]
    return [[(cell["text"], *(cell.get(look) for look in looks)) for cell in row] for row in rows]
