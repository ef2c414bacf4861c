"""What is wrong with a dataset, as an audit tells it: how grave, what, how often, where, and what to do."""

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from mtsft.encoding.spec import EncodingSpec
from mtsft.encoding.weight_rules import weight_rules

# Words by which a key looks as if it said what is trained, or what the model should read.
_TELLING = frozenset(
    "loss mask train training trained weight weights label reward system instruction instructions document documents "
    "tool tools call calls function functions reasoning thinking thought thoughts plan".split()
)
_WRITES_CALLS = "use a template that writes calls, as data.template='chatml-tools'"

Report = dict[str, Any]


def _problem(severity: str, what: str, count: int, examples: Sequence[str] = (), remedy: str = "") -> Report:
    return {"severity": severity, "what": what, "count": count, "examples": list(examples), "remedy": remedy}


_Check = tuple[str, str, int, str, str]  # severity, kind (of EncodingStats.examples), how often, what, remedy


def problems_of_side(name: str, part: Report, spec: EncodingSpec) -> Iterator[Report]:
    """What is wrong with one side of a dataset under the policies of its config.

    Args:
        name: "train" or "eval".
        part: what an audit says of it.
        spec: of the run.
    """
    examples = part["examples"]
    side = "" if name == "train" else "held out: "

    def where_counted(checks: Iterable[_Check]) -> Iterator[Report]:
        for severity, kind, count, what, remedy in checks:
            if count:
                yield _problem(severity, side + what, count, examples.get(kind, ()), remedy)

    yield from where_counted(
        [("error", "unreadable", part["unreadable"], "lines that hold no dialogue", "repair or remove them")]
    )
    if not part["kept"]:
        severity, goal = ("error", "left to train on") if name == "train" else ("warning", "held out")
        what, remedy = f"dialogues read, and none is {goal}", f"see data.{name} and what becomes of them here"
        yield _problem(severity, what, part["dialogues"], (), remedy)
    yield from where_counted(_checks(part, spec))


