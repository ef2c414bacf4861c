"""What became of every dialogue read, as sums, so that nothing disappears uncounted."""

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field, fields

import numpy as np

from mtsft.dialogue.schema import Dialogue
from mtsft.encoding.token_tree import TokenTree, chain_tokens, context_lengths, is_one_chain, positions, response_ends
from mtsft.template.spans import TurnPlan

_EXAMPLES = 5  # kept of each kind of problem


@dataclass
class EncodingStats:
    """Counts of dialogues, responses and tokens; closed under +.

    Attributes:
        dialogues: read, whatever became of them.
        unreadable: lines that hold no dialogue, left out.
        responses: of the dialogues read, as `response_weights` chooses them.
        kept: dialogues that train.
        without_response: dialogues of which nothing trains.
        refused: dialogues that the template refuses or the tokenizer cannot encode, left out.
        oversized: dialogues that are larger than data.max_dialogue_bytes, left out unread.
        skipped_turns: responses left out as unfaithful.
        branching: dialogues whose tokens form a tree.
        not_prefix_preserving: dialogues in which an earlier turn does not read in the history as it was emitted.
        altered: responses whose tokens do not decode to their text (a tokenizer that normalizes).
        spelling: messages that spell a control token, encoded as plain text.
        reply_tokens: replies whose words hold added tokens, encoded as such.
        malformed: tool calls whose arguments are no JSON object.
        double_bos: dialogues whose first two tokens are BOS.
        over_length: dialogues longer than a row; of these,
        over_length_dropped: left out whole,
        over_length_cut: cut,
        over_length_windows: extra dialogues that the policy "windows" makes of them,
        over_length_responses: responses lost,
        over_length_supervised_tokens: supervised tokens lost,
        over_length_less_context: responses kept with a part of their context,
        over_length_context_lost: tokens of their contexts that were cut away,
        over_length_context: out of so many.
        tokens: of what is kept.
        chain_tokens: what that would come to as one chain per path.
        response_tokens: what it would come to as one sequence per response.
        supervised_tokens: tokens of a weight above 0.
        supervised_weight: the sum of their weights.
        unfaithful: responses by kind (a key of render_turns.UNFAITHFUL), whatever became of them.
        lost: messages (or tools) whose words no rendering shows, by field.
        unread: dialogues with keys of a file that nothing reads, by key.
        weight_rules: responses that a rule of data.weight_rules is for, by the name of the rule.
        untrained_spans: messages with spans that are no response.
        by_role: supervised tokens by the role of the message.
        by_turn: supervised tokens by turn index.
        examples: where the first few problems of every kind were met.
    """

    dialogues: int = 0
    unreadable: int = 0
    responses: int = 0
    kept: int = 0
    without_response: int = 0
    refused: int = 0
    oversized: int = 0
    skipped_turns: int = 0
    branching: int = 0
    not_prefix_preserving: int = 0
    altered: int = 0
    spelling: int = 0
    reply_tokens: int = 0
    malformed: int = 0
    double_bos: int = 0
    untrained_spans: int = 0
    over_length: int = 0
    over_length_dropped: int = 0
    over_length_cut: int = 0
    over_length_windows: int = 0
    over_length_responses: int = 0
    over_length_supervised_tokens: int = 0
    over_length_less_context: int = 0
    over_length_context_lost: int = 0
    over_length_context: int = 0
    tokens: int = 0
    chain_tokens: int = 0
    response_tokens: int = 0
    supervised_tokens: int = 0
    supervised_weight: float = 0.0
    unfaithful: Counter = field(default_factory=Counter)
    lost: Counter = field(default_factory=Counter)
    unread: Counter = field(default_factory=Counter)
    weight_rules: Counter = field(default_factory=Counter)
    by_role: Counter = field(default_factory=Counter)
    by_turn: Counter = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)

    def __add__(self, other: "EncodingStats") -> "EncodingStats":
        total = EncodingStats()
        for stats in (self, other):
            for item in fields(stats):
                value = getattr(stats, item.name)
                if item.name == "examples":
                    for kind, examples in value.items():
                        total.note(kind, *examples)
                elif isinstance(value, Counter):
                    getattr(total, item.name).update(value)  # + of Counters would drop zeros
                else:
                    setattr(total, item.name, getattr(total, item.name) + value)
        return total

    def as_record(self) -> dict:
        """All of it in plain values."""
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        return {name: dict(value) if isinstance(value, Counter) else value for name, value in values.items()}

    @classmethod
    def of(cls, record: dict) -> "EncodingStats":
        """From what `as_record` gave, by way of JSON."""
        counters = dict.fromkeys(("unfaithful", "lost", "unread", "weight_rules", "by_role"), str) | {"by_turn": int}
        made = {name: Counter({key(k): n for k, n in record[name].items()}) for name, key in counters.items()}
        return cls(**{**record, **made})

    def note(self, kind: str, *examples: str) -> None:
        """Keeps where a problem was met, of the first few of its kind."""
        kept = self.examples.setdefault(kind, [])
        kept += examples[: max(0, _EXAMPLES - len(kept))]

    def count_turns(self, dialogue: Dialogue, turn_plan: TurnPlan, spelling: Iterable[tuple[int, bool]]) -> None:
        """Counts what a template did with a dialogue, and what the dialogue holds that it should not.

        spelling: (message, whether it becomes that token) of those whose text spells a control token.
        """
        for turn in turn_plan.turns:
            if turn.unfaithful:
                self.unfaithful[turn.unfaithful] += 1
                self.note(f"unfaithful: {turn.unfaithful}", f"{dialogue.source}: message {turn.message + 1}")
                self.skipped_turns += not turn.trained
                if not turn.trained and turn.unfaithful != "refused":
                    self.note("left out", f"{dialogue.source}: message {turn.message + 1}")
        for i, name in turn_plan.lost:
            self.lost[name] += 1
            suffix = f": message {i + 1}" if i >= 0 else ""
            self.note(f"lost: {name}", f"{dialogue.source}{suffix}")
        for i, is_token in spelling:
            self.reply_tokens += is_token
            self.spelling += not is_token
            kind = "added tokens" if is_token else "spells a control token"
            self.note(kind, f"{dialogue.source}: message {i + 1}")
        for i, message in enumerate(dialogue.messages):
            for call in (message.fields or {}).get("tool_calls") or ():
                if isinstance(call.get("function", {}).get("arguments"), str):
                    self.malformed += 1
                    self.note("malformed arguments", f"{dialogue.source}: message {i + 1}")

    def count_untrained_spans(self, dialogue: Dialogue, responses: Collection[int]) -> None:
        """Counts the messages that have spans and are none of `responses`."""
        for i, message in enumerate(dialogue.messages):
            if message.spans is not None and message.weight and i not in responses:
                self.untrained_spans += 1
                self.note("untrained spans", f"{dialogue.source}: message {i + 1}")

    def count_unread(self, dialogue: Dialogue, keys: Sequence[str]) -> None:
        """Counts the keys of a dialogue that nothing reads."""
        for key in keys:
            self.unread[key] += 1
            self.note(f"unread: {key}", dialogue.source)

    def count_chains(self, lengths: np.ndarray, responses: np.ndarray, weights: np.ndarray, roles: Sequence[str]):
        """Counts dialogues that became chains, as `count_tree` would, from what is known without looking at them.

        Args:
            lengths: int (T,), tokens of each chain.
            responses: int (R, 3): turn, tokens and depth of the end of each response.
            weights: float32 (R,), of each token of the response.
            roles: of the messages that are the responses.
        """
        turns, tokens, ends = responses.T
        self.kept += len(lengths)
        self.tokens += int(lengths.sum())
        self.chain_tokens += int(lengths.sum())
        self.response_tokens += int(ends.sum())
        self.supervised_tokens += int(tokens.sum())
        self.supervised_weight += float(tokens @ weights)
        for turn in np.unique(turns).tolist():
            self.by_turn[turn] += int(tokens[turns == turn].sum())
        for role in dict.fromkeys(roles):
            self.by_role[role] += int(tokens[[each == role for each in roles]].sum())

    def count_tree(self, dialogue: Dialogue, tree: TokenTree) -> None:
        """Counts a tree that is kept."""
        mask = tree.response_mask_N
        supervised = np.flatnonzero(mask)
        if is_one_chain(tree):
            self.chain_tokens += len(tree)
            depths_N = range(len(tree))
        else:
            self.branching += 1
            depths_N = positions(tree.parents_N)
            self.chain_tokens += chain_tokens(tree, depths_N)
        self.response_tokens += sum(int(depths_N[end]) + 1 for end in response_ends(tree).tolist())
        self.tokens += len(tree)
        self.supervised_tokens += len(supervised)
        self.supervised_weight += float(mask.sum(dtype="float64"))
        for turn, count in enumerate(np.bincount(tree.turn_ids_N[supervised]).tolist()):
            if count:
                self.by_turn[turn] += count
        # A stop belongs to the message whose words it follows.
        owners = tree.message_ids_N[supervised]
        last = np.maximum.accumulate(np.where(owners >= 0, np.arange(len(owners)), -1))
        owners = np.where(last >= 0, owners[last], -1)
        for message, count in zip(*(values.tolist() for values in np.unique(owners, return_counts=True))):
            self.by_role[dialogue.messages[message].role if message >= 0 else "assistant"] += count

    def count_over_length(
        self, dialogue: Dialogue, whole: TokenTree, responses: int, trees: Sequence[TokenTree]
    ) -> None:
        """Counts a tree that was too long, with so many responses, and the trees that a policy made of it."""
        self.over_length += 1
        self.over_length_dropped += not trees
        self.over_length_cut += bool(trees)
        self.over_length_windows += max(len(trees) - 1, 0)
        self.over_length_responses += responses - sum(len(response_ends(tree)) for tree in trees)
        supervised = sum(np.count_nonzero(tree.response_mask_N) for tree in trees)
        self.over_length_supervised_tokens += int(np.count_nonzero(whole.response_mask_N) - supervised)
        true = context_lengths(whole) if trees else {}
        for message, left in (item for tree in trees for item in context_lengths(tree).items()):
            if left < (whole_context := true.get(message, 0)):
                self.over_length_less_context += 1
                self.over_length_context_lost += whole_context - left
                self.over_length_context += whole_context
                self.note("less context", f"{dialogue.source}: message {message + 1}")

    def count_double_bos(self, dialogue: Dialogue, first: Sequence[int], bos_id: int | None) -> None:
        """Counts a dialogue whose first tokens are two BOS."""
        if len(first) > 1 and first[0] == first[1] == bos_id:
            self.double_bos += 1
            self.note("double BOS", dialogue.source)
