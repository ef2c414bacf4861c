"""Models in the formats of others: Hugging Face folders and PEFT adapters, read and written.

A config.json becomes the fields of an Architecture and back (config_json, by the table in families), tensors become
sharded parameters (hf_folder reads, export writes), each by its name (weight_names).
model_card writes the README.md of what is exported, and generation_defaults reads how a model is to be sampled.
"""
