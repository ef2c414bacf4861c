"""The decoder as pure functions: which numbers do parameters and tokens give?

`architecture` says what a decoder is, `transformer` holds `Model`, which everything outside uses: parameters are plain
nested dicts, `apply` takes tokens and their layout. `attention` is the mask and the kernels, `generate` decodes with a
cache, `quantization` keeps frozen matrices small. Nothing here knows of data files, losses or training.
"""
