"""What the model says in held-out contexts, beside what the dialogues have there."""

from collections.abc import Callable, Sequence
from typing import Any

from mtsft.data.store import Store
from mtsft.encoding.token_tree import paths
from mtsft.tokenizer.base import Tokenizer


def replies(
    generate: Callable[[list[list[int]]], list[list[int]]],
    store: Store,
    tokenizer: Tokenizer,
    stop_ids: Sequence[int],
    limit: int = 0,
) -> list[dict[str, Any]]:
    """A record for every supervised response of the first dialogues of a store, in order.

    Args:
        generate: prompts -> what the model says after each.
        store: of held-out dialogues.
        tokenizer: of the store.
        stop_ids: tokens that end a turn.
        limit: dialogues; 0 for all.

    Returns:
        Records with the dialogue's id and source (file:line), the turn (counted from 0), the prompt, the reference and
        the reply as text (the last two without their stop), whether the reply came to a stop, and whether its tokens
        are those of the reference.
    """
    turns, contexts, answers = [], [], []
    for index in range(min(limit or len(store), len(store))):
        for turn, context, answer in paths(store[index]):
            turns.append((index, turn))
            contexts.append(context.tolist())
            answers.append(answer.tolist())

    def text(tokens: list[int]) -> str:
        return tokenizer.decode(tokens[:-1] if tokens and tokens[-1] in stop_ids else tokens)

    records = []
    for (index, turn), context, answer, reply in zip(turns, contexts, answers, generate(contexts), strict=True):
        path, line = store.source(index)
        records.append(
            {
                "id": store.id(index),
                "source": f"{path}:{line}",
                "turn": turn,
                "prompt": tokenizer.decode(context),
                "reference": text(answer),
                "reply": text(reply),
                "stopped": bool(reply) and reply[-1] in stop_ids,
                "same": reply == answer,
            }
        )
    return records
