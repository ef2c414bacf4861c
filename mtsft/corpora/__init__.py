"""What is there to train on without a file of one's own? Corpora that are written by a program, from a seed.

recall.py is the one there is: dialogues whose later turns can only be answered from earlier ones.
"""
