"""Dialogues as one HTML page that needs nothing else: search, the config in its head, keys to go by."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from mtsft.config_keys import changed_keys, config_keys
from mtsft.diagnose import loss_colors
from mtsft.diagnose.html_parts import PALETTE, content_policy, escaped, value_text
from mtsft.diagnose.token_view import STYLE, as_fragment
from mtsft.diagnose.viewed import ViewedDialogue, title_of
from mtsft.tokenizer.base import Tokenizer

_PAGE_STYLE = """
body { margin: 0 auto; padding: 0 clamp(.6rem, 3vw, 2.5rem) 3.5rem; max-width: 90rem; background: var(--paper);
  color: var(--ink); font: 1rem/1.5 system-ui, sans-serif; }
h1 { font-size: 1.4rem; } h3 { font-size: 1rem; margin: 0; overflow-wrap: anywhere; } a { color: inherit; }
form { position: sticky; top: 0; z-index: 1; display: flex; flex-wrap: wrap; gap: .5rem; align-items: center;
  padding: .5rem 0; background: var(--paper); border-bottom: 1px solid var(--line); }
input { flex: 1 1 12rem; min-width: 0; font: inherit; padding: .3rem .5rem; } button { font: inherit; }
details { margin: .6rem 0; } summary { cursor: pointer; }
table { border-collapse: collapse; display: block; overflow-x: auto; font-size: .9rem; }
td, th { text-align: left; vertical-align: top; padding: .15rem .8rem .15rem 0; border-top: 1px solid var(--line); }
td:nth-child(-n + 2) { font-family: ui-monospace, monospace; } td:first-child { white-space: nowrap; }
td:nth-child(2) { overflow-wrap: anywhere; min-width: 8rem; }
section { margin: 1.4rem 0; padding-top: .6rem; border-top: 1px solid var(--line); scroll-margin-top: 4rem; }
section[hidden], form[hidden] { display: none; }
.mtsft-tree span.hit { opacity: 1; background: var(--hit); color: #1b1f24; }
.mtsft-tree span.here { opacity: 1; outline: 2px solid var(--here); }
footer { position: fixed; inset: auto 0 0 0; padding: .3rem clamp(.6rem, 3vw, 2.5rem); background: var(--paper);
  border-top: 1px solid var(--line); font: .85rem ui-monospace, monospace; min-height: 1.4em; }
"""
_SCRIPT = r"""
"use strict";
const sections = [...document.querySelectorAll("section")];
const query = document.getElementById("query"), found = document.getElementById("found");
const footer = document.querySelector("footer");
let hits = [], at = -1, here = null;
function show(span, scroll) {
  if (here) here.classList.remove("here");
  here = span;
  footer.textContent = span ? span.title : "";
  if (!span) return;
  span.classList.add("here");
  if (scroll) span.scrollIntoView({block: "center"});
}
function search() {
  document.querySelectorAll(".hit").forEach(span => span.classList.remove("hit"));
  hits = []; at = -1; show(null);
  const words = query.value.trim();
  if (!words) { sections.forEach(section => section.hidden = false); found.textContent = ""; return; }
  const pattern = words.replace(/[.*+?^${}()|[\]\\]/g, "\\$&").replace(/\s+/g, "[\\s\u23ce]+");
  let dialogues = 0;
  for (const section of sections) {
    const spans = [...section.querySelectorAll(".mtsft-tree span")];
    const ends = []; let text = "";
    for (const span of spans) { text += span.textContent; ends.push(text.length); }
    const named = new RegExp(pattern, "i").test(section.querySelector("h3").textContent);
    let before = hits.length, first = 0;
    for (const match of text.matchAll(new RegExp(pattern, "gi"))) {
      while (ends[first] <= match.index) first++;
      for (let i = first; i < spans.length && (i === first || ends[i - 1] < match.index + match[0].length); i++)
        spans[i].classList.add("hit");
      hits.push(spans[first]);
    }
    section.hidden = !named && hits.length === before;
    dialogues += !section.hidden;
  }
  found.textContent = `${hits.length} found, in ${dialogues} of ${sections.length} dialogues`;
}
function step(by) {
  if (!hits.length) return;
  at = (at + by + hits.length + (at < 0 && by < 0)) % hits.length;
  show(hits[at], true);
  found.textContent = `${at + 1} of ${hits.length}`;
}
function go(by) {
  const seen = sections.filter(section => !section.hidden);
  const now = seen.findLastIndex(section => section.getBoundingClientRect().top < 80);
  const next = seen[Math.min(Math.max(now + by, 0), seen.length - 1)];
  if (next) { next.scrollIntoView(); next.querySelector(".mtsft-tree").focus({preventScroll: true}); }
}
query.addEventListener("input", search);
document.querySelector("form").addEventListener("submit", event => { event.preventDefault(); step(1); });
document.getElementById("previous").addEventListener("click", () => step(-1));
document.addEventListener("click", event => {
  const span = event.target.closest(".mtsft-tree span");
  if (span) show(span);
});
document.addEventListener("keydown", event => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const typing = event.target === query;
  if (event.key === "Enter" && typing && event.shiftKey) { event.preventDefault(); step(-1); }
  else if (event.key === "Escape") { query.value = ""; search(); query.blur(); }
  else if (typing) return;
  else if (event.key === "/") { event.preventDefault(); query.focus(); query.select(); }
  else if (event.key === "n") go(1);
  else if (event.key === "p") go(-1);
  else if (event.key === "ArrowRight" || event.key === "ArrowLeft") {
    const tree = here ? here.closest(".mtsft-tree") : event.target.closest(".mtsft-tree");
    if (!tree) return;
    const spans = [...tree.querySelectorAll("span")];
    const next = spans[spans.indexOf(here) + (event.key === "ArrowRight" ? 1 : -1)];
    if (next) { event.preventDefault(); show(next); next.scrollIntoView({block: "nearest"}); }
  }
});
document.querySelector("form").hidden = false;
"""
_LEGEND_OF_PIECES = """Outlined pieces are
control tokens. A box is a branch: a reply beside another one, or a turn as it was emitted where the history reads
otherwise. Rest the mouse on a piece, or go to it with the arrow keys, for its token, position, turn and message.
Keys: / searches, Enter and Shift+Enter go to the next place found and the one before, n and p to the next dialogue and
the one before, Escape ends a search.</p>
"""
_WEIGHTS = "a small number before it is its weight, where that is not 1."
_LEGEND = f"<p>Green is supervised; {_WEIGHTS} {_LEGEND_OF_PIECES}"
_LEGEND_OF_LOSSES = f"<p>What has a loss is colored; of what is supervised {_WEIGHTS} {_LEGEND_OF_PIECES}"


def html_page(
    shown: Iterable[ViewedDialogue],
    tokenizer: Tokenizer,
    config: Mapping[str, Any],
    title: str = "What is trained on",
    about: Sequence[str] = (),
    losses: bool = False,
) -> Iterator[str]:
    """The page, piece by piece.

    Args:
        shown: the dialogues.
        tokenizer: what their tokens are of.
        config: of the run, by key; {} to show none.
        title: of the page.
        about: paragraphs of text that stand first.
        losses: whether dialogues come with the losses of their tokens.
    """
    style = STYLE.removeprefix("<style>").removesuffix("</style>") + PALETTE + _PAGE_STYLE
    style += loss_colors.STYLE if losses else ""
    title, legend = escaped(title), (loss_colors.html_legend() + _LEGEND_OF_LOSSES if losses else _LEGEND)
    paragraphs = "".join(f"<p>{escaped(each)}</p>\n" for each in about)
    yield (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{content_policy(style, _SCRIPT)}">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><title>{title}</title>\n'
        f"<style>{style}</style></head><body>\n<h1>{title}</h1>\n{paragraphs}{legend}{_config(config, not losses)}"
        '<form role="search" hidden><input id="query" type="search" placeholder="Search in words, names and files" '
        'aria-label="Search in words, names and files"><button>Next</button>'
        '<button type="button" id="previous">Previous</button><output id="found"></output></form>\n<main>\n'
    )
    for number, one in enumerate(shown, 1):
        heading = escaped(title_of(one))
        tree = as_fragment(one.tree, tokenizer, one.losses or {}).replace("<div", '<div tabindex="0"', 1)
        yield f'<section id="d{number}"><h3>{heading}</h3>\n{tree}</section>\n'
    yield f'</main>\n<footer aria-live="polite"></footer>\n<script>{_SCRIPT}</script></body></html>\n'


def _config(values: Mapping[str, Any], is_open: bool) -> str:
    """Two tables: what is not the default, and all there is; is_open: whether the first is seen at once."""
    if not values:
        return ""
    changed = changed_keys(values)
    rows = [(key.name, value, f"not {value_text(key.default)}: {key.meaning}") for key, value in changed]
    every = [(name, values[name], key.meaning) for name, key in config_keys().items() if name in values]
    attribute = " open" if is_open else ""
    return (
        f"<details{attribute}><summary>Config: {len(changed)} of {len(every)} keys are not the default</summary>"
        f"{_table(rows)}<details><summary>All keys</summary>{_table(every)}</details></details>\n"
    )


def _table(rows: Iterable[tuple[str, Any, str]]) -> str:
    cells = ("".join(f"<td>{escaped(cell)}</td>" for cell in (n, value_text(v), m)) for n, v, m in rows)
    return f"<table>{''.join(f'<tr>{row}</tr>' for row in cells)}</table>"
