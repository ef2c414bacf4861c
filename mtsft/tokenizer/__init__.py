"""From text to token ids and back: which ids does a text give by itself, and which are the control tokens?

A tokenizer is made of the files that people have (load.py): a SentencePiece model (sentencepiece.py) or a Hugging Face
folder (huggingface.py, tokenizer_json.py; ascii_bpe.py is a fast path for ASCII text). Whatever it was made of,
`Tokenizer` (base.py) is the same: plain text is encoded as text and never gives a control token, control tokens are
looked up by the text that the chat template writes, and ids are decoded to the byte.
"""
