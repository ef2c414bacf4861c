"""A tree as readable text: every token, the supervised ones marked with their weight.

Text inside a message is data, written by anyone: what would steer a terminal or a page is shown by name, not passed on.
"""

import html
from collections.abc import Iterator, Mapping
from itertools import groupby
from types import MappingProxyType
from typing import NamedTuple
from unicodedata import category

import numpy as np

from mtsft.diagnose import loss_colors
from mtsft.diagnose.branches import Place, places
from mtsft.encoding.token_tree import TokenTree, positions
from mtsft.tokenizer.base import Tokenizer

_LONGEST = 4  # bytes of a character in UTF-8, and so tokens at most that make up one
_BROKEN = "\ufffd"  # what decoding makes of a piece of a character
_STEERING = ("Cc", "Cf", "Cs", "Zl", "Zp")  # categories of characters that are not seen but change what is
_HARMLESS = "\n\u200c\u200d"  # newlines, and the joiners of letters and emoji
_NEWLINE, _BRANCH, _TIMES = "⏎", "↳", "\u00d7"
_DIM, _BOLD_GREEN, _UNDERLINE, _RESET = "\x1b[2m", "\x1b[1;32m", "\x1b[4m", "\x1b[0m"

STYLE = """<style>
.mtsft-tree { font-family: ui-monospace, monospace; white-space: pre-wrap; overflow-wrap: anywhere; line-height: 1.7; }
.mtsft-tree span { opacity: .7; border-radius: 2px; box-shadow: inset 0 0 0 1px rgb(128 128 128 / .3);
  -webkit-box-decoration-break: clone; box-decoration-break: clone; }
.mtsft-tree .supervised { opacity: 1; background: #bde5c0; color: #0b3d12; box-shadow: inset 0 0 0 1px #6fb877; }
.mtsft-tree .marker { outline: 1px dotted; outline-offset: -1px; font-size: .85em; }
.mtsft-tree sup, .mtsft-tree i { opacity: .8; font-size: .75em; }
.mtsft-tree .branch { position: relative; margin-left: .5em; padding-left: clamp(.7em, 2vw, 1.4em);
  border-left: 2px solid rgb(128 128 128 / .6); }
.mtsft-tree .branch::before { content: ""; position: absolute; left: -2px; top: 0; width: .6em; height: .8em;
  border: solid rgb(128 128 128 / .6); border-width: 0 0 2px 2px; border-bottom-left-radius: .5em; }
</style>"""


class TokenPiece(NamedTuple):
    """The tokens that make up one piece of readable text; mostly a single one.

    Attributes:
        text: fit to be shown, newlines as newlines.
        marker: whether it is a control token.
        starts_branch: whether it does not follow the piece before it.
        branch: how many pieces up to it start a branch.
        place: where it stands where branches are drawn.
        tokens: ids.
        index: of its first token in the tree.
        position: that token's depth.
        turn: turn index of its tokens, from 0 on.
        message: index of the one whose words they are, -1 for text of the template.
        weight: theirs, 0 for context.
        loss: -log Pr of them together, in nats; None where none is shown.
    """

    text: str
    marker: bool
    starts_branch: bool
    branch: int
    place: Place
    tokens: tuple[int, ...]
    index: int
    position: int
    turn: int
    message: int
    weight: float
    loss: float | None = None

    @property
    def supervised(self) -> bool:
        """Whether the model is trained to emit it."""
        return self.weight > 0


