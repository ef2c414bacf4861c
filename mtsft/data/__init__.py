"""Which dialogues does a step train on? From files to batches of packed rows, with numpy alone.

data_files.py and chat_format.py find what a config names; store.py tokenizes the files once and caches the trees;
packing.py says which of them share a row; batches.py makes the batch of any step; dataset.py is all of it for a run.
cache.py bounds, lists and clears what is kept on the way; store_use.py says which stores are in use.
"""
