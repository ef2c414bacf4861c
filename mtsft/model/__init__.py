"""The decoder, its attention and how it speaks."""