def token_pieces(
    tree: TokenTree, tokenizer: Tokenizer, losses: Mapping[int, float] = MappingProxyType({})
) -> Iterator[TokenPiece]:
    """The pieces of a tree in its order. Bytes that spell one character together are one piece.

    Args:
        tree: what to show.
        tokenizer: what its tokens are of.
        losses: -log Pr of tokens in nats, by their index in the tree; of those that are shown with it.
    """
    depths_N = positions(tree.parents_N)
    markers = {control.id for control in tokenizer.controls.values()}
    follows_N = tree.parents_N == np.arange(-1, len(tree) - 1)
    drawn, place = places(tree), Place(0, 0, False)
    goes_on_N = follows_N.copy()
    goes_on_N[[*drawn]] = False
    start = branch = 0
    while start < len(tree):
        branch += int(not follows_N[start])
        count, text = _read_piece(tree, tokenizer, start, goes_on_N)
        place = drawn.get(start, place._replace(opens=False))
        tokens = tree.tokens_N[start : start + count].tolist()
        yield TokenPiece(
            text=visible(text),
            marker=tokens[0] in markers,
            starts_branch=not follows_N[start],
            branch=branch,
            place=place,
            tokens=tuple(tokens),
            index=start,
            position=int(depths_N[start]),
            turn=int(tree.turn_ids_N[start]),
            message=int(tree.message_ids_N[start]),
            weight=float(tree.response_mask_N[start]),
            loss=sum(losses[i] for i in range(start, start + count)) if start in losses else None,
        )
        start += count


def _read_piece(tree: TokenTree, tokenizer: Tokenizer, start: int, goes_on_N: np.ndarray) -> tuple[int, str]:
    """How many tokens from `start` on make up a piece, and its text; goes_on_N: whether one may be in its middle."""
    for count in range(1, min(_LONGEST, len(tree) - start) + 1):
        span = slice(start, start + count)
        alike = (tree.turn_ids_N, tree.message_ids_N, tree.response_mask_N)
        if not goes_on_N[start + 1 : start + count].all() or any(len(set(f[span].tolist())) > 1 for f in alike):
            break
        ids = tree.tokens_N[span].tolist()
        text = tokenizer.decode(ids)
        if _BROKEN not in text or any(_BROKEN in tokenizer.piece(i) for i in ids):
            return count, text
    return 1, tokenizer.piece(tree.tokens_N[start])


def as_text(
    tree: TokenTree,
    tokenizer: Tokenizer,
    color: bool = True,
    turns: bool = False,
    losses: Mapping[int, float] = MappingProxyType({}),
) -> str:
    """A tree for a terminal: context dim, what is supervised bold and green, control tokens underlined.

    Without color, what is supervised stands in ⟦ ⟧. A weight that is not 1 stands first; a newline is shown as
    ⏎; a branch begins on a line of its own, with the depth at which it leaves the path before it. A loss is the
    background of its token; without color it stands after it in braces.

    Args:
        tree: what to show.
        tokenizer: what its tokens are of.
        color: whether to color it by escape codes.
        turns: whether to begin everything supervised with its turn, from 1 on, and the position of its first token.
        losses: as of `token_pieces`.
    """
    lines = []
    for starts_branch, weight, span in _spans(tree, tokenizer, losses):
        style = _BOLD_GREEN if weight else _DIM
        words = ""
        for piece in span:
            text = piece.text.replace("\n", f"{_NEWLINE}\n")
            text = f"{_UNDERLINE}{text}" if piece.marker and color else text
            if piece.loss is not None:
                text = loss_colors.on_terminal(text, piece.loss) + style if color else f"{text}{{{piece.loss:.2f}}}"
            elif piece.marker and color:
                text += f"{_RESET}{style}"
            words += text
        before, after = (style, _RESET) if color else ("⟦", "⟧") if weight else ("", "")
        branch = f"\n{_BRANCH} {span[0].position}: " if starts_branch else ""
        turn = f"[turn {span[0].turn + 1} at {span[0].position}]" if turns and weight else ""
        turn = f"{_DIM}{turn}{_RESET}" if color and turn else turn
        lines.append(f"{branch}{turn}{before}{_weight(weight)}{words}{after}")
    return "".join(lines)


def as_html(tree: TokenTree, tokenizer: Tokenizer) -> str:
    """A tree as a fragment of HTML that needs nothing else; all about a token is shown where the mouse rests on it."""
    return f"{STYLE}\n{as_fragment(tree, tokenizer)}"


