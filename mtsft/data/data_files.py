"""The files of a run, found and not yet tokenised."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mtsft.config import DataConfig
from mtsft.corpora import recall
from mtsft.data.cache_lock import in_cache, note_use
from mtsft.data.chat_format import open_chat, train_tokenizer
from mtsft.data.store_key import code_digest
from mtsft.dialogue import find_files
from mtsft.dialogue.find_files import WeightedFile
from mtsft.dialogue.record_format import RecordFormat
from mtsft.encoding.spec import ChatFormat, EncodingSpec
from mtsft.errors import InputError
from mtsft.files import local_path

_CORPUS = "recall"


@dataclass(frozen=True)
class DataFiles:
    """The files of a run and how they are read. Build it with `find`.

    Attributes:
        train_files: files of training dialogues.
        weights: how often the dialogues of each training file are seen in an epoch, on average.
        eval_files: files of held-out dialogues; those of training where a share of them is held out.
        train_spec: how training dialogues become tokens, and which dialogues of the files these are.
        eval_spec: the same of held-out dialogues.
        cache: the folder of what is made from them.
        workers: tokenising processes; 0 for one a core.
        eval_weights: how often the dialogues of each held-out file are in an evaluation; () for once.
    """

    train_files: Sequence[Path]
    weights: Sequence[float]
    eval_files: Sequence[Path]
    train_spec: EncodingSpec
    eval_spec: EncodingSpec
    cache: Path
    workers: int
    eval_weights: Sequence[float] = ()

    @classmethod
    def find(cls, data: DataConfig, trains: bool = True) -> "DataFiles":
        """What a config names. A built-in corpus is written, and a tokenizer trained, unless they are in the cache.

        Args:
            data: the keys of the config.
            trains: whether training files are wanted where data.eval names those that are held out.

        Raises:
            InputError: for whatever is wrong with the names of files or the values.
        """
        cache = local_path(data.cache_dir, "data.cache_dir")
        if data.corpus:
            train_files, eval_files = _write_corpus(data, cache / "corpora")
            weights, eval_weights = [1.0] * len(train_files), []
        else:
            wanted = trains or not data.eval
            weighted = find_files.find_weighted_files(data.train, "data.train", cache) if wanted else []
            train_files, weights = [file.path for file in weighted], [file.weight for file in weighted]
            held_out = find_files.find_weighted_files(data.eval, "data.eval", cache) if data.eval else []
            eval_files, eval_weights = [file.path for file in held_out], [file.weight for file in held_out]
            data = _under_names(data, [*weighted, *held_out])
        form = RecordFormat.of(data.format, data.columns, data.roles, data.system, data.max_dialogue_bytes)
        for path in [*train_files, *eval_files]:
            find_files.check_readable(path)

        share = data.eval_fraction if not eval_files else 0.0

        def trained(chat: ChatFormat) -> Mapping[str, bytes]:
            folder = cache / "tokenizers"
            return train_tokenizer(chat, data.vocab_size, train_files, form, folder, split=(share, 1.0))

        chat = open_chat(data.tokenizer, data.template, data.template_variables, data.template_date, trained)
        return cls(
            train_files=train_files,
            weights=weights,
            eval_files=eval_files or (train_files if share else []),
            train_spec=EncodingSpec(chat, data, (share, 1.0)),
            eval_spec=EncodingSpec(chat, data, (0.0, share or 1.0)),
            cache=cache,
            workers=data.workers,
            eval_weights=eval_weights,
        )


def _under_names(data: DataConfig, files: Sequence[WeightedFile]) -> DataConfig:
    """With the names of columns and roles that a dataset_info.json says of the files; the config has one set of them.

    Raises InputError where the files, or the config, say different ones.
    """
    names = files[0].names
    if other := next((file.path for file in files if file.names != names), None):
        raise InputError(
            f"{other}: names its columns or roles otherwise than {files[0].path}, as dataset_info.json has them, and "
            "all files are read under the same names; write them anew under the same"
        )
    if not any(names):
        return data
    if data.columns or data.roles:
        raise InputError(
            f"{files[0].path}: dataset_info.json says the names of its columns and roles, and so do data.columns or "
            "data.roles; leave these out, or name the file itself"
        )
    return replace(data, columns=names.columns, roles=names.roles)


def _write_corpus(data: DataConfig, folder: Path) -> tuple[list[Path], list[Path]]:
    """Writes the built-in corpus, unless it is there, and returns its (train, held-out) files."""
    name, seed = data.corpus, data.corpus_seed
    if name != _CORPUS:
        raise InputError(f"data.corpus={name!r}: use {_CORPUS!r}, or '' and data.train for files of your own")
    version = code_digest()[:16]
    files = []
    # Seeds 2n and 2n + 1: the held-out dialogues are drawn apart from every training corpus.
    for part, count, draw in (
        ("train", data.corpus_dialogues, 2 * seed),
        ("eval", data.corpus_eval_dialogues, 2 * seed + 1),
    ):
        path = folder / f"{name}-{part}-{count}-{seed}-{version}.jsonl"
        with in_cache(folder):
            if not path.exists():
                folder.mkdir(parents=True, exist_ok=True)
                recall.write_corpus(path, count, draw)
            note_use(path)
        files.append([path])
    return files[0], files[1]
