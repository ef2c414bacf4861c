# ruff: noqa: RUF001
"""Against transformers: any dialogue, any family's template and tokenizer: the same text, the same ids.

oracle.py says what is compared; what differs is counted under its name, and nothing else may. With -s every test prints
its row: how many renderings and turns, and how many of them are identical or differ, and why.
"""

import json
import re
import unicodedata
from collections import Counter
from dataclasses import replace

import families
import handmade
import pytest
from families import FAMILIES

from mtsft.dialogue.formats import parse_record
from mtsft.encoding.loss_weights import response_weights
from mtsft.encoding.token_tree import is_one_chain
from mtsft.errors import InputError

transformers = pytest.importorskip("transformers")
if families.trl_templates() is None:
    pytest.skip("needs the chat templates of trl, from the parity extra", allow_module_level=True)

import oracle  # noqa: E402 (which needs transformers)

pytestmark = pytest.mark.parity

FILES = [
    "glaive_toolcall_en", "kdconv_zh", "mt_bench_reference", "mtbench101", "oasst_trees_en", "oasst_trees_zh",
    "preference_pairs_en_trees", "reasoning_tool_use", "sgd_train_plain", "sgd_train_tools", "taskmaster4_train",
    "taskmaster4_valid", "tau_airline_tools",
]  # fmt: skip
DIALOGUES = [parse_record(record, record["id"]) for record in handmade.records()]


@pytest.fixture(autouse=True)
def _today(monkeypatch):
    monkeypatch.setattr(transformers.utils.chat_template_utils, "datetime", oracle.Now)


@pytest.fixture(scope="session")
def real(real_data_folder):
    """The dialogues of a file of real ones, each file read once; None where it is not there."""
    read = {}

    def find(name):
        if name not in read:
            path = real_data_folder / f"{name}.jsonl"
            read[name] = oracle.read(path) if path.exists() else None
        return read[name]

    return find


@pytest.fixture(scope="session")
def pairs(real, tmp_path_factory):
    """A family in transformers and in mtsft, by its name; tokenizers of one kind share what they learnt."""
    learnt, opened = {}, {}

    def texts():
        yield from [json.dumps(record, ensure_ascii=False) for record in handmade.records()] * 3
        for name in FILES:
            for dialogue in oracle.sample(real(name) or (), 12):
                yield from (message.content or "" for message in dialogue.messages)

    def find(name, **changes):
        family = replace(FAMILIES[name], **changes)
        if family.kind not in learnt:
            learnt[family.kind] = families.train(family.kind, list(texts()))
        key = (name, repr(changes))
        if key not in opened:
            folder = tmp_path_factory.mktemp("tokenizer")
            opened[key] = oracle.Pair(family, families.write(family, learnt[family.kind], folder))
        return opened[key]

    return find


def show(name, stats):
    print(f"\n{name}: " + ", ".join(f"{value} {key}" for key, value in stats.items() if value), end="")


def dialogue(messages, **more):
    return parse_record({"messages": messages, **more}, "here")


def replies(pair, dialogue, **changes):
    """(context, response) of every reply that trains, as text."""
    encoder = pair.spec.with_config(**changes).encoder()
    grown = encoder.grow(dialogue, response_weights(dialogue, encoder.config))
    found = [oracle.path_ids(grown.tree, first, end) for first, end, _ in grown.responses]
    return [tuple(map(pair.ours.decode, ids)) for ids in found]


@pytest.mark.parametrize("name", FAMILIES)
def test_dialogues_written_by_hand(name, pairs):
    stats, different = oracle.compare(pairs(name), DIALOGUES)
    show(name, stats)
    assert not different
    assert stats["turns: identical"] > 5


@pytest.mark.parametrize("name", FAMILIES)
def test_real_dialogues(name, pairs, real, real_data):
    real_data(f"{FILES[0]}.jsonl")
    total, different = Counter(), []
    for file in FILES:
        found = oracle.compare(pairs(name), oracle.sample(real(file) or (), 2))
        total += found.stats
        different += found.different
    show(name, total)
    assert not different
    assert total["renderings"] > 400


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.parametrize("name", FAMILIES)
def test_all_real_dialogues(name, pairs, real, real_data):
    real_data(f"{FILES[0]}.jsonl")
    different = []
    for file in FILES:
        found = oracle.compare(pairs(name), real(file) or (), every_rendering=False)
        show(f"{name} {file}", found.stats)
        different += found.different
    assert not different


