"""Runs as people see them: rounds with all that follows from them, series to draw, numbers to read.

The command line and the service's console draw from here, so that both say the same of a run.
"""
