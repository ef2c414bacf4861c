"""Names of the Hugging Face Hub: in its local cache, downloaded from a small hub on loopback, or refused in a line."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hub_server import HubServer

from mtsft.errors import InputError
from mtsft.hub import hub_name, located, origin, with_commit
from mtsft.interop.hub_files import ADAPTER_FILES, CONFIG_FILES, MODEL_FILES
from mtsft.tokenizer.load import TOKENIZER_FILES, read_files

COMMIT, OTHER = "0123456789abcdef" * 2 + "01234567", "f" * 40
NAME = "Acme/Tiny-0.1B"
FILES = {
    "config.json": b"{}",
    "tokenizer.json": b'{"version": "1.0"}',
    "chat_template.jinja": b"{{ messages }}",
    "model.safetensors.index.json": json.dumps({"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}})
    .encode(),
    "model-1.safetensors": b"one",
    "model-2.safetensors": b"two",
}  # fmt: skip
# Files that a repository may have, and nobody here wants.
UNWANTED = {"pytorch_model.bin": b"pickle", "README.md": b"#", "consolidated.safetensors": b"the same again",
            "training_args.bin": b"pickle", "modeling_tiny.py": b"code"}  # fmt: skip


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """The folder of an empty cache; nothing is in the working directory."""
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "XDG_CACHE_HOME", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "home" / "hub"


def keep(cache, files=FILES, commit=COMMIT, branch="main", name=NAME):
    """Puts a repository into a cache; returns the folder of its commit."""
    folder = cache / f"models--{name.replace('/', '--')}"
    snapshot = folder / "snapshots" / commit
    snapshot.mkdir(parents=True)
    for file, content in files.items():
        (snapshot / file).write_bytes(content)
    (folder / "refs").mkdir(exist_ok=True)
    (folder / "refs" / branch).write_text(commit)
    return snapshot


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        (NAME, (NAME, "")),
        (f"{NAME}@v1.0", (NAME, "v1.0")),
        (f"{NAME}@refs/pr/7", (NAME, "refs/pr/7")),
        (f"{NAME}@{COMMIT}", (NAME, COMMIT)),
        *((path, None) for path in (
            "", "Tiny", "/Acme/Tiny", "./Acme/Tiny", "../Tiny", "~/Tiny", "a/b/c", "Acme/..", "Acme/a--b", "gs://b/r",
            "data/spm.model", "tok/tokenizer.json", "Acme/Tiny@", f"{NAME}@a/../../b", "Acme/Ti ny", "Acme/Tiny\n",
        )),
    ],
)  # fmt: skip
def test_what_is_a_name_of_the_hub(written, meant, cache):
    assert hub_name(written) == meant


@pytest.mark.parametrize("variable", ["HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME", "HOME"])
def test_the_cache_is_found_and_read_without_huggingface_hub(variable, cache, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    monkeypatch.delenv("HF_HOME")
    below = {"HF_HOME": "hub", "XDG_CACHE_HOME": "huggingface/hub", "HOME": ".cache/huggingface/hub"}
    snapshot = keep(tmp_path / "elsewhere" / below.get(variable, ""))
    monkeypatch.setenv(variable, str(tmp_path / "elsewhere"))
    assert located(NAME, MODEL_FILES) == located(f"{NAME}@main", MODEL_FILES) == str(snapshot)
    assert with_commit(NAME, CONFIG_FILES) == f"{NAME}@{COMMIT}"
    assert {*read_files(NAME)} == {"tokenizer.json", "chat_template.jinja"}


def test_a_revision_is_a_branch_or_a_commit(cache):
    keep(cache), keep(cache, commit=OTHER, branch="v2")
    assert Path(located(NAME, MODEL_FILES)).name == COMMIT
    assert Path(located(f"{NAME}@v2", MODEL_FILES)).name == OTHER
    assert Path(located(f"{NAME}@{OTHER}", MODEL_FILES)).name == OTHER
    assert with_commit(f"{NAME}@v2", CONFIG_FILES) == f"{NAME}@{OTHER}"
    with pytest.raises(InputError, match=rf"^{NAME}@v3: no such folder, and not in the Hugging Face cache"):
        located(f"{NAME}@v3", MODEL_FILES)


def test_a_path_in_a_folder_that_is_there_is_no_name(cache, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert hub_name("runs/mine") == ("runs/mine", "")
    (tmp_path / "runs").mkdir()
    assert hub_name("runs/mine") is None
    assert hub_name("runs/mine@main") == ("runs/mine", "main")


def test_a_local_folder_of_that_name_wins_and_is_said(cache):
    snapshot = keep(cache)
    assert origin(NAME) == f"{NAME} of the Hugging Face Hub, commit (unknown), in {cache}"
    assert origin(f"{NAME}@{COMMIT}") == f"{NAME} of the Hugging Face Hub, commit {COMMIT}, in {cache}"
    Path(NAME).mkdir(parents=True)
    assert located(NAME, MODEL_FILES) == with_commit(NAME, MODEL_FILES) == NAME
    assert origin(NAME) == f"the local folder {NAME}, not the model of that name in {cache}"
    assert located(f"{NAME}@main", MODEL_FILES) == str(snapshot)  # a revision is the Hub's
    Path("runs/mine").mkdir(parents=True)
    assert origin("runs/mine") == origin("/runs/mine") == origin("") == ""


@pytest.mark.parametrize("missing", ["config.json", "model-2.safetensors"])
def test_a_snapshot_that_lacks_something_is_not_taken(missing, cache):
    snapshot = keep(cache)
    assert located(NAME, MODEL_FILES) == str(snapshot)
    (snapshot / missing).unlink()
    with pytest.raises(InputError, match="not in the Hugging Face cache"):
        located(NAME, MODEL_FILES)
    assert located(NAME, TOKENIZER_FILES) == str(snapshot)
    with pytest.raises(InputError, match="not in the Hugging Face cache"):
        located(NAME, ADAPTER_FILES)


@pytest.mark.parametrize("content", ["", "../../../etc", "main", "a" * 39, "\udcff"])
def test_damaged_refs_are_no_path(content, cache):
    keep(cache)
    (cache / f"models--{NAME.replace('/', '--')}" / "refs" / "main").write_bytes(content.encode(errors="replace"))
    with pytest.raises(InputError, match="not in the Hugging Face cache"):
        located(NAME, CONFIG_FILES)


def test_what_to_do_without_network_and_without_huggingface_hub(cache, monkeypatch):
    by_hand = f"hf download {NAME} --local-dir FOLDER, and name that FOLDER"
    lack = f"{NAME}: no such folder, and not in the Hugging Face cache ({cache})"
    with pytest.raises(InputError) as error:
        located(NAME, MODEL_FILES)
    assert str(error.value) == f"{lack}, and HF_HUB_OFFLINE is set; unset it, or on a machine with a network: {by_hand}"
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(InputError) as error:
        located(NAME, MODEL_FILES)
    assert str(error.value) == f"{lack}; pip install huggingface_hub, which downloads it, or: {by_hand}"
    assert not cache.exists()


SCRIPT = """
import sys
from mtsft.errors import InputError
from mtsft.hub import located
from mtsft.interop import hub_files
from mtsft.tokenizer.load import TOKENIZER_FILES
wanted = {"model": hub_files.MODEL_FILES, "tokenizer": TOKENIZER_FILES}[sys.argv[2]]
try:
    print(located(sys.argv[1], wanted))
