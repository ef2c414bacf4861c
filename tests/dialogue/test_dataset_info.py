"""Datasets by name, as LLaMA-Factory's dataset_info.json describes them."""

import json

import pytest

from mtsft.dialogue.dataset_info import Names
from mtsft.dialogue.find_files import WeightedFile, find_weighted_files
from mtsft.dialogue.readers import read_dialogues
from mtsft.dialogue.record_format import RecordFormat
from mtsft.errors import InputError

OPENAI_TAGS = {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant",
               "function_tag": "function", "observation_tag": "observation"}  # fmt: skip
OWN_TAGS = {"role_tag": "who", "content_tag": "text", "user_tag": "customer", "assistant_tag": "agent",
            "observation_tag": "observation", "function_tag": "function_call", "system_tag": "system"}  # fmt: skip
CALL = {"from": "function_call", "value": '{"name": "f", "arguments": {}}'}
# What is said of a dataset, a record of its file, and the columns, the roles and the messages that are read.
DATASETS = {
    "alpaca": ({}, {"instruction": "q", "input": "r", "output": "a"}, {}, {}, [("user", "q\nr"), ("assistant", "a")]),
    "columns": (
        {"columns": {"prompt": "input", "response": "target", "system": "preamble", "history": "before"}},
        {"input": "q", "target": "a", "preamble": "s", "before": [["b", "c"]]},
        {"instruction": "input", "output": "target", "history": "before", "system": "preamble"}, {},
        [("system", "s"), ("user", "b"), ("assistant", "c"), ("user", "q"), ("assistant", "a")],
    ),
    "sharegpt": (
        {"formatting": "sharegpt", "columns": {"messages": "conversations", "tools": "tools"}},
        {"conversations": [{"from": "human", "value": "q"}, CALL, {"from": "observation", "value": "r"}]},
        {}, {}, [("user", "q"), ("assistant", None), ("tool", "r")],
    ),
    "messages": (
        {"formatting": "openai", "columns": {"messages": "messages"}, "tags": OPENAI_TAGS},
        {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]},
        {}, {}, [("user", "q"), ("assistant", "a")],
    ),
    "mixed": (
        {"formatting": "sharegpt", "columns": {"messages": "messages"}},
        {"messages": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
        {"role": "from", "content": "value"}, {}, [("user", "q"), ("assistant", "a")],
    ),
    "own": (
        {"formatting": "sharegpt", "columns": {"messages": "log", "system": "sys"}, "tags": OWN_TAGS},
        {"log": [{"who": "customer", "text": "q"}, {"who": "agent", "text": "a"}], "sys": "s"},
        {"messages": "log", "role": "who", "content": "text", "system": "sys"},
        {"customer": "user", "agent": "assistant"}, [("system", "s"), ("user", "q"), ("assistant", "a")],
    ),
}  # fmt: skip


def write(folder, **datasets):
    (folder / "dataset_info.json").write_text(json.dumps(datasets))


@pytest.mark.parametrize("name", DATASETS)
def test_a_dataset_is_read_under_the_names_that_are_said_of_it(tmp_path, name):
    said, record, columns, roles, messages = DATASETS[name]
    write(tmp_path, other={"hf_hub_url": "a/b"}, **{name: {"file_name": "d.json", **said}})
    (tmp_path / "d.json").write_text(json.dumps([record]))
    (found,) = find_weighted_files(f"{tmp_path}/{name}=0.5", "data.train")
    names = Names(json.dumps(columns) if columns else "", json.dumps(roles) if roles else "")
    assert found == WeightedFile(tmp_path / "d.json", 0.5, names)
    form = RecordFormat.of("", *found.names, "")
    ((_, dialogue),) = read_dialogues(found.path, form)
    assert [(message.role, message.content) for message in dialogue.messages] == messages
    assert dialogue.others is None


REFUSED = {
    "ranking": ({"file_name": "d.json", "ranking": True}, "holds preferences, which are not learnt from here"),
    "kto": ({"file_name": "d.json", "columns": {"kto_tag": "label"}}, "holds preferences, which are not learnt from"),
    "hub": ({"hf_hub_url": "a/b"}, "has no file_name, and only local files are read; copy it, and name the copy"),
    "few": ({"file_name": "d.json", "num_samples": 3}, "has num_samples, which is not read here; write a file of"),
    "calls": ({"file_name": "d.json", "formatting": "sharegpt", "tags": {"function_tag": "function"}},
              "has the function_tag 'function'; call it function_call there and in the file"),
    "broken": ({"file_name": "d.json", "columns": {"messages": 1}}, "has 'columns' that are no object of texts"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_a_dataset_of_no_replies_to_imitate_is_refused(tmp_path, name):
    said, problem = REFUSED[name]
    write(tmp_path, **{name: said})
    with pytest.raises(InputError) as caught:
        find_weighted_files(f"{tmp_path}/{name}", "data.train")
    assert str(caught.value).startswith(f"{tmp_path}/dataset_info.json: the dataset {name} {problem}")
    with pytest.raises(InputError) as caught:
        find_weighted_files(str(tmp_path), "data.train")
    assert str(caught.value) == (
        f"{tmp_path}/dataset_info.json: none of its datasets ({name}) is a local file of replies to imitate; set "
        "data.train to such a file"
    )


def test_a_folder_of_datasets_says_how_to_name_one(tmp_path):
    said = {"file_name": "d.json", **DATASETS["own"][0]}
    write(tmp_path, hub={"hf_hub_url": "a/b"}, own=said, plain={"file_name": "p.json"})
    with pytest.raises(InputError) as caught:
        find_weighted_files(str(tmp_path), "data.train")
    assert str(caught.value) == (
        f"{tmp_path}/dataset_info.json: describes the datasets hub, own, plain; name one, e.g. "
        f"data.train={tmp_path}/own, or its file: data.train={tmp_path}/d.json "
        'data.columns=\'{"messages": "log", "role": "who", "content": "text", "system": "sys"}\' '
        'data.roles=\'{"customer": "user", "agent": "assistant"}\''
    )
    with pytest.raises(InputError) as caught:
        find_weighted_files(f"{tmp_path}/gone", "data.train")
    assert str(caught.value) == (
        f"{tmp_path}/dataset_info.json: the dataset gone is not among its datasets (hub, own, plain); name one of "
        "them, or a file"
    )


def test_what_is_found_without_the_description_is_taken_as_it_is(tmp_path):
    write(tmp_path, train={"file_name": "other.json"})
    (tmp_path / "train.jsonl").write_text("{}")
    assert find_weighted_files(str(tmp_path), "data.train") == [WeightedFile(tmp_path / "train.jsonl")]
    assert find_weighted_files(f"{tmp_path}/*.jsonl", "data.train") == [WeightedFile(tmp_path / "train.jsonl")]
    (tmp_path / "train").write_text("{}")
    assert find_weighted_files(f"{tmp_path}/train", "data.train") == [WeightedFile(tmp_path / "train")]


@pytest.mark.parametrize("text", ['{"features": {"id": {"dtype": "string"}}, "license": ""}', "{", "[]", "{}"])
def test_a_file_of_the_name_may_be_something_else(tmp_path, text):
    (tmp_path / "dataset_info.json").write_text(text)
    with pytest.raises(InputError, match=rf"^{tmp_path}/x: no such file"):
        find_weighted_files(f"{tmp_path}/x", "data.train")
    with pytest.raises(InputError, match=rf"^{tmp_path}: is a folder without files of a split"):
        find_weighted_files(str(tmp_path), "data.train")
