"""A trained model as it lies in a workdir, with its tokenizer and its template: to talk to, and to evaluate."""

import codecs
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
from etils import epath
from jax.sharding import SingleDeviceSharding
from ml_collections import ConfigDict
from tqdm import tqdm

from mtsft.diagnose.replies import replies
from mtsft.dialogue.encode import Encoder
from mtsft.dialogue.formats import parse_record
from mtsft.dialogue.schema import Message
from mtsft.errors import InputError
from mtsft.model.parameters import Params, join, split
from mtsft.model.sampling import GREEDY, Sampling, generate, stream
from mtsft.model.transformer import Model
from mtsft.training.pretrained import RunBase, open_trained
from mtsft.training.run import Run
from mtsft.training.workdir import with_its_date

_BATCH = 32  # contexts that are replied to at a time, or some more to fill all devices


@dataclass(frozen=True)
class Trained:
    """A model on one device, with its tokenizer and its template. Build it with `load`.

    step: of the checkpoint; 0 for a model that was not trained here.
    """

    model: Model
    params: Params
    encoder: Encoder
    step: int

    def prompt(self, messages: Sequence[Message | tuple[str, str]]) -> list[int]:
        """The tokens that a conversation so far makes, up to where the model goes on; rendered as in training.

        messages: Messages, or (role, content) pairs. Raises InputError for a role or a content that no dialogue can
        have, or a token that the model does not know.
        """
        said = [(m.role, m.content) if isinstance(m, Message) else m for m in messages]
        records = [{"role": role, "content": content} for role, content in said]
        prompt = self.encoder.prompt(parse_record({"messages": records}, "the conversation"))
        if max(prompt) >= self.model.arch.vocab_size:
            raise InputError(
                f"the prompt has the token {max(prompt)}, and the model embeds {self.model.arch.vocab_size:,}"
            )
        return prompt

    def reply(
        self, messages: Sequence[Message | tuple[str, str]], max_new: int = 256, sampling: Sampling = GREEDY
    ) -> str:
        """What the model says next, up to its stop and without it; by default the most probable tokens.

        messages: as those of `prompt`. max_new: tokens at most.
        """
        stops = self.encoder.stop_ids
        # Few lengths, so that a conversation that grows does not compile at every turn.
        arguments = (self.model, self.params, [self.prompt(messages)], stops, max_new, sampling)
        (tokens,) = generate(*arguments, length_multiple=256)
        return self.encoder.tokenizer.decode([token for token in tokens if token not in stops])

    def stream(
        self, messages: Sequence[Message | tuple[str, str]], max_new: int = 256, sampling: Sampling = GREEDY
    ) -> Iterator[str]:
        """What `reply` returns, piece by piece as it is decoded."""
        stops, tokenizer = self.encoder.stop_ids, self.encoder.tokenizer
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")  # a token may hold part of a character
        tokens, told = [], 0
        for token in stream(self.model, self.params, self.prompt(messages), stops, max_new, sampling):
            if token in stops:
                break
            tokens.append(token)
            said = tokenizer.decode_bytes(tokens)
            yield decoder.decode(said[told:])
            told = len(said)
        yield decoder.decode(b"", final=True)


def load(path: str | Path, step: int | None = None, **runtime) -> Trained:
    """The model that was trained in a workdir, or of a Hugging Face folder; it needs nothing but what lies there.

    A run that froze parameters (as LoRA does) needs what it started from, too. step: of the checkpoint; None for the
    best by held-out loss, or the newest where nothing was held out. runtime: dtype and the like, other than in
    training. Raises InputError where there is no such model.
    """
    base = open_trained(path, step)
    model = base.model(**runtime)
    device = SingleDeviceSharding(jax.local_devices()[0])
    params = base.restore(model, partial(jax.tree.map, lambda _: device))
    return Trained(model, params, base.encoder(), base.step)


def evaluate(config: ConfigDict, workdir: str | Path | None) -> dict[str, Any]:
    """The loss of a model on what `config` holds out; see Subject."""
    return Subject.of(config, workdir).evaluate()


@dataclass(frozen=True)
class Subject:
    """A model and the held-out dialogues it is tried on, on the devices that a config says. Build it with `of`."""

    run: Run
    params: Params

    @classmethod
    def of(cls, config: ConfigDict, workdir: str | Path | None) -> "Subject":
        """The best model of `workdir`, with its tokenizer; or, where that is None, the model of model.init_from.

        Raises InputError where there is no model, another one than the config's, or nothing held out.
        """
        if workdir is None:
            if not config.model.init_from:
                raise InputError("nothing to evaluate: give a --workdir, or set model.init_from")
            run = Run.of(with_its_date(config))
            _check_held_out(run)
            return cls(run, join(run.create().params, run.frozen()))
        workdir = epath.Path(workdir).expanduser()
        base = RunBase(workdir)  # refuses before any data is read
        config = with_its_date(config.copy_and_resolve_references(), workdir)
        config.data.tokenizer = str(workdir / "tokenizer")
        run = Run.of(config)
        _check_held_out(run)
        _check_same_model(run, base.config, workdir)
        return cls(run, base.restore(run.model, run.place))

    def evaluate(self) -> dict[str, Any]:
        """Held-out loss; see `mtsft.diagnose.evaluation.evaluate`."""
        return self.run.evaluate(*split(self.params, self.run.trains))

    def replies(self, sampling: Sampling, max_new: int, limit: int = 0) -> list[dict[str, Any]]:
        """What the model says in held-out contexts; see `mtsft.diagnose.replies.replies`."""
        run, stops = self.run, self.run.dataset.recipe.encoder().stop_ids
        batch_size = -(-_BATCH // run.door.num_shards) * run.door.num_shards

        def say(prompts: list[list[int]]) -> list[list[int]]:
            with tqdm(total=len(prompts), desc="replies", disable=jax.process_index() > 0) as bar:
                return generate(
                    run.model,
                    self.params,
                    prompts,
                    stops,
                    max_new,
                    sampling,
                    batch_size=batch_size,
                    rows=run.door.batch_sharding,
                    watch=bar.update,
                )

        return replies(say, run.dataset.eval, run.dataset.tokenizer, stops, limit)


def _check_held_out(run: Run) -> None:
    if run.dataset.eval is None:
        raise InputError("nothing is held out to evaluate on; set data.eval or data.eval_fraction")


def _check_same_model(run: Run, trained: ConfigDict, workdir: Path) -> None:
    for name in run.identity():
        group, _, key = name.partition(".")
        if group not in ("model", "lora") or key not in trained[group]:
            continue
        was, now = trained[group][key], run.config[group][key]
        if was != now:
            raise InputError(
                f"{workdir} holds a model with {name}={was}, and the config says {now}; "
                "evaluate it with the config that it was trained with"
            )
