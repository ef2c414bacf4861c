"""Does the model use what was said earlier? Measured on the built-in corpus, by greedy decoding."""

import json
import sys
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

from mtsft.corpora import recall
from mtsft.dialogue.formats import parse_record
from mtsft.dialogue.schema import Dialogue
from mtsft.encoding.encoder import Encoder
from mtsft.encoding.token_tree import paths
from mtsft.model.generate import generate
from mtsft.model.parameters import Params
from mtsft.model.transformer import Model

_MAX_NEW = 32  # tokens of a reply; the corpus's longest answer has fewer


def measure(model: Model, params: Params, encoder: Encoder, corpus: Path) -> dict[str, Any]:
    """Share of replies that are exactly right, among turns that depend on earlier ones.

    Every reply is decoded greedily in its true context, and once more with the history hidden: after the last user
    message alone.

    Args:
        model: the decoder.
        params: all its parameters.
        encoder: of the dialogues that it was trained on.
        corpus: a file that `recall.write_corpus` wrote.

    Returns:
        {context_accuracy, hidden_history_accuracy, by_kind: {ask: accuracy}, turns}; the first two over the asks in
        recall.DEPENDING, by_kind over all.
    """
    asks, contexts, alone, answers = [], [], [], []
    encoder = _of_every_turn(encoder)
    for dialogue, kinds in _read(corpus):
        for (turn, context, answer), message_index in zip(paths(encoder(dialogue)), _responses(dialogue)):
            if kinds[turn] == "open":
                continue
            asks.append(kinds[turn])
            contexts.append(context.tolist())
            answers.append(answer.tolist())
            last = replace(dialogue, messages=dialogue.messages[message_index - 1 : message_index + 1])
            alone.append(paths(encoder(last))[0][1].tolist())
    stops = encoder.stop_ids
    size = encoder.tokenizer.vocab_size
    replies, blind = (
        generate(model, params, prompts, stops, _MAX_NEW, vocab_size=size) for prompts in (contexts, alone)
    )
    by_kind, hidden = defaultdict(list), []
    for ask, answer, reply, guess in zip(asks, answers, replies, blind):
        by_kind[ask].append(reply == answer)
        if ask in recall.DEPENDING:
            hidden.append(guess == answer)
    depending = [right for ask in recall.DEPENDING for right in by_kind[ask]]
    return {
        "context_accuracy": _mean(depending),
        "hidden_history_accuracy": _mean(hidden),
        "by_kind": {ask: round(_mean(right), 4) for ask, right in sorted(by_kind.items())},
        "turns": len(depending),
    }


def answered_conversation(model: Model, params: Params, encoder: Encoder, corpus: Path, index: int = 0) -> str:
    """One held-out conversation, the model answering, each turn in the true history; right and wrong marked."""
    dialogue, encoder = [dialogue for dialogue, _ in _read(corpus)][index], _of_every_turn(encoder)
    stops = encoder.stop_ids
    turns = paths(encoder(dialogue))
    contexts, size = [context.tolist() for _, context, _ in turns], encoder.tokenizer.vocab_size
    replies = iter(generate(model, params, contexts, stops, _MAX_NEW, vocab_size=size))
    lines = []
    for message in dialogue.messages:
        if message.role == "assistant":
            text = encoder.tokenizer.decode([token for token in next(replies) if token not in stops])
            verdict = "" if text == message.content else f"   (should be: {message.content})"
            lines.append(f"  model      {text}{verdict}")
        else:
            lines.append(f"  {message.role:<10} {message.content}")
    return "\n".join(lines)


def _of_every_turn(encoder: Encoder) -> Encoder:
    """The encoder of all turns, whichever of them were trained, in dialogues of any length."""
    return replace(encoder, config=replace(encoder.config, responses="all", trees="tree", sequence_length=sys.maxsize))


def _read(corpus: Path) -> list[tuple[Dialogue, list[str]]]:
    records = [json.loads(line) for line in corpus.read_text().splitlines()]
    return [(parse_record(record, str(corpus)), record["asks"]) for record in records]


def _responses(dialogue: Dialogue) -> list[int]:
    return [i for i, message in enumerate(dialogue.messages) if message.role == "assistant"]


def _mean(values: list[bool]) -> float:
    return sum(values) / max(len(values), 1)
