"""From turns to trees of tokens."""
