"""One layer of the decoder: attention and a gated MLP, each added to the residual stream."""

from functools import partial

from flax import nnx

from mtsft.model.architecture import ACTIVATIONS, Architecture
from mtsft.model.init_keys import InitKeys
from mtsft.model.layers import Linear, RMSNorm
from mtsft.model.lora import LoRA
from mtsft.model.rope import rotate

# The matrices that adapters can be put to, by their names.
MATRICES = (
    *(f"layers/attention/{name}" for name in ("query", "key", "value", "output")),
    *(f"layers/mlp/{name}" for name in ("gate", "up", "down")),
)


class Attention(nnx.Module):
    """Grouped-query self-attention with rotary positions."""

    def __init__(self, arch: Architecture, lora: LoRA, keys: InitKeys):
        D, K, H, G = arch.hidden_size, arch.head_dim, arch.num_attention_heads, arch.num_key_value_heads
        linear = partial(Linear, arch, lora)
        self.head_dim = K
        self.query = linear("layers/attention/query", D, H * K, keys, bias=arch.attention_bias)
        self.key = linear("layers/attention/key", D, G * K, keys, bias=arch.attention_bias)
        self.value = linear("layers/attention/value", D, G * K, keys, bias=arch.attention_bias)
        self.output = linear(
            "layers/attention/output",
            H * K,
            D,
            keys,
            bias=arch.attention_output_bias,
            deviation=_residual_deviation(arch, H * K),
        )
        self.query_norm = RMSNorm(arch, lora, "layers/attention/query_norm", K) if arch.qk_norm else None
        self.key_norm = RMSNorm(arch, lora, "layers/attention/key_norm", K) if arch.qk_norm else None

    def __call__(self, x_BxLxD, cos_sin, attend, keys_B):
        """Self-attention of (B, L, D).

        Args:
            x_BxLxD: the normed residual stream.
            cos_sin: of each slot's angles; see `rope.rotary`.
            attend: (query, key, value) -> (values attended to (B, L, H, K), what to keep of them, such as a cache).
            keys_B: a random key a row for dropout in adapters; None for no dropout.

        Returns:
            (B, L, D) to add to the stream, and what `attend` keeps.
        """
        B, L, _ = x_BxLxD.shape
        query, key, value = (
            project(x_BxLxD, keys_B).reshape(B, L, -1, self.head_dim) for project in (self.query, self.key, self.value)
        )
        if self.query_norm is not None:
            query, key = self.query_norm(query), self.key_norm(key)
        attended, kept = attend(rotate(query, cos_sin), rotate(key, cos_sin), value)
        return self.output(attended.reshape(B, L, -1), keys_B), kept


class MLP(nnx.Module):
    """The gated MLP: down(act(gate x) * up x)."""

    def __init__(self, arch: Architecture, lora: LoRA, keys: InitKeys):
        D, F = arch.hidden_size, arch.intermediate_size
        linear = partial(Linear, arch, lora, bias=arch.mlp_bias)
        self.activation = ACTIVATIONS[arch.hidden_act]
        self.gate = linear("layers/mlp/gate", D, F, keys)
        self.up = linear("layers/mlp/up", D, F, keys)
        self.down = linear("layers/mlp/down", F, D, keys, deviation=_residual_deviation(arch, F))

    def __call__(self, x_BxLxD, keys_B):
        """(B, L, D) to (B, L, D), and the sums of auxiliary losses by name, {} here: a router would have some."""
        return self.down(self.activation(self.gate(x_BxLxD, keys_B)) * self.up(x_BxLxD, keys_B), keys_B), {}


class Layer(nnx.Module):
    """One pre-norm block; some families also norm what each part adds to the residual stream."""

    def __init__(self, arch: Architecture, lora: LoRA, keys: InitKeys):
        def norm(name):
            return RMSNorm(arch, lora, f"layers/{name}", arch.hidden_size)

        self.attention_norm = norm("attention_norm")
        self.attention = Attention(arch, lora, keys)
        self.post_attention_norm = norm("post_attention_norm") if arch.post_norms else None
        self.mlp_norm = norm("mlp_norm")
        self.mlp = MLP(arch, lora, keys)
        self.post_mlp_norm = norm("post_mlp_norm") if arch.post_norms else None

    def __call__(self, x_BxLxD, cos_sin, attend, keys_B):
        """The stream after this layer, what `attend` keeps, and auxiliary sums; arguments as those of Attention."""
        attended, kept = self.attention(self.attention_norm(x_BxLxD), cos_sin, attend, keys_B)
        x_BxLxD = x_BxLxD + (self.post_attention_norm(attended) if self.post_attention_norm else attended)
        computed, auxiliary = self.mlp(self.mlp_norm(x_BxLxD), keys_B)
        return x_BxLxD + (self.post_mlp_norm(computed) if self.post_mlp_norm else computed), kept, auxiliary


def _residual_deviation(arch: Architecture, fan_in: int) -> float:
    """The standard deviation of a fresh matrix onto the residual stream, so that its size stays over the layers.

    Radford et al. 2019, Language models are unsupervised multitask learners, section 2.3.
    """
    return (2 * arch.num_hidden_layers * fan_in) ** -0.5
