"""The model of the benchmarks on CPUs: a Llama of 15.7 M parameters with 8,192 tokens, as the peers had it."""

SIZES = dict(
    hidden_size=384,
    intermediate_size=1024,
    num_hidden_layers=6,
    num_attention_heads=6,
    num_key_value_heads=2,
    head_dim=64,
    max_position_embeddings=2048,
    tie_word_embeddings=False,
)
VOCAB = 8192