@pytest.mark.parametrize("name", FAMILIES)
def test_emit_trains_all_words_of_a_turn_in_the_context_of_a_server_or_leaves_it_out(name, pairs):
    pair = pairs(name)
    encoder = pair.spec.with_config(unfaithful="emit").encoder()
    stats = Counter()
    for asked in DIALOGUES:
        try:
            grown = encoder.grow(asked, response_weights(asked, encoder.config))
        except InputError:
            continue
        records = [pair.template.record(message) for message in asked.messages]
        for first, end, message in grown.responses:
            context, response = oracle.path_ids(grown.tree, first, end)
            path, said = oracle.path_to(asked, message), asked.messages[message]
            prompt = pair.render([records[i] for i in path[:-1]], asked, True) if path[:-1] else None
            stats["turns"] += 1
            stats["other prompts"] += prompt is not None and not pair.same_text(context, prompt)
            text = pair.ours.decode(response)
            lost = [word for word in oracle.missing_words(said, text) if _bare(word) not in _bare(text)]
            stats["words lost"] += bool(lost)
            stats["no stop"] += response[-1] not in encoder.stop_ids
    show(name, stats)
    assert stats["turns"] > 30
    assert not stats["other prompts"] + stats["words lost"] + stats["no stop"]


def _bare(text):
    """Without what tokenizers change: white space, and how accents are written."""
    return re.sub(r"\s", "", unicodedata.normalize("NFC", text))


# What trl's templates with generation marks supervise beside what we do, by family: a header that the prompt has
# written already, or what the template writes after the token that ends the turn, which no model is asked for; and
# nowhere anything less than we do.
BESIDE = {
    "gpt-oss": {"<|start|>", "assistant"},
    "Phi-3": {"<|endoftext|>", "<|assistant|>"},  # its token eats the newline with which the marks begin
    "Phi-3.5": {"<|endoftext|>", "<|assistant|>"},
    "Qwen3 no thinking": {"<think>", "</think>"},
    "Qwen3.5": {"<think>"},
    "Qwen3.6": {"<think>"},
    "Muse Glimmer": {"<|start|>", "assistant"},
    **{name: {"<think>", "</think>"} for name in ("GLM-4.5 no thinking", "Nemotron 3 Super", "Qwen3.8 no thinking")},
}
# Their prompts open a thought that replies without reasoning do not close: none of these is faithful.
OPENS_A_THOUGHT = {"DeepSeek-V3.1", "DeepSeek-R1-Distill", "Nemotron 3 Nano"}
TWINS = [name for name in FAMILIES if families.template_of(FAMILIES[name], training=True)]


@pytest.mark.parametrize("name", TWINS)
def test_trl_marks_the_same_tokens(name, pairs, real):
    """On whole dialogues that are one chain, and on the first exchange of those that are not."""
    pair, stats = pairs(name), Counter()
    dialogues = [d for d in DIALOGUES if d.id in handmade.PLAIN]
    for file in ("sgd_train_plain", "mt_bench_reference", "kdconv_zh", "mtbench101", "glaive_toolcall_en"):
        if real(file) is None:
            pytest.skip("needs the real dialogues; set MTSFT_TEST_DATA to the folder that holds them")
        dialogues += oracle.sample(real(file), 6)
    for asked in dialogues:
        tree = _faithful(pair, asked)
        if tree is None or not is_one_chain(tree):
            first = next((i for i, m in enumerate(asked.messages) if m.role == "assistant"), -1)
            asked = replace(asked, messages=asked.messages[: first + 1])
            tree = _faithful(pair, asked)
            stats["of which the first exchange"] += 1
        stats[_marks(pair, asked, tree) if tree is not None else "unfaithful or refused"] += 1
    show(name, stats)
    assert name in OPENS_A_THOUGHT or sum(n for what, n in stats.items() if what.startswith("the same")) > 5


def _faithful(pair, asked):
    """The tree of a dialogue all of whose replies train."""
    wanted = response_weights(asked, pair.encoder.config)
    try:
        grown = pair.encoder.grow(asked, wanted)
    except InputError:
        return None
    return grown.tree if len(grown.responses) == len(wanted) > 0 else None


