"""What is measured of a model: how good are these parameters, on dialogues they were not trained on?

Held-out loss by turn while a run goes on (`held_out`); afterwards scores of every token and tables of them with their
intervals (`token_scores`, `breakdown`, `score_table`); whether a model uses what was said earlier (`context`); replies
beside references, recall of earlier turns on the built-in corpus, and the identities (packed = alone, one pass = K
passes) as numbers. Everything here takes a model, parameters and data, and returns plain values.
"""
