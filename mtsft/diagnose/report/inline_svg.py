"""The SVG of matplotlib as a part of a page: no style, no metadata, no address, and colours that the page's style says.

A page whose policy names its one style by a hash takes no style attribute, so each becomes attributes of SVG's own, and
a colour becomes a class.
"""

import re
import xml.etree.ElementTree as ElementTree
from xml.sax.saxutils import quoteattr

from mtsft.diagnose.html_parts import escaped

INK, GRID = "#b00000", "#b00001"  # never shown: they stand for classes
CURVE_COLOURS = 8
_CURVES = {f"#a0000{i}": str(i) for i in range(CURVE_COLOURS)}
_CLASSES = {**_CURVES, INK: "ink", GRID: "grid"}
_KEPT = ("stroke-width", "stroke-dasharray", "stroke-dashoffset", "stroke-opacity", "fill-opacity", "opacity")
_KEPT += ("stroke-linejoin", "stroke-linecap", "text-anchor", "transform", "x", "y", "d", "width", "height", "id")
_KEPT += ("clip-path",)
_DROPPED = ("metadata", "style")
_NUMBER = re.compile(r"-?\d+\.\d+")


def colour(style: int) -> str:
    """The colour that stands for that of curves of a style."""
    return f"#a0000{style % CURVE_COLOURS}"


def inline_svg(drawn: bytes, prefix: str, title: str, description: str) -> str:
    """An SVG document as an element of a page.

    Args:
        drawn: by matplotlib.
        prefix: of its ids, so that those of several drawings differ.
        title: what it shows; "" for what is there for the eye alone.
        description: the same at length.
    """
    root = ElementTree.fromstring(drawn)
    for element in root.iter():
        if f"#{element.get('id')}".encode() not in drawn:  # nothing refers to it
            element.attrib.pop("id", None)
    box = root.get("viewBox")
    inside = "".join(_element(child, prefix) for child in root)
    if not title:
        return f'<svg viewBox="{box}" aria-hidden="true">{inside}</svg>'
    return (
        f'<svg viewBox="{box}" role="img" aria-labelledby="{prefix}-title {prefix}-desc">'
        f'<title id="{prefix}-title">{escaped(title)}</title><desc id="{prefix}-desc">{escaped(description)}</desc>\n'
        f"{inside}</svg>"
    )


def _element(element: ElementTree.Element, prefix: str) -> str:
    name = element.tag.rpartition("}")[2]
    if name in _DROPPED:
        return ""
    attributes, classes = {}, []
    for key, value in element.attrib.items():
        key = key.rpartition("}")[2]
        if key == "style":
            for part in value.split(";"):
                property_, _, setting = (piece.strip() for piece in part.partition(":"))
                _put(property_, setting, attributes, classes)
        elif key == "href":
            attributes["href"] = f"#{prefix}-{value.removeprefix('#')}"
        else:
            _put(key, value, attributes, classes)
    if "id" in attributes:
        attributes["id"] = f"{prefix}-{attributes['id']}"
    if "clip-path" in attributes:
        attributes["clip-path"] = attributes["clip-path"].replace("#", f"#{prefix}-")
    if name == "text":
        classes = ["text"]
    if classes:
        attributes["class"] = " ".join(classes)
    told = "".join(f" {key}={quoteattr(_rounded(key, value))}" for key, value in attributes.items())
    inside = escaped((element.text or "").strip()) + "".join(_element(child, prefix) for child in element)
    if name == "g" and not told:  # which only has a name that matplotlib gave it
        return inside
    return f"<{name}{told}>{inside}</{name}>\n" if inside else f"<{name}{told}/>"


def _put(name: str, value: str, attributes: dict[str, str], classes: list[str]) -> None:
    """Adds a property of a style, or an attribute, to the attributes or as a class."""
    if name in ("fill", "stroke") and value in _CLASSES:
        classes.append(f"{name[0]}-{_CLASSES[value]}")
    elif name in ("fill", "stroke") and value == "none":
        attributes[name] = value
    elif name in ("font", "font-size"):  # by the version of matplotlib
        attributes["font-size"] = re.search(r"[\d.]+(?=px)", value)[0]
    elif name in _KEPT:
        attributes[name] = value


def _rounded(name: str, value: str) -> str:
    if name in ("d", "transform", "x", "y", "stroke-dasharray"):
        value = " ".join(_NUMBER.sub(lambda found: f"{float(found[0]):.2f}".rstrip("0").rstrip("."), value).split())
    return value
