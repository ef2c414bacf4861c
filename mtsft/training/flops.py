"""How much arithmetic a training step needs, at two operations for a multiplication with its addition."""

from collections.abc import Mapping


def needed(sizes: Mapping[str, int], tokens: float, supervised: float, pairs: float, lora: bool = False) -> float:
    """FLOPs of forward, backward and the gradients of parameters.

    6 for each parameter of the layers' matrices and each token; 6 for each entry of the projection and each supervised
    token (the embedding is looked up, which costs none); 12 K H for each pair of a query and a key that it sees and
    each layer. A frozen matrix takes 4 for 6, as no gradient of it is formed; the adapters themselves are left out.
    What is computed a second time (rematerialisation) and what a mask throws away are not needed, and do not count.

    Args:
        sizes: by the names of the config's keys.
        tokens: without padding.
        supervised: of them.
        pairs: of a token with itself and each one before it on its path.
        lora: whether the matrices are frozen.
    """
    D, F, K = sizes["hidden_size"], sizes["intermediate_size"], sizes["head_dim"]
    H, G, layers = sizes["num_attention_heads"], sizes["num_key_value_heads"], sizes["num_hidden_layers"]
    matrices = layers * (D * K * (H + 2 * G) + H * K * D + 3 * D * F)
    each = 4 if lora else 6
    return float(each * matrices * tokens + each * D * sizes["vocab_size"] * supervised + 12 * K * H * layers * pairs)
