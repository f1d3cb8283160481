"""Other systems, each driven by a small script in an environment of its own; see `__main__`.

Nothing here imports the rest of llmpq, and llmpq imports nothing from here: only names of modules pass between them.
"""
