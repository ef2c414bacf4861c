"""Instructions given over several messages, given at once, and cut elsewhere (Laban et al. 2025, arXiv:2505.06120).

The paper shows that models do worse where an instruction comes in shards, over several turns, than where it comes at
once. Here the words of the user up to a response are

    sharded    as they were said
    concat     one message, nothing of the assistant between
    resharded  cut at other ends of sentences into as many messages as before; what the assistant said stays between

In the paper the assistant answers each shard anew; here its turns are the dialogue's, so that losses can be compared.
"""

import math
import re
from dataclasses import replace
from itertools import combinations, pairwise

import numpy as np

from mtsft.dialogue.schema import Dialogue
from mtsft.evaluation.context.perturb import with_text
from mtsft.evaluation.context.rounds import Response

# A sentence, and the white space behind it.
_SENTENCE = re.compile(r".+?(?:[.!?…]+[\"')\]]*\s+|[\u3002\uff01\uff1f]+\s*|\n+|\Z)", re.DOTALL)


def concat(response: Response) -> Dialogue:
    """The user's messages at once, and nothing of the assistant before the response."""
    user, *rest = response.own_round
    said = with_text(user, "".join(_sentences(response)).strip())
    return replace(response.dialogue, messages=(*response.head, said, *rest))


def reshardings(response: Response, count: int, rng: np.random.Generator) -> list[Dialogue]:
    """The same words cut into as many messages, in different ways.

    Args:
        response: with at least two messages of the user before it.
        count: of the ways, at most.
        rng: that draws them.

    Returns:
        Fewer than `count` where there are fewer ways, the dialogue's own among them; none where there is one way alone.
    """
    sentences, users = _sentences(response), _users(response)
    ends, cuts = len(sentences) - 1, len(users) - 1
    ways = math.comb(ends, cuts) if ends >= cuts else 0
    if ways < 2:
        return []
    if ways <= count:
        chosen = list(combinations(range(1, ends + 1), cuts))
    else:
        drawn: dict[tuple[int, ...], None] = {}  # in order
        while len(drawn) < count:
            drawn[tuple(sorted((1 + rng.choice(ends, cuts, replace=False)).tolist()))] = None
        chosen = list(drawn)
    return [_cut(response, sentences, users, (0, *way, len(sentences))) for way in chosen]


def user_messages(response: Response) -> int:
    """How many messages of the user stand before the response."""
    return len(_users(response))


def _users(response: Response) -> list[int]:
    return [i for i, message in enumerate(response.dialogue.messages) if message.role == "user"]


def _sentences(response: Response) -> list[str]:
    """All that the user said, a message in a line of its own."""
    texts = [response.dialogue.messages[i].content or "" for i in _users(response)]
    return [sentence for text in texts if text.strip() for sentence in _SENTENCE.findall(text.strip() + "\n")]


def _cut(response: Response, sentences: list[str], users: list[int], bounds: tuple[int, ...]) -> Dialogue:
    messages = [*response.dialogue.messages]
    for user, (start, end) in zip(users, pairwise(bounds), strict=True):
        messages[user] = with_text(messages[user], "".join(sentences[start:end]).strip())
    return replace(response.dialogue, messages=tuple(messages))
