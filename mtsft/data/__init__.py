"""Many dialogues: from tokens to batches. Numpy only, no jax."""
