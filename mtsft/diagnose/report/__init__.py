"""What runs left in their workdirs, as one HTML page: what was trained, on what, and how it went.

`run_files` reads, `panels` says what is drawn, `plots` draws it, `tables` and the rooms beside them write, and `write`
puts the page together.
"""
