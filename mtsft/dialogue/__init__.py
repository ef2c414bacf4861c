"""One dialogue: from text to tokens. No jax here."""
