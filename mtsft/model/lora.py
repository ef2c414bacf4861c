"""What adapters a model has, as data, and what is trained beside them."""

import re
from dataclasses import dataclass

from mtsft.errors import InputError

# The two matrices of an adapter, by the last part of their names.
ADAPTERS = ("lora_a", "lora_b")
# The rows of single tokens that are trained apart from the embedding or head that they stand in for, float32.
TOKEN_ROWS = "token_rows"
# What only a model with adapters has, by the last part of its name.
ADDED = (*ADAPTERS, TOKEN_ROWS)
QUANTIZED = ("", "int8", "nf4")


@dataclass(frozen=True, kw_only=True)
class LoRA:
    """Low-rank adapters (Hu et al. 2021, arXiv:2106.09685): y = W x + (alpha / rank) B A x, W frozen.

    Attributes:
        rank: 0 for no adapters.
        alpha: scales B A x, divided by rank.
        targets: a regex that is looked for in the names of matrices, such as "layers/attention/(query|value)".
        dropout: of what enters A, in training.
        modules_to_save: a regex that is looked for in the names of other modules, such as "embed|head|norm", which are
            trained whole beside the adapters and kept in float32; "" for none. PEFT's name.
        embed_tokens: ids, ascending, whose rows of the embedding are trained alone beside the adapters, apart from it.
            Of a head that is tied to the embedding they are the columns too. PEFT's trainable_token_indices.
        head_tokens: the same of the columns of a head of its own.
        quantize: what the layers' W, adapted or not, are kept in, as model/quantization.py says; "" for the parameter
            dtype.

    Raises:
        InputError: for impossible values.
    """

    rank: int = 0
    alpha: float = 16.0
    targets: str = ""
    dropout: float = 0.0
    modules_to_save: str = ""
    embed_tokens: tuple[int, ...] = ()
    head_tokens: tuple[int, ...] = ()
    quantize: str = ""

    def __post_init__(self):
        if self.rank < 0:
            raise InputError(f"lora.rank={self.rank}: must be at least 0 (no adapters)")
        if not 0 <= self.dropout < 1:
            raise InputError(f"lora.dropout={self.dropout}: must be in [0, 1)")
        if self.quantize not in QUANTIZED:
            raise InputError(f"lora.quantize={self.quantize!r}: use 'int8' or 'nf4', or '' to quantise nothing")
        if self.quantize and not self.rank:
            raise InputError(f"lora.quantize={self.quantize!r} is of what adapters leave frozen: set lora.rank above 0")
        for name, value in (("targets", self.targets), ("modules_to_save", self.modules_to_save)):
            try:
                re.compile(value)
            except re.error as error:
                raise InputError(f"lora.{name}={value!r} is not a regular expression: {error}") from error
        if not self.rank and (self.modules_to_save or self.embed_tokens or self.head_tokens):
            key = "modules_to_save" if self.modules_to_save else "trainable_tokens"
            raise InputError(f"lora.{key} is of what is trained beside adapters: set lora.rank above 0")

    @property
    def scale(self) -> float:
        """What B A x is multiplied by."""
        return self.alpha / self.rank

    def adapts(self, name: str) -> bool:
        """Whether the matrix of this name (as "layers/mlp/up") gets an adapter."""
        return bool(self.rank and re.search(self.targets, name))

    def saves(self, name: str) -> bool:
        """Whether the module of this name (as "embed" or "layers/mlp_norm") is trained whole beside the adapters."""
        return bool(self.modules_to_save and re.search(self.modules_to_save, name))

    def tokens_of(self, part: str) -> tuple[int, ...]:
        """The ids whose rows are trained apart from the "embed"ding or the "head"."""
        return {"embed": self.embed_tokens, "head": self.head_tokens}[part]

    def adds(self, name: str) -> bool:
        """Whether the parameter of this name is one that adapters bring, or is trained whole beside them."""
        module, _, leaf = name.rpartition("/")
        return leaf in ADDED or self.saves(module)

    def param_dtype(self, name: str, usual: str) -> str:
        """What the parameters of a module are kept in: float32 where it is trained beside adapters, else as usual."""
        return "float32" if self.saves(name) else usual


NO_LORA = LoRA()
