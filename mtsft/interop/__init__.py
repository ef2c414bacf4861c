"""Hugging Face folders: the families of decoders that are read and written."""
