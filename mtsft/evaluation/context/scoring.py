"""Responses after other histories, encoded as training would and scored; of each, the sum of its loss."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mtsft.dialogue.schema import Dialogue
from mtsft.encoding.encoder import Encoder
from mtsft.encoding.loss_weights import response_weights
from mtsft.encoding.spec import EncodingSpec
from mtsft.encoding.token_tree import TokenTree
from mtsft.evaluation.context.rounds import Response, responses_of
from mtsft.evaluation.context.variants import TRUE, Variation

REFUSED = "the template or the tokenizer refuses it, or nothing of it is supervised"
TOO_LONG = "longer than a row"
OTHER_TOKENS = "the response has other tokens there"
_CHUNK_TOKENS = 1 << 19  # that are held at once, or one dialogue

# Trees, each one chain -> the sum of -log Pr of the supervised tokens of each, float64 (T,).
Score = Callable[[Sequence[TokenTree]], np.ndarray]


class ScoredResponse(NamedTuple):
    """A response, and its loss after every history that there is.

    Attributes:
        dialogue: the number of its dialogue, from 0.
        id, source: of the dialogue.
        turn: how many messages of the assistant stand before it.
        rounds: of its history.
        tokens: that are supervised, the same ones after every history.
        nll: the sum of their -log Pr in nats, by the name of the variant.
    """

    dialogue: int
    id: str
    source: str
    turn: int
    rounds: int
    tokens: int
    nll: dict[str, float]


@dataclass
class LeftOut:
    """What could not be compared, by (variant, why): how many responses, and where the first one stands."""

    counts: Counter = field(default_factory=Counter)
    first: dict[tuple[str, str], str] = field(default_factory=dict)

    def add(self, variant: str, why: str, where: str) -> None:
        """Counts a response."""
        self.counts[variant, why] += 1
        self.first.setdefault((variant, why), where)


class Scored(NamedTuple):
    """All responses that could be scored after their true history, how many dialogues they are of, what is left out."""

    responses: list[ScoredResponse]
    dialogues: int
    left_out: LeftOut


def score_variants(
    dialogues: Iterable[tuple[Path, Dialogue]],
    spec: EncodingSpec,
    variation: Variation,
    score: Score,
    row_length: int,
    watch: Callable[[], None] = lambda: None,
) -> Scored:
    """Scores the responses of dialogues after all of their histories; so many at a time that memory is bounded.

    Args:
        dialogues: each with the file that it was read from.
        spec: how the run encodes them, and which of their messages are responses.
        variation: what is done to their histories.
        score: of the model.
        row_length: tokens of a row; what is longer is left out.
        watch: called after each dialogue.
    """
    encoder, found = last_response_encoder(spec), Scored([], 0, LeftOut())
    number, chunk = -1, _Chunk()
    for number, (path, dialogue) in enumerate(dialogues):
        responses = list(responses_of(dialogue, response_weights(dialogue, spec.config)))
        variants = [list(variation.of(path, number, response)) for response in responses]
        trees = iter(_trees(encoder, [each.dialogue for of in variants for each in of if each.dialogue], row_length))
        for response, of_response in zip(responses, variants, strict=True):
            made = {each.name: next(trees) if each.dialogue else each.why for each in of_response}
            chunk.add(number, response, made, found.left_out)
        if chunk.tokens >= _CHUNK_TOKENS:
            found.responses.extend(chunk.scored(score))
            chunk = _Chunk()
        watch()
    found.responses.extend(chunk.scored(score))
    return found._replace(dialogues=number + 1)


class _Chunk:
    """Responses that wait to be scored, and the trees that they are scored by, each once.

    Attributes:
        tokens: of all trees.
    """

    def __init__(self):
        self.tokens = 0
        self._trees: list[TokenTree] = []
        self._waiting: list[tuple[ScoredResponse, dict[str, int]]] = []  # the tree of each variant

    def add(self, number: int, response: Response, made: dict[str, TokenTree | str], left_out: LeftOut) -> None:
        """Adds a response and its trees by variant, or why there is none; what cannot be compared is counted."""
        where = f"{response.dialogue.source}: message {response.message + 1}"
        true = made[TRUE]
        if isinstance(true, str):
            left_out.add(TRUE, true, where)
            return
        own, places, of_tokens = supervised(true), {}, {}
        for name, tree in made.items():
            if not isinstance(tree, str) and not np.array_equal(supervised(tree), own):
                tree = OTHER_TOKENS
            if isinstance(tree, str):
                left_out.add(name, tree, where)
                continue
            places[name] = of_tokens.setdefault(tree.tokens_N.tobytes(), len(self._trees))
            if places[name] == len(self._trees):
                self._trees.append(tree)
                self.tokens += len(tree)
        about = response.dialogue.id, response.dialogue.source, response.turn, response.rounds
        self._waiting.append((ScoredResponse(number, *about, len(own), {}), places))

    def scored(self, score: Score) -> Iterator[ScoredResponse]:
        """The responses, scored."""
        nll_T = score(self._trees) if self._trees else np.zeros(0)
        for response, places in self._waiting:
            yield response._replace(nll={name: float(nll_T[place]) for name, place in places.items()})


def score_last_responses(
    dialogues: Sequence[Dialogue], spec: EncodingSpec, score: Score, row_length: int
) -> list[tuple[int, float] | str]:
    """Of each dialogue's last response (supervised tokens, sum of their -log Pr in nats), or why it has none."""
    trees = _trees(last_response_encoder(spec), dialogues, row_length)
    kept = [tree for tree in trees if not isinstance(tree, str)]
    nll = iter(score(kept).tolist() if kept else [])
    return [tree if isinstance(tree, str) else (len(supervised(tree)), next(nll)) for tree in trees]


def last_response_encoder(spec: EncodingSpec) -> Encoder:
    """An encoder of whole dialogues, of which the assistant's last message alone is supervised; nothing is an error."""
    return spec.without_errors().of_any_length().with_config(responses="last", weigh_per="token").encoder()


def supervised(tree: TokenTree) -> np.ndarray:
    """The tokens of a tree that are supervised, in order."""
    return tree.tokens_N[tree.response_mask_N > 0]


def _trees(encoder: Encoder, dialogues: Sequence[Dialogue], row_length: int) -> list[TokenTree | str]:
    """The tree of each dialogue, or why there is none."""
    found: list[TokenTree | str] = [REFUSED] * len(dialogues)
    for index, tree in encoder.encode(dialogues)[0]:
        if tree.response_mask_N.any():
            found[index] = tree if len(tree) <= row_length else TOO_LONG
    return found
