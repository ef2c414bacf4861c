"""Real files of dialogues, whole."""

import pytest

from mtsft.dialogue import readers
from mtsft.dialogue.readers import read_dialogues
from mtsft.errors import InputError

# Real files: dialogues, messages and how many branch, by the README that comes with them

REAL = {
    "glaive_toolcall_en.jsonl": (300, {"user": 746, "assistant": 957, "tool": 211}),
    "kdconv_zh.jsonl": (600, {"user": 6778, "assistant": 6776}),
    "mt_bench_reference.jsonl": (30, {"user": 60, "assistant": 60}),
    "mtbench101.jsonl": (1047, {"user": 3309, "assistant": 3309}),
    "oasst_trees_en.jsonl": (70, {"user": 322, "assistant": 475}),
    "oasst_trees_zh.jsonl": (362, {"user": 754, "assistant": 1983}),
    "preference_pairs_en_trees.jsonl": (300, {"user": 563, "assistant": 863, "system": 80}),
    "reasoning_tool_use.jsonl": (50, {"system": 50, "user": 70, "assistant": 112, "tool": 48}),
    "sgd_train_plain.jsonl": (1664, {"user": 15475, "assistant": 15475}),
    "sgd_train_tools.jsonl": (512, {"user": 4408, "assistant": 5871, "tool": 1463}),
    "taskmaster4_train.jsonl": (3000, {"user": 5669, "assistant": 18128, "tool": 12522}),
    "taskmaster4_valid.jsonl": (496, {"user": 924, "assistant": 2909, "tool": 1995}),
    "tau_airline_tools.jsonl": (140, {"system": 140, "user": 1162, "assistant": 2023, "tool": 1001}),
    "raw/sharegpt_fastchat_dummy_conversation.json": (500, {"user": 1000, "assistant": 1000}),
    "raw/sharegpt_glaive_toolcall_en_demo.json": (300, {"user": 746, "assistant": 957, "tool": 211}),
    "raw/sharegpt_axolotl_conversation.json": (1, {"user": 6, "assistant": 6}),
    "raw/sharegpt_axolotl_conversation.missingturns.json": (1, {"user": 6, "assistant": 6}),
    "raw/alpaca_identity.json": (91, {"user": 91, "assistant": 91}),
    "raw/alpaca_history_oasst_sft_zh_first500.json": (500, {"user": 802, "assistant": 802}),
    "raw/openai_messages_tau_airline_first5.json": (5, {"system": 5, "user": 37, "assistant": 65, "tool": 33}),
    "raw/typed_content_reason_tool_use_demo_50.jsonl": (50, {"system": 50, "user": 70, "assistant": 112, "tool": 42}),
    "raw/typed_content_loss_weight_v1_sft_demo.jsonl": (500, {"user": 500, "assistant": 500}),
    "raw/oasst_export_trees_first20.jsonl": (20, {"user": 90, "assistant": 120}),
    "raw/torchtune_chat_tiny.json": (1, {"system": 1, "user": 2, "assistant": 2}),
    "raw/msswift_sharegpt.jsonl": (3, {"system": 1, "user": 5, "assistant": 5}),
    "raw/msswift_conversations.jsonl": (3, {"system": 1, "user": 5, "assistant": 5}),
    "raw/msswift_chatml.jsonl": (3, {"system": 1, "user": 5, "assistant": 5}),
    "raw/msswift_alpaca.jsonl": (3, {"system": 1, "user": 4, "assistant": 4}),
    "raw/msswift_swift_multi.jsonl": (3, {"system": 1, "user": 5, "assistant": 5}),
    "raw/msswift_swift_multi.json": (3, {"system": 1, "user": 5, "assistant": 5}),
}
REFUSED = {
    "raw/multimodal_mllm_demo.json": (6, "the dialogue has 'images'"),
    "raw/sharegpt_preference_dpo_en_demo_first100.json": (100, "'chosen' makes it a preference"),
    "raw/taskmaster2_original_same_speaker_runs.json": (5, "no 'messages', nor the keys of another format"),
    "raw/taskmaster4_native_first25.json": (25, "no 'messages', nor the keys of another format"),
}


