"""What dialogues turn out to be, counted as they are encoded; counts.py says what is counted."""

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

import numpy as np

from mtsft.dialogue.schema import Dialogue
from mtsft.encoding.stats import EncodingStats
from mtsft.encoding.token_tree import TokenTree, expand, is_one_chain, positions, response_ends
from mtsft.template.spans import TurnPlan

_REASONING = re.compile(r"\A<think>.*?</think>", re.DOTALL)


class Spelling:
    """Finds messages whose text spells a control token."""

    def __init__(self, controls: Collection[str]):
        self._spelled = re.compile("|".join(map(re.escape, controls)) or "(?!)")
        self._firsts = {text[0] for text in controls}
        self._thinks = "</think>" in controls  # as the marks of a reply's reasoning, not as words of its text

    def messages(self, dialogue: Dialogue) -> Iterator[int]:
        """The places of such messages."""
        texts = [m.content or "" if not m.fields else f"{m.content}{m.fields}" for m in dialogue.messages]
        whole = "\n".join(texts)
        if any(first in whole for first in self._firsts) and self._spelled.search(whole):
            for i, (message, text) in enumerate(zip(dialogue.messages, texts)):
                # The marks of a reply's reasoning are no words of its text.
                said = _REASONING.sub("", text) if self._thinks and message.role == "assistant" else text
                if self._spelled.search(said):
                    yield i


def count_turns(stats: EncodingStats, dialogue: Dialogue, turn_plan: TurnPlan, spelling: Spelling) -> None:
    """Counts what a template did with a dialogue, and what the dialogue holds that it should not."""
    for turn in turn_plan.turns:
        if turn.unfaithful:
            stats.unfaithful[turn.unfaithful] += 1
            stats.note(f"unfaithful: {turn.unfaithful}", f"{dialogue.source}: message {turn.message + 1}")
            stats.skipped_turns += not turn.trained
    for message, name in turn_plan.lost:
        stats.lost[name] += 1
        place = f": message {message + 1}" if message >= 0 else ""
        stats.note(f"lost: {name}", f"{dialogue.source}{place}")
    for i in spelling.messages(dialogue):
        stats.spelling += 1
        stats.note("spells a control token", f"{dialogue.source}: message {i + 1}")
    for i, message in enumerate(dialogue.messages):
        for call in (message.fields or {}).get("tool_calls") or ():
            if isinstance(call.get("function", {}).get("arguments"), str):
                stats.malformed += 1
                stats.note("malformed arguments", f"{dialogue.source}: message {i + 1}")


def count_chain(
    stats: EncodingStats,
    dialogue: Dialogue,
    length: int,
    responses: Iterable[tuple[int, int, int]],
    weights: Mapping[int, float],
) -> None:
    """Counts a dialogue that became a chain of so many tokens.

    responses: (turn, tokens, depth of the end) of each. weights: of each, in order, by the message that it is.
    """
    stats.kept += 1
    stats.tokens += length
    stats.chain_tokens += length
    for (turn, tokens, end), (message, weight) in zip(responses, weights.items()):
        stats.by_turn[turn] += tokens
        stats.by_role[dialogue.messages[message].role] += tokens
        stats.supervised_tokens += tokens
        stats.supervised_weight += tokens * weight
        stats.response_tokens += end


def count_tree(stats: EncodingStats, dialogue: Dialogue, tree: TokenTree) -> None:
    """Counts a tree that is kept."""
    mask = tree.response_mask_N
    supervised = np.flatnonzero(mask)
    if is_one_chain(tree):
        stats.chain_tokens += len(tree)
        depths_N = range(len(tree))
    else:
        stats.branching += 1
        stats.chain_tokens += sum(map(len, expand(tree)))
        depths_N = positions(tree.parents_N)
    stats.response_tokens += sum(int(depths_N[end]) + 1 for end in response_ends(tree).tolist())
    stats.tokens += len(tree)
    stats.supervised_tokens += len(supervised)
    stats.supervised_weight += float(mask.sum(dtype="float64"))
    turns = tree.turn_ids_N[supervised]
    for turn, count in enumerate(np.bincount(turns).tolist()):
        if count:
            stats.by_turn[turn] += count
    # A stop belongs to the message whose words it follows.
    owners = tree.message_ids_N[supervised]
    last = np.maximum.accumulate(np.where(owners >= 0, np.arange(len(owners)), -1))
    owners = np.where(last >= 0, owners[last], -1)
    for message, count in zip(*(values.tolist() for values in np.unique(owners, return_counts=True))):
        stats.by_role[dialogue.messages[message].role if message >= 0 else "assistant"] += count


def count_over_length(stats: EncodingStats, whole: TokenTree, responses: int, trees: Sequence[TokenTree]) -> None:
    """Counts a tree that was too long, with so many responses, and what a policy made of it."""
    stats.over_length += 1
    stats.over_length_dropped += not trees
    stats.over_length_cut += bool(trees)
    stats.over_length_windows += max(len(trees) - 1, 0)
    stats.over_length_responses += responses - sum(len(response_ends(tree)) for tree in trees)
    supervised = sum(np.count_nonzero(tree.response_mask_N) for tree in trees)
    stats.over_length_supervised_tokens += int(np.count_nonzero(whole.response_mask_N) - supervised)


def count_double_bos(stats: EncodingStats, dialogue: Dialogue, first: Sequence[int], bos_id: int | None) -> None:
    """Counts a dialogue whose first tokens are two BOS."""
    if len(first) > 1 and first[0] == first[1] == bos_id:
        stats.double_bos += 1
        stats.note("double BOS", dialogue.source)