def _checks(part: Report, spec: EncodingSpec) -> list[_Check]:
    """All that may be wrong with one side of a dataset."""
    config = spec.config
    # What a policy leaves out, or trains otherwise, stops a run where the policy is "error".
    unfaithful, refused, over_length = (
        "error" if policy == "error" else "warning"
        for policy in (config.unfaithful, config.refused, config.over_length)
    )
    template = "set data.unfaithful to 'skip' or 'emit', or use another template"
    kinds = part["unfaithful"]
    own_words = template
    if part["lost"].get("tool_calls"):  # which have no form without the template, so that "emit" has none either
        own_words = f"{_WRITES_CALLS}; 'skip' and 'emit' leave these turns out"
    left_out = part["skipped_turns"] - kinds.get("refused", 0) if config.unfaithful == "emit" else 0
    cut = part["over_length"]["policies"].get(config.over_length, {})
    lost = [
        ("warning", f"lost: {field}", count, f"messages whose {field} the template leaves out of every rendering",
         _WRITES_CALLS if field in ("tool_calls", "tools") else "see whether the model should know it")
        for field, count in sorted(part["lost"].items())
    ]  # fmt: skip
    return [
        ("error", "other authors", part["other_authors"],
         "dialogues that train a message to say words of another one",
         "this is a fault of the program; report it with the template and a dialogue, and do not train on these"),
        (unfaithful, "unfaithful: prompt", kinds.get("prompt", 0),
         "responses in a prompt that the full rendering does not begin with", template),
        (unfaithful, "unfaithful: others", kinds.get("others", 0),
         "responses in which the template writes words of other messages", template),
        (refused, "unfaithful: refused", kinds.get("refused", 0), "responses to messages that the template refuses",
         "set data.refused='skip' to leave them out, give them the weight 0, or choose others by data.responses"),
        (unfaithful, "unfaithful: lost", kinds.get("lost", 0),
         "responses of which the template loses words", own_words),
        (unfaithful, "unfaithful: stop", kinds.get("stop", 0),
         "responses without a stop", "name the token that ends a turn in data.stops"),
        ("warning", "left out", left_out, "responses that 'emit' leaves out, as the template writes no call or no stop",
         f"{_WRITES_CALLS}, or name a stop in data.stops"),
        (refused, "refused", part["refused"], "dialogues that the template refuses or the tokenizer cannot spell",
         "set data.refused='skip' to leave them out, or use another template"),
        (refused, "oversized", part["oversized"],
         f"dialogues of more than {config.max_dialogue_bytes:,} bytes, which are not read",
         "raise data.max_dialogue_bytes, remove them, or set data.refused='skip' to leave them out"),
        ("error", "double BOS", part["double_bos"], "dialogues that begin with two BOS tokens",
         "the chat template writes it twice; use another data.template"),
        (over_length, "over length", part["over_length"]["dialogues"],
         f"dialogues longer than a row of {part['row_length']:,}",
         "raise data.sequence_length, or set data.over_length; its policies and their cost are listed"),
        ("warning", "less context", cut.get("less_context", 0),
         f"responses trained on a part of their context: over_length={config.over_length!r} cuts "
         f"{cut.get('context_tokens_lost', 0):,} of its {cut.get('context_tokens', 0):,} tokens",
         "raise data.sequence_length to keep more"),
        ("warning", "empty reply", part["empty_replies"],
         "responses without a word, which teach the model to say nothing",
         "remove them, or give these messages the weight 0"),
        *lost,
        *(("warning" if _matters(key) else "note", f"unread: {key}", count,
           f"dialogues with the key {key!r}, which nothing reads",
           "see whether it says something that the model, or the training, should know")
          for key, count in sorted(part["unread"].items())),
        ("warning", "altered", part["altered"], "responses that the tokenizer cannot spell to the byte (it normalises)",
         "none is needed if the model was trained with it"),
        ("note", "spells a control token", part["spelling"], "messages that spell a control token",
         "they are encoded as plain text"),
        ("note", "added tokens", part["reply_tokens"], "replies whose words hold added tokens of the tokenizer",
         "they are encoded as these tokens; set data.added_tokens_in_replies=False for plain text"),
        ("warning", "malformed arguments", part["malformed"], "tool calls whose arguments are not a JSON object",
         "repair them"),
        ("warning", "", part["without_response"], "dialogues without a response to train", "they are left out"),
        ("warning", "duplicate", part["duplicates"], "dialogues whose words all stood before", "remove them"),
        *(("warning", "", 1, f"a rule of data.weight_rules that is for nothing here: {name}",
           "see whether it is meant for other data, or spelled otherwise")
          for name in weight_rules(config.weight_rules).names if part["kept"] and not part["weight_rules"].get(name)),
        ("warning", "untrained spans", part["untrained_spans"], "messages with spans that are no response",
         "name their role in data.responses, or remove the spans"),
        ("note", "", part["not_prefix_preserving"],
         "dialogues in which the template shows an earlier turn otherwise than it was emitted",
         "each response is trained in its true context, as a tree"),
    ]  # fmt: skip


def _matters(key: str) -> bool:
    """Whether a key that nothing reads is named as what the model, or the training, should know."""
    return not _TELLING.isdisjoint(re.split("[^a-z]+", re.split(r"[.:] ?", key)[-1].lower()))


def problems_of_all(report: Report, shared: Sequence[str]) -> Iterator[Report]:
    """What is wrong with the dataset as a whole. shared: where dialogues stand that are held out too."""
    if report["shared"]:
        what = "dialogues stand in training and held out"
        yield _problem("warning", what, report["shared"], shared, "remove them from one")
    if report["tokenizer"]["pad_is_eos"]:
        yield _problem(
            "note", "the padding token is the EOS token", 1, (), "harmless here: padding is never guessed from it"
        )