except InputError as error:
    print(f"refused: {error}")
"""


def start_download(cache, url, name=NAME, what="model"):
    environment = os.environ | {
        "HF_ENDPOINT": url,
        "HF_HUB_OFFLINE": "0",
        "HF_HOME": str(cache.parent),
        "PYTHONPATH": str(Path(__file__).parents[1]),
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, "-c", SCRIPT, name, what], env=environment, **pipes)


def said_by(process):
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    return out.strip(), err


def test_only_what_is_needed_is_downloaded_and_by_one_process(cache):
    pytest.importorskip("huggingface_hub")
    with HubServer(NAME, COMMIT, FILES | UNWANTED) as server:
        folder, _ = said_by(start_download(cache, server.url, what="tokenizer"))
        assert server.fetched() == ["chat_template.jinja", "tokenizer.json"]
        both = [said_by(process) for process in [start_download(cache, server.url) for _ in range(2)]]
        assert [out for out, _ in both] == [folder, folder]
        assert sum("downloading" in err for _, err in both) == 1
        assert server.fetched() == sorted(FILES)  # each once
    snapshot = Path(folder)
    assert snapshot.name == COMMIT
    assert {path.name: path.read_bytes() for path in snapshot.iterdir()} == FILES
    assert located(NAME, MODEL_FILES) == folder  # from here on without a network


def test_what_cannot_be_downloaded_is_said_in_a_line(cache):
    pytest.importorskip("huggingface_hub")
    pickles = {"config.json": b"{}", **UNWANTED}
    with HubServer(NAME, COMMIT, pickles) as server:
        said = {
            name: said_by(start_download(cache, server.url, name))[0]
            for name in (NAME, "Acme/Nothing", f"{NAME}@gone", f"{NAME}@{COMMIT}")
        }
        assert server.fetched() == ["config.json"]
    none = "refused: {}: has no model.safetensors, or it could not be downloaded now; pickles, such as "
    assert said[NAME].startswith(none.format(NAME))
    assert said[f"{NAME}@{COMMIT}"].startswith(none.format(f"{NAME}@{COMMIT}"))
    assert said["Acme/Nothing"].startswith("refused: Acme/Nothing: no such folder, and no such model on the Hugging")
    assert said[f"{NAME}@gone"].startswith(f"refused: {NAME}@gone: has no such commit, branch or tag; https://")
    gone, _ = said_by(start_download(cache, "http://127.0.0.1:9", "Acme/Other"))
    assert gone.startswith("refused: Acme/Other: no such folder, and not in the Hugging Face cache")
    assert "it could not be downloaded" in gone
    assert gone.endswith("hf download Acme/Other --local-dir FOLDER, and name that FOLDER")
    assert all("\n" not in text for text in (*said.values(), gone))