def as_fragment(tree: TokenTree, tokenizer: Tokenizer, losses: Mapping[int, float] = MappingProxyType({})) -> str:
    """The same for a page that has STYLE already. Branches are boxes, beside one another and inside one another.

    Args:
        tree: what to show.
        tokenizer: what its tokens are of.
        losses: as of `token_pieces`; for a page that has `loss_colors.STYLE` as well.
    """
    parts, level, weight = [], 0, 0.0
    for piece in token_pieces(tree, tokenizer, losses):
        place = piece.place
        if place.opens or place.level < level:
            parts.append("</div>" * (level - place.level + place.opens))
            level = place.level
        if place.opens:
            parts.append(f'<div class="branch"><i>branch {place.box}, from position {piece.position} on</i>\n')
        if (place.opens or piece.starts_branch or piece.weight != weight) and _weight(piece.weight):
            parts.append(f"<sup>{_weight(piece.weight)}</sup>")
        weight = piece.weight
        kind = ("supervised" if piece.supervised else "context") + (" marker" if piece.marker else "")
        kind += f" {loss_colors.css_class(piece.loss)}" if piece.loss is not None else ""
        text = html.escape(piece.text).replace("\n", f"{_NEWLINE}\n")
        parts.append(f'<span class="{kind}" title="{html.escape(piece_title(piece))}">{text}</span>')
    return f'<div class="mtsft-tree">{"".join(parts)}{"</div>" * level}</div>'


def piece_title(piece: TokenPiece) -> str:
    """All about a piece, in one line; turns, messages and branches count from 1, positions from 0."""
    whose = f"message {piece.message + 1}" if piece.message >= 0 else "template"
    role = f"weight {piece.weight:g}" if piece.supervised else "context, weight 0"
    branch = f", branch {piece.place.box}" if piece.place.box else ""
    tokens = " ".join(map(str, piece.tokens))
    loss = f", {loss_colors.said(piece.loss)}" if piece.loss is not None else ""
    return f"token {tokens}, position {piece.position}{branch}, turn {piece.turn + 1}, {whose}, {role}{loss}"


def as_columns(fields: Mapping[str, np.ndarray], row: int = 0, start: int = 0, stop: int | None = None) -> str:
    """One row of a batch, a line for each field and a column for each slot.

    Args:
        fields: by name, arrays of shape (B, L).
        row: which of the B rows.
        start, stop: the slots shown; all where not given.
    """
    lines = {name: values_BxL[row, start:stop].tolist() for name, values_BxL in fields.items()}
    lines = {"slot": range(start, start + max(map(len, lines.values()))), **lines}
    cells = {name: [f"{value:g}" for value in values] for name, values in lines.items()}
    width = max((len(cell) for line in cells.values() for cell in line), default=0)
    label = max(map(len, cells))
    return "\n".join(f"{name:<{label}} " + " ".join(cell.rjust(width) for cell in cells[name]) for name in cells)


def visible(text: str) -> str:
    """`text` with characters that steer a terminal or reorder a line replaced by their names; newlines stay."""
    return "".join(_name_of(c) if c not in _HARMLESS and category(c) in _STEERING else c for c in text)


def _name_of(character: str) -> str:
    code = ord(character)
    return chr(0x2400 + code) if code < 0x20 else f"<U+{code:04X}>"


def _spans(
    tree: TokenTree, tokenizer: Tokenizer, losses: Mapping[int, float]
) -> Iterator[tuple[bool, float, list[TokenPiece]]]:
    """(starts a branch, weight, pieces) of each longest span of one weight on one branch."""
    pieces_in_order = token_pieces(tree, tokenizer, losses)
    for (_, weight), span in groupby(pieces_in_order, lambda piece: (piece.branch, piece.weight)):
        pieces = list(span)
        yield pieces[0].starts_branch, weight, pieces


def _weight(weight: float) -> str:
    return f"{_TIMES}{weight:g} " if weight not in (0, 1) else ""
