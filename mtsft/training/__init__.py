"""One training step and what it needs: how do parameters, a batch and a loss become the next parameters?

`step` is the pure function, `partitioner` compiles it for many devices, `losses` holds the losses it can be handed,
`head` makes hidden states the loss of tokens, `objective` has the sums they share; optimizer, learning rates, sharding,
checkpoints and metrics stand in files of their own. Nothing here loops over steps or reads a config: that is
`mtsft.runs`.
"""
