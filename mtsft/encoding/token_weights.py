"""From the weights of characters to those of tokens: a token has the largest weight of the characters that it holds."""

from collections.abc import Sequence
from itertools import accumulate, pairwise

import numpy as np

from mtsft.encoding.text_ids import ControlPiece, Piece, TextIds
from mtsft.template.chat_template import TemplateRefusal
from mtsft.tokenizer.base import CONTINUATION, Tokenizer


def token_weights(pieces: Sequence[Piece], weights_C: np.ndarray, texts: TextIds, source: str) -> list[float]:
    """The weight of each token of a response.

    Args:
        pieces: of the response; `texts` has their ids.
        weights_C: of the characters of the text that the pieces make, (C,).
        texts: ids of texts.
        source: file and line of the dialogue, for errors.

    Raises:
        TemplateRefusal: the tokenizer changes the text (it normalises), where that leaves open which character is
            which.
    """
    weights, at = [], 0
    for piece in pieces:
        text = piece.text if type(piece) is ControlPiece else piece.key[0]
        of_text = weights_C[at : at + len(text)]
        at += len(text)
        if type(piece) is ControlPiece:
            weights.append(float(of_text.max()))
            continue
        ids = texts.ids[piece.key[1]][text]
        found = _of_text(texts.tokenizer, text, ids, piece.key[1] != CONTINUATION, of_text)
        if found is None:
            raise TemplateRefusal(
                f"{source}: the tokenizer changes the words of a response (it normalises them), so that which of its "
                "tokens hold which characters cannot be told; weigh whole messages"
            )
        weights += found
    return weights


def _of_text(
    tokenizer: Tokenizer, text: str, ids: Sequence[int], may_begin: bool, weights_C: np.ndarray
) -> list[float] | None:
    """The weights of the tokens of one text; None where that cannot be told.

    may_begin: whether the tokenizer may put a space before the text.
    """
    if (weights_C == weights_C[0]).all():
        return [float(weights_C[0])] * len(ids)
    codes = np.frombuffer(text.encode("utf-32-le"), np.uint32)
    weights_b = np.repeat(weights_C, 1 + (codes > 0x7F) + (codes > 0x7FF) + (codes > 0xFFFF))  # of its bytes
    lengths = [len(tokenizer.decode_bytes([i])) for i in ids]
    decoded, own = tokenizer.decode_bytes(ids), text.encode()
    if decoded != own:
        if may_begin and decoded == b" " + own:
            weights_b = np.append(weights_b[:1], weights_b)
        else:
            head = next((k for k, (a, b) in enumerate(zip(decoded, own)) if a != b), min(len(decoded), len(own)))
            most = min(len(decoded), len(own)) - head
            tail = next((k for k in range(most) if decoded[-1 - k] != own[-1 - k]), most)
            # Between them the tokenizer wrote something else, whose weight is known where all of it weighs the same.
            between = weights_b[max(head - 1, 0) : len(own) - tail + 1]
            if (between != between[0]).any():
                return None
            filled = np.full(len(decoded) - head - tail, between[0])
            weights_b = np.concatenate([weights_b[:head], filled, weights_b[len(own) - tail :]])
    ends = [0, *accumulate(lengths)]
    # A token that stands for nothing goes with what comes after it.
    return [float(weights_b[a : max(b, a + 1)].max()) if a < len(weights_b) else float(weights_b[-1])
            for a, b in pairwise(ends)]  # fmt: skip
