"""What was said? From files in any of the usual formats to one form, Dialogue.

readers.py finds files and yields their records, with the file and line of each; formats.py tells the formats apart and
brings a record's messages in order, or in a tree of replies; normalize.py makes one spelling of each message's role,
content, reasoning, calls and weight, and refuses what would be lost; spans.py reads which characters of a message are
targets; schema.py is the result.
"""
