"""Tokenizers, from the files that people have: SentencePiece models and Hugging Face folders.

No file is executed: what is read here is data.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from etils import epath

from mtsft.errors import InputError
from mtsft.hub import Wanted, located
from mtsft.tokenizer.base import Tokenizer, json_from
from mtsft.tokenizer.huggingface import HuggingFaceTokenizer
from mtsft.tokenizer.sentencepiece import SentencePieceTokenizer

_BESIDE = (
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "generation_config.json",
    "chat_template.jinja",
    "chat_template.json",
)
_KINDS = ("tokenizer.json", "tokenizer.model")
_MORE_TEMPLATES = "additional_chat_templates"
TOKENIZER_FILES = Wanted(  # of a repository of the Hugging Face Hub
    (*_KINDS, *_BESIDE, f"{_MORE_TEMPLATES}/*.jinja"),
    lambda folder: [] if any((folder / name).exists() for name in _KINDS) else [_KINDS[0]],
)
_TIKTOKEN = re.compile(rb"[A-Za-z0-9+/]+=* \d+\r?\n[A-Za-z0-9+/]+=* \d+\r?\n")  # tokens in base64, with their ranks


def read_files(path: str | Path) -> dict[str, bytes]:
    """The files of a tokenizer.

    Args:
        path: a SentencePiece .model file, a tokenizer.json file, or a Hugging Face folder, or its name on the Hub, that
            holds one of them under these names (of both, tokenizer.json counts, as in transformers).

    Returns:
        Contents by name: "tokenizer.json" or "tokenizer.model", and the JSON files and chat templates beside it.

    Raises:
        InputError: there is none, or it cannot be read.
    """
    path = epath.Path(located(path, TOKENIZER_FILES)).expanduser()
    try:
        if not path.is_dir():
            return {"tokenizer.json" if path.suffix == ".json" else "tokenizer.model": path.read_bytes()}
        kind = next((name for name in _KINDS if (path / name).exists()), None)
        if kind is None and (path / "tekken.json").exists():
            raise InputError(f"{path}: holds Mistral's tekken.json alone; {_convert(path)}")
        if kind is None:
            raise InputError(
                f"{path}: holds neither tokenizer.json nor tokenizer.model; "
                "set data.tokenizer to a folder that does (transformers' save_pretrained writes one)"
            )
        files = {name: (path / name).read_bytes() for name in (kind, *_BESIDE) if (path / name).exists()}
        if (path / _MORE_TEMPLATES).is_dir():
            more = sorted(file for file in (path / _MORE_TEMPLATES).iterdir() if file.suffix == ".jinja")
            files |= {f"{_MORE_TEMPLATES}/{file.name}": file.read_bytes() for file in more}
        return files
    except ImportError as error:  # of what reads from a bucket
        raise InputError(f"{path}: reading it needs what is not installed: pip install 'mtsft[gcs]'") from error
    except OSError as error:
        raise InputError(
            f"{path}: cannot be read ({error.strerror or error}); "
            "set data.tokenizer to a SentencePiece .model file or a Hugging Face tokenizer folder"
        ) from error


def _convert(path: object) -> str:
    """How a tokenizer in another form becomes a tokenizer.json, in a line."""
    return (
        'write a tokenizer.json of it with transformers: python -c "from transformers import AutoTokenizer; '
        f"AutoTokenizer.from_pretrained('{path}').save_pretrained('converted')\", and name that folder"
    )


def chat_templates(files: Mapping[str, bytes], source: str = "the tokenizer") -> dict[str, str]:
    """The chat templates (Jinja) among a tokenizer's files by name, "default" for the usual one; {} where none.

    chat_template.jinja replaces all that tokenizer_config.json has, as in transformers.
    """
    templates = {}
    for name in ("chat_template.json", "tokenizer_config.json"):
        template = json_from(files, name, source).get("chat_template")
        if isinstance(template, str):
            templates["default"] = template
        elif isinstance(template, list):
            templates |= {
                t["name"]: t["template"] for t in template if isinstance(t, dict) and {"name", "template"} <= {*t}
            }
    if "chat_template.jinja" in files:
        templates = {}
    for name, content in files.items():
        if name.endswith(".jinja"):
            stem = "default" if name == "chat_template.jinja" else Path(name).stem
            try:
                templates[stem] = content.decode()
            except UnicodeDecodeError as error:
                raise InputError(f"{source}: {name} is not UTF-8 ({error.reason}); save it as UTF-8") from error
    return templates


def from_files(files: Mapping[str, bytes], literals: Sequence[str], source: str = "the tokenizer") -> Tokenizer:
    """The tokenizer that these files make, with the control tokens that a chat template needs.

    Control tokens are those that the tokenizer itself marks as special or control, and of its other added tokens (or
    user-defined pieces) those that a literal of the template spells, but for white space.

    Args:
        files: contents by name, see `read_files`.
        literals: the constant strings of the chat template.
        source: where the files were read, for errors.

    Raises:
        InputError: the files make none.
    """
    if _TIKTOKEN.match(files.get("tokenizer.model", b"")) and "tokenizer.json" not in files:
        raise InputError(f"{source}: is a vocabulary of tiktoken's, which says no way to cut words; {_convert(source)}")
    kind = HuggingFaceTokenizer if "tokenizer.json" in files else SentencePieceTokenizer
    return kind(files, literals, source)