def records(path):
    chunks = [*readers.read_chunks(path)]
    assert sum(chunk.size for chunk in chunks) == path.stat().st_size
    return [(n, raw) for chunk in chunks for n, raw in zip(chunk.numbers, chunk.records)]


def dialogues(path):
    return [dialogue for _, dialogue in read_dialogues(path)]


@pytest.mark.parametrize("name", REAL)
def test_every_real_file_is_read_whole(real_data, name):
    found = dialogues(real_data(name))
    assert len(found) <= len(records(real_data(name)))
    roles = [m.role for d in found for m in d.messages]
    assert (len(found), {role: roles.count(role) for role in {*roles}}) == REAL[name]


@pytest.mark.parametrize("name", REFUSED)
def test_every_other_real_file_is_refused_record_by_record(real_data, name):
    path = real_data(name)
    count, problem = REFUSED[name]
    assert len(records(path)) == count
    for number, raw in records(path):
        with pytest.raises(InputError) as error:
            readers.parse(raw, path, number)
        assert str(error.value).startswith(f"{path}:{number}: {problem}")


def test_real_trees_have_the_leaves_they_are_said_to(real_data):
    for name, nodes, leaves in [("oasst_trees_en", 797, 416), ("oasst_trees_zh", 2737, 1593)]:
        found = dialogues(real_data(f"{name}.jsonl"))
        assert all(d.parents[0] == -1 and all(p < i for i, p in enumerate(d.parents)) for d in found)
        assert sum(len(d.messages) for d in found) == nodes
        assert sum(len({*range(len(d.messages))} - {*d.parents}) for d in found) == leaves


def test_a_real_file_in_its_own_format_says_what_its_conversion_says(real_data):
    raw, converted = (dialogues(real_data(name)) for name in ("raw/sharegpt_glaive_toolcall_en_demo.json",
                                                              "glaive_toolcall_en.jsonl"))  # fmt: skip

    def told(dialogue):
        calls = [[c["function"] for c in (m.fields or {}).get("tool_calls", [])] for m in dialogue.messages]
        return [(m.role, m.content or "") for m in dialogue.messages], calls, dialogue.tools

    assert [told(d) for d in raw] == [told(d) for d in converted]


def test_a_real_export_of_trees_says_what_its_conversion_says(real_data):
    raw, converted = (dialogues(real_data(name)) for name in ("raw/oasst_export_trees_first20.jsonl",
                                                              "oasst_trees_en.jsonl"))  # fmt: skip
    raw, converted = ([(d.id, [m._replace(others=None) for m in d.messages], d.parents) for d in both]
                      for both in (raw, converted[:20]))  # fmt: skip
    assert raw == converted


def test_real_reasoning_and_calls_are_told_from_words(real_data):
    found = dialogues(real_data("raw/typed_content_reason_tool_use_demo_50.jsonl"))
    replies = [m for d in found for m in d.messages if m.role == "assistant"]
    assert all(m.fields["reasoning_content"] for m in replies)
    calls = [len(m.fields.get("tool_calls", ())) for m in replies]
    assert [sum(count == n for count in calls) for n in range(4)] == [59, 41, 9, 3]
    assert all((m.content is None) == (count > 0) for m, count in zip(replies, calls))
    assert sum(d.tools is not None for d in found) == 48


def test_real_weights_are_read(real_data):
    found = dialogues(real_data("raw/typed_content_loss_weight_v1_sft_demo.jsonl"))
    assert {(m.role, m.weight) for d in found for m in d.messages} == {("user", 0.0), ("assistant", 1.0)}


def test_real_arguments_that_are_no_json_are_kept_as_they_are(real_data):
    found = dialogues(real_data("taskmaster4_train.jsonl"))
    calls = [c for d in found for m in d.messages for c in (m.fields or {}).get("tool_calls", ())]
    assert len(calls) == 12522
    assert sum(isinstance(call["function"]["arguments"], str) for call in calls) == 23
