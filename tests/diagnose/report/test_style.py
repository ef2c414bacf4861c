"""Colours that can be told from the paper, by day and by night."""

import re

import pytest

from mtsft.diagnose.report.inline_svg import CURVE_COLOURS, colour, inline_svg
from mtsft.diagnose.report.style import PAGE_STYLE


def luminance(colour):
    """Relative luminance as WCAG 2.2 defines it."""
    if len(colour) == 4:
        colour = "#" + "".join(2 * c for c in colour[1:])
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(a, b):
    high, low = sorted((luminance(a), luminance(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def variables(dark):
    """The colours of a mode by name."""
    by_day = re.sub(r"@media \(prefers.*?\} \}", "", PAGE_STYLE, flags=re.DOTALL)
    found = dict(re.findall(r"--([\w]+): (#\w+);", by_day))
    if dark:
        for block in re.findall(r"@media \(prefers-color-scheme: dark\) \{(.*?)\} \}", PAGE_STYLE, re.DOTALL):
            found |= dict(re.findall(r"--([\w]+): (#\w+);", block))
    return found


@pytest.mark.parametrize("dark", [False, True])
def test_contrast(dark):
    named = variables(dark)
    assert (luminance(named["paper"]) < 0.1) == dark
    for text in ("ink", "soft"):
        assert contrast(named[text], named["paper"]) >= 4.5
        assert contrast(named[text], named["wash"]) >= 4.5
    for i in range(CURVE_COLOURS):
        assert contrast(named[f"c{i}"], named["paper"]) >= 3
    assert len({named[f"c{i}"] for i in range(CURVE_COLOURS)}) == CURVE_COLOURS


def test_a_drawing_has_no_style_no_address_and_no_id_of_its_own():
    drawn = f"""<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" viewBox="0 0 9 9">
    <metadata>x</metadata><defs><style type="text/css">*{{a: b}}</style><clipPath id="p1"><rect x="1.23456" y="2"
    width="3" height="4"/></clipPath></defs><g id="g1">
    <path id="m1" d="M 1.23456 2.0000 L 3 -4.99999" clip-path="url(#p1)"
    style="fill: none; stroke: {colour(9)}; stroke-width: 1.5; evil: x"/><use xlink:href="#m1" x="1"/>
    <text style="font: 9px 'A', sans-serif; text-anchor: middle">&lt;b&gt;</text></g></svg>"""
    svg = inline_svg(drawn.encode(), "p", "T<", "D&")
    assert svg == (
        '<svg viewBox="0 0 9 9" role="img" aria-labelledby="p-title p-desc"><title id="p-title">T&lt;</title>'
        '<desc id="p-desc">D&amp;</desc>\n'
        '<defs><clipPath id="p-p1"><rect x="1.23" y="2" width="3" height="4"/></clipPath>\n</defs>\n'
        '<path id="p-m1" d="M 1.23 2 L 3 -5" clip-path="url(#p-p1)" fill="none" stroke-width="1.5" class="s-1"/>'
        '<use href="#p-m1" x="1"/><text font-size="9" text-anchor="middle" class="text">&lt;b&gt;</text>\n</svg>'
    )
