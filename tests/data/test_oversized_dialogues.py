"""Dialogues that are larger than they may be: an error, or counted and left out."""

import json
from dataclasses import replace

import pytest
from records import line

from mtsft.data.data_files import DataFiles
from mtsft.diagnose.audit import audit
from mtsft.errors import InputError


@pytest.fixture
def one_too_large(tmp_path):
    path = tmp_path / "d.jsonl"
    large = json.dumps({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "y" * 900}]})
    path.write_text(line(0) + large + "\n" + line(1))
    problem = (
        f"{path}:2: a dialogue of {len(large)} bytes, and data.max_dialogue_bytes is 500; raise it, remove the "
        "dialogue, or set data.refused='skip' to leave out all such"
    )
    return path, problem


def test_a_dialogue_that_is_too_large_is_an_error(one_too_large, spec, open_quietly, tmp_path):
    path, problem = one_too_large
    with pytest.raises(InputError) as error:
        open_quietly([path], spec.with_config(max_dialogue_bytes=500))
    assert str(error.value) == problem
    assert [path.suffix for path in (tmp_path / "stores").iterdir()] == [".lock"]


def test_a_dialogue_that_is_too_large_is_counted_where_it_is_skipped(one_too_large, spec, open_quietly):
    path, problem = one_too_large
    spec = spec.with_config(max_dialogue_bytes=500, refused="skip")
    store = open_quietly([path], spec)
    assert [store.source(i)[1] for i in range(len(store))] == [1, 3]
    c = store.stats
    assert (c.dialogues, c.kept, c.oversized, c.refused, c.unreadable) == (3, 2, 1, 0, 0)
    assert c.examples == {"oversized": [problem]}
    # Raised, the limit finds another store, which has it; and where some are held out it is counted on one side.
    larger = open_quietly([path], spec.with_config(max_dialogue_bytes=5000, sequence_length=2000)).stats
    assert (larger.kept, larger.oversized) == (3, 0)
    sides = [open_quietly([path], replace(spec, split=split)).stats.oversized for split in ((0.0, 0.5), (0.5, 1.0))]
    assert sides == [0, 1]


@pytest.mark.parametrize(("refused", "severity"), [("error", "error"), ("skip", "warning")])
def test_a_dialogue_that_is_too_large_is_listed_by_an_audit(one_too_large, spec, tmp_path, refused, severity):
    path, problem = one_too_large
    spec = spec.with_config(refused=refused, max_dialogue_bytes=500)
    report = audit(DataFiles([path], [1.0], [], spec, spec, tmp_path / "cache", 1), progress=False)
    assert report["problems"][0] == {
        "severity": severity,
        "what": "dialogues of more than 500 bytes, which are not read",
        "count": 1,
        "examples": [problem],
        "remedy": "raise data.max_dialogue_bytes, remove them, or set data.refused='skip' to leave them out",
    }
    assert [p["severity"] for p in report["problems"][1:]] == []
    assert (report["train"]["dialogues"], report["train"]["kept"], report["train"]["oversized"]) == (3, 2, 1)
