"""Which loss is trained: each file holds one, a callable (params, rows, rng) -> LossSums, and `table` names them.

A loss joins the model with `mtsft.training.head`; `forward` holds what several share. To add one, write its file
and a line in `table`; a setting of its own is a key of config.objective under the same name as its field. The step is
handed the loss and knows none of them.
"""
