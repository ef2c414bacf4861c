"""What a tokenizer.json says, as data: what is done to a text before the model encodes it, and where a space is put.

Its *layout* here is the normalizer and the pre-tokenizer, trees of JSON objects (nodes) with a "type" each.
"""

import re
from collections.abc import Iterator, Mapping

from mtsft.errors import InputError
from mtsft.tokenizer.base import AFTER_CONTROL, CONTINUATION, SPACE, json_from

_LOSSY = ("WhitespaceSplit", "Whitespace", "BertPreTokenizer", "CharDelimiterSplit")


def read_layout(files: Mapping[str, bytes], source: str) -> dict:
    """The layout of a tokenizer.json.

    Returns:
        {"normalizer": node or None, "pre_tokenizer": node or None, "unk_id": the model's unknown piece or None,
        "byte_fallback": whether its vocabulary spells unknown characters in bytes}.

    Raises:
        InputError: it loses text: some texts cannot be decoded from their tokens.
    """
    content = json_from(files, "tokenizer.json", source)
    model = content.get("model") or {}
    kind = model.get("type")
    if kind in ("WordPiece", "WordLevel"):
        raise InputError(
            f"{source}: a {kind} tokenizer, from whose tokens no text comes back exactly; "
            "use a byte-level or SentencePiece one"
        )
    layout = {name: content.get(name) for name in ("normalizer", "pre_tokenizer")}
    for node in nodes(layout["pre_tokenizer"]):
        if node.get("type") in _LOSSY or (
            node.get("type") in ("Split", "Punctuation") and node.get("behavior") == "Removed"
        ):
            raise InputError(
                f"{source}: its pre-tokenizer {node['type']} throws spaces away, so that no text comes back from its "
                "tokens exactly; use a byte-level or SentencePiece one"
            )
    return {**layout, "unk_id": model.get("unk_id"), "byte_fallback": bool(model.get("byte_fallback"))}


def at_edge(layout: dict, edge: int) -> dict:
    """The layout of the same tokenizer for texts at one edge: without the space that it puts before texts at others."""

    def edit(node: dict) -> dict | None:
        kind = node.get("type")
        if kind == "Metaspace":
            default = "always" if node.get("add_prefix_space", True) else "never"
            scheme = node.get("prepend_scheme", default)
            if edge == CONTINUATION or (edge == AFTER_CONTROL and scheme == "first"):
                scheme = "never"
            return {
                "type": kind,
                "replacement": node.get("replacement", SPACE),
                "prepend_scheme": scheme,
                "split": node.get("split", True),
            }
        if edge == CONTINUATION and kind == "Prepend":
            return None
        if edge == CONTINUATION and kind == "ByteLevel" and "add_prefix_space" in node:
            return {**node, "add_prefix_space": False}
        for name in ("normalizers", "pretokenizers"):
            if name in node:
                return {**node, name: [kept for inner in node[name] if (kept := edit(inner)) is not None]}
        return node

    return {name: edit(layout[name]) if layout[name] else None for name in ("normalizer", "pre_tokenizer")}


def nodes(part: object) -> Iterator[dict]:
    """Every JSON object in a part of a layout."""
    if isinstance(part, dict):
        yield part
    for inner in part.values() if isinstance(part, dict) else part if isinstance(part, list) else ():
        yield from nodes(inner)


def has(part: object, kind: str) -> bool:
    """Whether a part of a layout has a node of that type."""
    return any(node.get("type") == kind for node in nodes(part))


def space_of(layout: dict) -> str | None:
    """The character that stands for a space inside pieces, if any does."""
    for node in nodes([layout["normalizer"], layout["pre_tokenizer"]]):
        if node.get("type") == "Metaspace":
            return node.get("replacement", SPACE)
        if node.get("type") == "Replace" and node.get("pattern") == {"String": " "} and len(node["content"]) == 1:
            return node["content"]
    return None


def byte_of(piece: str) -> int | None:
    """The byte that a piece of byte fallback stands for, `<0xE2>`, or None."""
    return int(piece[3:5], 16) if len(piece) == 6 and re.fullmatch("<0x[0-9A-F]{2}>", piece) else None


def _byte_characters() -> dict[int, str]:
    """GPT-2's characters for bytes: itself where it can be seen, else one from U+0100 on."""
    seen = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in seen]
    return {byte: chr(byte) for byte in seen} | {byte: chr(256 + i) for i, byte in enumerate(hidden)}


BYTE_CHARACTERS = _byte_characters()
_BYTES = {character: byte for byte, character in BYTE_CHARACTERS.items()}


def unmapped(piece: str) -> bytes:
    """The bytes that a byte-level piece stands for."""
    try:
        return bytes([_BYTES[character] for character in piece])
    except KeyError:  # a piece of another making
        return piece.encode()
