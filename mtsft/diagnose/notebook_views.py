"""What Python hands out and a notebook shows: dialogues as trained on, batches, records; in a terminal, their text."""

import base64
import html
import io
from collections.abc import Mapping, Sequence
from typing import Any

from mtsft.data.batches import PackedBatch
from mtsft.data.store import Store
from mtsft.diagnose.token_view import STYLE, as_columns, as_fragment, as_html, as_text, visible
from mtsft.encoding.token_tree import TokenTree
from mtsft.tokenizer.base import Tokenizer

_SHOWN_DIALOGUES = 5
_SHOWN_SLOTS = 24  # of a row: about the width of a page


class ShownText(str):
    """Lines that are shown as they are, in a notebook and at a prompt."""

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(visible(self))}</pre>"


class EncodedDialogue:
    """One dialogue as it is trained on, the supervised tokens marked.

    Attributes:
        tree: its tokens, which of them are supervised, and with which weights.
        tokenizer: what the tokens are of.
        id: the dialogue's own name.
        source: the file and the line it was read from, as "FILE:LINE".
    """

    def __init__(self, tree: TokenTree, tokenizer: Tokenizer, id: str = "", source: str = ""):
        self.tree, self.tokenizer, self.id, self.source = tree, tokenizer, id, source

    def __len__(self) -> int:
        return len(self.tree)

    def __repr__(self) -> str:
        return as_text(self.tree, self.tokenizer, color=False)

    def _repr_html_(self) -> str:
        return as_html(self.tree, self.tokenizer)


class EncodedDialogues(Sequence):
    """The dialogues of a store, in order; a slice is again such a sequence."""

    def __init__(self, store: Store, tokenizer: Tokenizer, indices: range | None = None):
        self._store, self._tokenizer = store, tokenizer
        self._indices = range(len(store)) if indices is None else indices

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index):
        if isinstance(index, slice):
            return EncodedDialogues(self._store, self._tokenizer, self._indices[index])
        number = self._indices[index]
        source = "{}:{}".format(*self._store.source(number))
        return EncodedDialogue(self._store[number], self._tokenizer, self._store.id(number), source)

    def __repr__(self) -> str:
        return f"<{len(self):,} dialogues>"

    def _repr_html_(self) -> str:
        parts = [STYLE]
        for dialogue in self[:_SHOWN_DIALOGUES]:
            title = html.escape(visible(f"{dialogue.id} ({dialogue.source}; {len(dialogue):,} tokens)"))
            parts.append(f"<p>{title}</p>\n{as_fragment(dialogue.tree, dialogue.tokenizer)}")
        if len(self) > _SHOWN_DIALOGUES:
            parts.append(f"<p>and {len(self) - _SHOWN_DIALOGUES:,} more</p>")
        return "\n".join(parts)


class ShownBatch(PackedBatch):
    """A PackedBatch that shows its rows as aligned columns."""

    __slots__ = ()

    def columns(self, start: int = 0, stop: int | None = None, row: int = 0) -> ShownText:
        """Slots of a row, a line for each field and a column for each slot.

        Args:
            start: the first slot.
            stop: the slot after the last one; None for the end of the row.
            row: of the batch.
        """
        return ShownText(as_columns(self._asdict(), row, start, stop))

    def __repr__(self) -> str:
        return str(self.columns(0, _SHOWN_SLOTS))

    def _repr_html_(self) -> str:
        return self.columns(0, _SHOWN_SLOTS)._repr_html_()


class ShownRecord(dict):
    """A JSON record that a notebook shows as a table."""

    def _repr_html_(self) -> str:
        return _table(self)


class ShownFigures(dict):
    """matplotlib Figures by name, which a notebook shows one after the other, whatever its backend."""

    def _repr_html_(self) -> str:
        return "\n".join(_image(name, figure) for name, figure in self.items())


def _image(name: str, figure: Any) -> str:
    """A figure as an element of a page."""
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=90)
    source = f"data:image/png;base64,{base64.b64encode(content.getvalue()).decode()}"
    return f'<img alt="{html.escape(visible(name))}" src="{source}" style="max-width:100%">'


def _table(record: Mapping[str, Any]) -> str:
    """A line for each key; what is itself a record can be unfolded."""
    lines, unfolded = [], []
    for name, value in record.items():
        if isinstance(value, Mapping):
            unfolded.append(f"<details><summary>{_cell(name)}</summary>{_table(value)}</details>")
        elif isinstance(value, list) and value and all(isinstance(each, Mapping) for each in value):
            unfolded.append(f"<p>{_cell(name)}</p>{_table_of_records(value)}")
        else:
            lines.append(f"<tr><th style='text-align:left'>{_cell(name)}</th><td>{_cell(value)}</td></tr>")
    return f"<table>{''.join(lines)}</table>{''.join(unfolded)}" if lines else "".join(unfolded)


def _table_of_records(records: Sequence[Mapping[str, Any]]) -> str:
    """A column for each key of records that have the same keys."""
    head = "".join(f"<th>{_cell(name)}</th>" for name in records[0])
    lines = ("".join(f"<td>{_cell(value)}</td>" for value in record.values()) for record in records)
    return f"<table><tr>{head}</tr>{''.join(f'<tr>{line}</tr>' for line in lines)}</table>"


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1e-2 else f"{value:,.4f}"
    return f"{value:,}" if type(value) is int else html.escape(visible(str(value)))
