"""Which tokens does a dialogue become, and which of them are trained, with which weight?

spec.py is all the options as plain values, and makes an Encoder. Encoder.encode takes dialogues and returns TokenTrees
(token_tree.py) and EncodingStats (stats.py), what became of every dialogue. In between: loss_weights.py chooses the
responses; weight_rules.py reads what the config says of their weights, char_weights.py brings that and the spans of
messages to characters, and token_weights.py to tokens; text_ids.py tokenizes each text once; response_plan.py grows the
tree of any dialogue, and chain_plan.py, the fast path, lays out many that are chains; over_length.py cuts what is
longer than a row; thoughts.py finds the reasoning in a response; reply_tokens.py says which control tokens a reply's
words may hold, and spelling.py finds everybody who spells one.
"""