def _marks(pair, asked, tree):
    twin = families.template_of(pair.family, training=True)
    records = [pair.template.record(message) for message in asked.messages]
    given = {"tools": asked.tools, "chat_template": twin, **pair.family.variables}
    if not pair.theirs.apply_chat_template(records, tokenize=False, **given).startswith(
        pair.render(records, asked, False)
    ):
        return "rendered otherwise by the twin"
    marked = pair.theirs.apply_chat_template(records, return_dict=True, return_assistant_tokens_mask=True, **given)
    ids, mask, supervised = marked["input_ids"], marked["assistant_masks"], (tree.response_mask_N > 0).tolist()
    allowed = BESIDE.get(pair.family.name, set())
    if ids[: len(tree)] != tree.tokens_N.tolist():
        # Read as a whole, a reply may begin with other tokens than those that a model emits after the prompt: with a
        # space of its own (Phi-3), or joined to the newline that ends the prompt (Qwen3.5).
        theirs, ours = (
            re.sub(r"\s|" + "|".join(map(re.escape, allowed)), "", pair.ours.decode([i for i, a in zip(*both) if a]))
            for both in ((ids, mask), (tree.tokens_N.tolist(), supervised))
        )
        assert theirs == ours
        return "the same text in other tokens"
    supervised += [False] * (len(ids) - len(supervised))
    assert not [i for i, (a, b) in enumerate(zip(supervised, mask)) if a and not b]
    beside = {pair.ours.decode([i]) for i, a, b in zip(ids, supervised, mask) if b and not a}
    assert {text for text in beside if text.strip()} <= allowed
    return f"the same but for {sorted(beside)} beside" if beside else "the same"


def test_qwen3_thinks_nothing_in_the_last_place_and_forgets_it(pairs):
    (context, first), (history, last) = replies(pairs("Qwen3"), dialogue(handmade.PLAIN["two turns"]))
    assert context.endswith("<|im_start|>assistant\n")
    assert first == "<think>\n\n</think>\n\nA bird of the night.<|im_end|>"
    assert "<|im_start|>assistant\nA bird of the night.<|im_end|>\n" in history
    assert last == "<think>\n\n</think>\n\nA large deer.\n\nIt swims well.<|im_end|>"


@pytest.mark.parametrize("form", ["fields", "inline", "inline, no newlines"])
def test_qwen3_thinks_in_the_last_place_and_forgets_it(form, pairs):
    pair, asked = pairs("Qwen3"), dialogue(handmade.REASONING[form])
    (_, first), (history, last) = replies(pair, asked)
    assert first == f"<think>\n{'Easy one.' if form == 'fields' else 'Easy.'}\n</think>\n\nA bird.<|im_end|>"
    assert last == f"<think>\n{'Hm.{0}So.' if form == 'fields' else 'Hm.'}\n</think>\n\nYes.<|im_end|>".format("\n\n")
    assert "think" not in history
    thought = pair.ours.controls["<think>"].id, pair.ours.controls["</think>"].id
    tree = pair.encoder(asked)
    assert all((tree.tokens_N == mark).sum() == 2 for mark in thought)
    assert not is_one_chain(tree)


def test_qwen3_told_not_to_think_has_the_empty_block_in_the_prompt(pairs):
    (context, first), (history, _) = replies(pairs("Qwen3 no thinking"), dialogue(handmade.PLAIN["two turns"]))
    assert context.endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")
    assert first == "A bird of the night.<|im_end|>"
    assert history.count("<think>") == 1


def test_gpt_oss_returns_when_it_speaks_and_is_ended_in_history(pairs):
    asked = dialogue(handmade.REASONING["while calling"], tools=handmade.TOOLS)
    # The reply after the tool is unfaithful: rendered to its end, the template forgets what was thought before calling.
    assert len(replies(pairs("gpt-oss"), asked)) == 2
    calling, (seen, answer), (history, last) = replies(pairs("gpt-oss"), asked, unfaithful="emit")
    assert "I should look." in seen
    assert calling[1].startswith("<|channel|>analysis<|message|>I should look.<|end|><|start|>assistant to=functions.")
    assert calling[1].endswith('{"word": "owl", "n": 2}<|call|>')
    assert seen.endswith("<|start|>assistant")
    assert answer == (
        "<|channel|>analysis<|message|>There it is.<|end|>"
        "<|start|>assistant<|channel|>final<|message|>A bird.<|return|>"
    )
    assert "<|channel|>final<|message|>A bird.<|end|>" in history
    assert "<|return|>" not in history
    assert "There it is." not in history
    assert last.endswith("<|channel|>final<|message|>Any time.<|return|>")


