import json

import pytest
from audits import ROW

from mtsft.config import DataConfig
from mtsft.data.data_files import DataFiles
from mtsft.diagnose.audit import audit
from mtsft.encoding.spec import EncodingSpec


@pytest.fixture
def templates(tmp_path, chat):
    """The sources of records (or lines) under a recipe; eval: those held out; weights: of training's files."""

    def make(*files, eval=(), weights=None, chat=chat, cache="cache", **spec):
        def write(name, records):
            path = tmp_path / name
            path.write_text("".join((r if type(r) is str else json.dumps(r)) + "\n" for r in records))
            return path

        train = [write(f"train-{i}.jsonl", records) for i, records in enumerate(files)]
        spec = EncodingSpec(chat, DataConfig(**{"sequence_length": ROW} | spec))
        held_out = [write("eval.jsonl", eval)] if eval else []
        return DataFiles(train, weights or [1.0] * len(train), held_out, spec, spec, tmp_path / cache, 1)

    return make


@pytest.fixture
def examine(templates):
    return lambda *files, **changes: audit(templates(*files, **changes), progress=False)
