from functools import partial

import pytest

from mtsft.config import DataConfig
from mtsft.data.open_store import open_store
from mtsft.encoding.spec import EncodingSpec


@pytest.fixture
def spec(chat):
    return EncodingSpec(chat, DataConfig(sequence_length=512))


@pytest.fixture
def open_quietly(tmp_path):
    return partial(open_store, folder=tmp_path / "stores", workers=1, progress=False)