@pytest.mark.parametrize("name", ["DeepSeek-V3.1", "DeepSeek-R1-Distill"])
def test_deepseek_opens_a_thought_that_its_history_does_not_show(name, pairs):
    pair, asked = pairs(name), dialogue(handmade.REASONING["fields"])
    with pytest.raises(InputError, match="not faithful"):
        replies(pair, asked, unfaithful="error")
    assert replies(pair, asked, unfaithful="skip") == []
    (context, first), (history, last) = replies(pair, asked, unfaithful="emit")
    end = "<｜end▁of▁sentence｜>"
    assert context.endswith("<｜User｜>What is an owl?<｜Assistant｜><think>\n")
    assert first == f"Easy one.\n</think>\n\nA bird.{end}"
    assert history.endswith(f"<｜Assistant｜>A bird.{end}<｜User｜>Sure?<｜Assistant｜><think>\n")
    assert last == f"Hm.\n\nSo.\n</think>\n\nYes.{end}"


@pytest.mark.parametrize("name", ["Phi-3", "Phi-3.5"])
def test_phi_ends_at_end(name, pairs):
    pair = pairs(name)
    (_, first), (history, last) = replies(pair, dialogue(handmade.PLAIN["two turns"]))
    assert (first, last) == (" A bird of the night.<|end|>", " A large deer.\n\nIt swims well.<|end|>")
    # It eats the newline after it; and what follows it begins with a space, as in what the tokenizer reads.
    assert history.endswith("<|assistant|>")
    assert pair.encoder(dialogue(handmade.PLAIN["two turns"])).tokens_N[-1] == pair.ours.controls["<|end|>"].id


def test_glm_ends_with_the_header_of_whoever_comes_next(pairs):
    asked = dialogue(handmade.CALLS["one"], tools=handmade.TOOLS)
    calling, answer, last = [response for _, response in replies(pairs("GLM-4.5"), asked)]
    assert calling.startswith("\n<think></think>\n<tool_call>look_up\n")
    assert calling.endswith("</tool_call><|observation|>")
    assert answer == "\n<think></think>\nA bird.<|user|>"
    assert last == "\n<think></think>\nSure.<|user|>"
    unanswered = dialogue(handmade.CALLS["one"][:2], tools=handmade.TOOLS)
    assert replies(pairs("GLM-4.5"), unanswered)[0][1].endswith("</tool_call><|observation|>")


def test_glm_told_not_to_think(pairs):
    pair = pairs("GLM-4.5", variables={"enable_thinking": False})
    context, first = replies(pair, dialogue(handmade.PLAIN["two turns"]))[0]
    assert context.endswith("What is an owl?/nothink<|assistant|>\n<think></think>")
    assert first == "\nA bird of the night.<|user|>"


def test_content_that_is_null_is_no_word(pairs):
    asked = dialogue(handmade.CALLS["none"], tools=handmade.TOOLS)
    for name in ("Qwen3", "GLM-4.5", "gpt-oss", "LFM2", "Mistral v0.3", "Llama 3.1"):
        assert not any("None" in response for _, response in replies(pairs(name), asked)), name


@pytest.mark.parametrize("form", ["inline", "inline, no newlines"])
def test_reasoning_in_the_content_has_its_marks_as_tokens(form, pairs):
    """Under a template that writes the content as it is: LFM2.5's, of the last reply."""
    pair = pairs("LFM2.5")
    asked = dialogue(handmade.REASONING[form][:2])
    tree = pair.encoder(asked)
    assert pair.ours.decode(tree.tokens_N[tree.response_mask_N > 0]).startswith("<think>")
    for mark in ("<think>", "</think>"):
        assert (tree.tokens_N == pair.ours.controls[mark].id).sum() == 1
