"""A trained model with its tokenizer and its template: to talk to."""

import codecs
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path

import jax
from jax.sharding import SingleDeviceSharding

from mtsft.dialogue.formats import parse_record
from mtsft.dialogue.schema import Message
from mtsft.encoding.encoder import Encoder
from mtsft.errors import InputError
from mtsft.interop.generation_defaults import NO_DEFAULTS, GenerationDefaults, read_generation_defaults
from mtsft.model.generate import GREEDY, Sampling, generate, stream
from mtsft.model.parameters import Params
from mtsft.model.transformer import Model
from mtsft.runs.adapter_model import AdapterModel, open_with_adapters
from mtsft.runs.conversation import Conversation


@dataclass(frozen=True)
class ChatModel:
    """A model on one device, with its tokenizer and its template. Build it with `load`.

    Attributes:
        model: its architecture, as pure functions.
        params: its parameters.
        encoder: conversations as its tokens.
        step: of the checkpoint; 0 for a model that was not trained here.
        defaults: how its own generation_config.json has it sampled.
        name: what it was loaded from, in words.
    """

    model: Model
    params: Params
    encoder: Encoder
    step: int
    defaults: GenerationDefaults = NO_DEFAULTS
    name: str = ""

    @classmethod
    def load(
        cls, path: str | Path, step: int | None = None, places: Sequence[str | Path] = (), **runtime
    ) -> "ChatModel":
        """The model that was trained in a workdir, or of a Hugging Face folder; it needs nothing but what lies there.

        A run that froze parameters (as LoRA does) needs what it started from, too, and a PEFT folder its base.

        Args:
            path: the workdir, the folder, or a folder of PEFT adapters.
            step: of the checkpoint; None for the best by held-out loss, or the newest where nothing was held out.
            places: folders where the base of the adapters may be by now, in place of where they say.
            runtime: dtype and the like, other than in training.

        Raises:
            InputError: there is no such model.
        """
        trained = open_with_adapters(path, step, places)
        model = trained.model(**runtime)
        device = SingleDeviceSharding(jax.local_devices()[0])
        params = trained.restore(model, partial(jax.tree.map, lambda _: device))
        defaults = read_generation_defaults(trained.chat.tokenizer.get("generation_config.json"))
        said = f", step {trained.step:,}" if trained.step else ""
        said += f", adapters over {trained.base.path}" if isinstance(trained, AdapterModel) else ""
        return cls(model, params, trained.encoder(), trained.step, defaults, f"{path}{said}")

    def chat(self, system: str = "", max_new: int | None = None, sampling: Sampling | None = None) -> Conversation:
        """A conversation with it.

        Args:
            system: the system prompt; "" for none.
            max_new: tokens of a reply at most; None for as many as its generation_config.json says.
            sampling: how the tokens of a reply are chosen; None for what its generation_config.json says, which is the
                most probable ones where it says nothing.

        Raises:
            InputError: the template refuses the system prompt, or the model has no room after it.
        """
        return Conversation(self, sampling or self.defaults.sampling, max_new or self.defaults.max_new, system)

    def prompt(self, messages: Sequence[Message | tuple[str, str]]) -> list[int]:
        """The tokens of a conversation so far, up to where the model goes on; rendered as in training.

        Args:
            messages: Messages, or (role, content) pairs.

        Raises:
            InputError: a role or a content is one that no dialogue can have, a token is one that the model does not
                embed, or no position is left to reply in.
        """
        pairs = [(m.role, m.content) if isinstance(m, Message) else m for m in messages]
        records = [{"role": role, "content": content} for role, content in pairs]
        prompt = self.encoder.prompt(parse_record({"messages": records}, "the conversation"))
        if max(prompt) >= self.model.arch.vocab_size:
            raise InputError(
                f"the prompt has the token {max(prompt)}, and the model embeds {self.model.arch.vocab_size:,}"
            )
        if 0 < self.model.arch.max_position_embeddings <= len(prompt):
            raise InputError(
                f"the conversation has {len(prompt):,} tokens, and the model is made for "
                f"{self.model.arch.max_position_embeddings:,}; /reset, or start with less"
            )
        return prompt

    def reply(
        self, messages: Sequence[Message | tuple[str, str]], max_new: int = 256, sampling: Sampling = GREEDY
    ) -> str:
        """The model's reply, without the token that ends it.

        Args:
            messages: as those of `prompt`.
            max_new: tokens at most; fewer where the model's positions end.
            sampling: how tokens are chosen; by default the most probable ones.

        Raises:
            InputError: as `prompt` does.
        """
        stops, tokenizer, prompt = self.encoder.stop_ids, self.encoder.tokenizer, self.prompt(messages)
        # Few lengths, so that a conversation that grows does not compile at every turn.
        arguments = (self.model, self.params, [prompt], stops, max_new, sampling)
        (tokens,) = generate(*arguments, length_multiple=256, vocab_size=tokenizer.vocab_size)
        most = self.model.arch.positions_after(len(prompt), max_new)
        return tokenizer.decode([token for token in tokens[:most] if token not in stops])

    def stream(
        self, messages: Sequence[Message | tuple[str, str]], max_new: int = 256, sampling: Sampling = GREEDY
    ) -> Iterator[str]:
        """The text that `reply` returns, piece by piece as it is decoded."""
        stops, tokenizer, prompt = self.encoder.stop_ids, self.encoder.tokenizer, self.prompt(messages)
        arguments = (self.model, self.params, prompt, stops, max_new, sampling)
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")  # a token may hold part of a character
        most = self.model.arch.positions_after(len(prompt), max_new)
        tokens, num_yielded = [], 0  # bytes
        for token in islice(stream(*arguments, vocab_size=tokenizer.vocab_size), most):
            if token in stops:
                break
            tokens.append(token)
            decoded = tokenizer.decode_bytes(tokens)
            yield decoder.decode(decoded[num_yielded:])
            num_yielded = len(decoded)
        yield decoder.decode(b"", final=True)
