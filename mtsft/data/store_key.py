"""What a store is found by: a digest of all that made it.

It covers the bytes of the files, the tokenizer, the template, every option and the encoding code itself.
"""

import hashlib
import importlib.metadata
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import mtsft
from mtsft.encoding.spec import EncodingSpec

# The folders of the package, and the libraries, whose code decides which tokens a file becomes.
MAKES_TOKENS = ("corpora", "dialogue", "tokenizer", "template", "encoding")
_LIBRARIES = ("jinja2", "regex", "tokenizers", "sentencepiece")
# Beside them: what cuts files into parts, and writes what a part became.
_OF_DATA = ("store.py", "open_store.py", "dialogue_hashes.py")


def digest_files(files: Iterable[Path]) -> str:
    """A digest of the names and the bytes of files."""
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            digest.update(f"{path.name}\0{hashlib.file_digest(file, 'sha256').hexdigest()}\0".encode())
    return digest.hexdigest()


def code_digest() -> str:
    """A digest of the code that makes tokens, ours and that of libraries: a store that other code made is not found."""
    package = Path(mtsft.__file__).parent
    files = [file for name in MAKES_TOKENS for file in sorted((package / name).rglob("*.py"))]
    files += [package / "data" / name for name in _OF_DATA]
    code = [(str(file.relative_to(package)), file.read_bytes()) for file in files]
    versions = [(name, importlib.metadata.version(name)) for name in _LIBRARIES]
    return hashlib.sha256(repr((code, versions)).encode()).hexdigest()


def store_key(files: Sequence[Path], spec: EncodingSpec) -> str:
    """The name of the store of some files, encoded so."""
    parts = {"files": digest_files(files), "code": code_digest(), "spec": spec.cache_key()}
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:32]
