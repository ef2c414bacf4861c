"""Attention: which keys does a query see, and which kernel computes it?

There is one mask, `mask.tree_mask`, read off an `AttentionLayout`; `scores` says how queries and keys make scores.
`kernels` is the table of what computes attention over whole rows, and chooses among it by what `rows` describes.
`plain` runs everywhere, `blocked` on CPUs; `flash` is the one mask in blocks, of which only live ones are looked at
(`live_blocks`), in Pallas for chips (`flash_tpu`, `flash_gpu`); `splash` and `cudnn` are libraries' kernels for rows of
chains. `compare` says how far a kernel is from the plain one. `cached` is attention of one token to a cache, in
decoding.
"""
