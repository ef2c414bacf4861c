"""The chat template and the tokenizer that a config names; a tokenizer that it does not name is trained here."""

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from mtsft.data.cache_lock import in_cache, note_use
from mtsft.data.dialogue_hashes import in_split
from mtsft.data.store_key import code_digest, digest_files
from mtsft.dialogue import readers
from mtsft.dialogue.record_format import RecordFormat
from mtsft.encoding.spec import ChatFormat, markers_of, parse_date, parse_variables
from mtsft.errors import InputError
from mtsft.files import atomic_write
from mtsft.template import chat_template as templates
from mtsft.template.built_in import DEFAULT
from mtsft.tokenizer import load as tokenizers
from mtsft.tokenizer import sentencepiece

_TOKENIZER_BYTES = 100 << 20  # of text that a tokenizer is trained on at most


def open_chat(
    tokenizer: str,
    template: str = "",
    variables: str = "",
    date: str = "",
    train: Callable[[ChatFormat], Mapping[str, bytes]] | None = None,
) -> ChatFormat:
    """A chat template and the files of a tokenizer. The first four arguments are keys of DataConfig.

    Args:
        tokenizer: a Hugging Face tokenizer folder or a SentencePiece .model file; "" calls `train`.
        template: the name of a built-in template, or a Jinja file; "" for the tokenizer's own, or "chatml-tools".
        variables: JSON object of keyword arguments of the template.
        date: YYYY-MM-DD that the template is told; "" for today.
        train: from the template to the files of a tokenizer, by name.

    Raises:
        InputError: there is no such tokenizer or template, or they do not go together.
    """
    files = tokenizers.read_files(tokenizer) if tokenizer else {}
    own = tokenizers.chat_templates(files, tokenizer)
    if not template and not own and "tokenizer.json" not in files:
        template = DEFAULT
    texts, name = templates.find(template, own)
    parts = (parse_variables(variables), parse_date(date))
    chat = ChatFormat(files or train(ChatFormat({}, texts, name, *parts)), texts, name, *parts)
    chat.open(tokenizer or "the tokenizer")  # refuses what does not go together, by the name of the file
    return chat


def train_tokenizer(
    chat: ChatFormat,
    vocab_size: int,
    files: Sequence[Path],
    form: RecordFormat,
    folder: Path,
    split: tuple[float, float] = (0.0, 1.0),
) -> Mapping[str, bytes]:
    """A tokenizer trained on dialogues, or the one that `folder` holds of an earlier training on the same.

    Args:
        chat: whose template's control tokens become tokens.
        vocab_size: ids at most.
        files: of dialogues.
        form: how the records of the files are read.
        folder: where trained tokenizers are kept.
        split: the part of the dialogues that it is trained on, as of EncodingSpec; the others are held out.

    Returns:
        The files of the tokenizer, by name.

    Raises:
        InputError: there is no dialogue, or all are held out; the texts do not suit the size; or the folder cannot be
            written.
    """
    template = templates.ChatTemplate(chat.templates, chat.name)
    parts = (digest_files(files), split, form, vocab_size, template.fingerprint, code_digest())
    path = folder / f"{hashlib.sha256(repr(parts).encode()).hexdigest()[:32]}.model"
    with in_cache(folder):
        folder.mkdir(parents=True, exist_ok=True)  # refused before the training, rather than after it
        if path.exists():
            note_use(path)
            return {"tokenizer.model": path.read_bytes()}
    markers = markers_of(template.literals)
    trained = sentencepiece.train_sentencepiece(_texts(files, form, split), vocab_size, markers)
    with in_cache(folder):
        atomic_write(path, trained["tokenizer.model"])
    return trained


def _texts(files: Sequence[Path], form: RecordFormat, split: tuple[float, float]) -> Iterator[str]:
    """What a tokenizer is trained on: the words of dialogues evenly over the files, with the names of their roles.

    Raises InputError where no line holds a dialogue, as its first one would; or where all are held out.
    """
    size = sum(path.stat().st_size for path in files) * (split[1] - split[0])
    stride = math.ceil(size / _TOKENIZER_BYTES)
    errors: list[InputError] = []  # of a line among others they are reported where dialogues are tokenised
    read = used = 0
    for path in files:
        wanted = (lambda number: number % stride == 0) if stride > 1 else None
        for _, dialogue in readers.read_dialogues(path, form, wanted=wanted, unreadable=errors.append):
            read += 1
            if not in_split(dialogue, split):
                continue
            used += 1
            for message in dialogue.messages:
                yield message.role
                yield message.content or ""
    if not read:
        raise errors[0] if errors else InputError(f"{files[0]}: holds no dialogue, only empty lines")
    if not used:
        raise InputError(
            f"data.eval_fraction={split[0]:g} holds out all {read:,} dialogues of data.train, so that none is left to "
            "train a tokenizer, or a model, on; lower it, or name files of their own in data.eval"
        )
