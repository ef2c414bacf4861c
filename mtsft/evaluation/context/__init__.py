"""Does a model use what was said earlier? Each response of held-out dialogues is scored again after other histories.

A dialogue becomes responses with their rounds (`rounds`); a response becomes the same response after other histories:
cut, of another dialogue (`donors`), perturbed (`perturb`), its instructions cut into other messages (`reshard`). All of
them are `variants`, which are encoded as training would and scored (`scoring`); what comes of it is tables (`tables`),
two tests and a sentence (`verdict`), a record and its text (`report`).
"""
