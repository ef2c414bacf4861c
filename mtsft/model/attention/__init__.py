"""Attention: which keys does a query see, and which kernel computes it?

There is one mask, `mask.tree_mask`, read off an `AttentionLayout`; `scores` says how queries and keys make scores.
`kernels` is the table of what computes attention over whole rows: `blocked` on CPUs, `plain` anywhere; `cached` is
attention of one token to a cache, in decoding. To add a kernel, write its file and a line in `kernels`.
"""
