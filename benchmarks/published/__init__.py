"""Experiments of the literature, one module each: `run(quick)` gives a record, `page` its tables, `draw` its panels.

`literature.py` runs them. What papers report is quoted in the modules' texts, with where it was read; values that are
only drawn in a figure are not guessed at.
"""
