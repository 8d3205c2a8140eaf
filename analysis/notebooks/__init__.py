"""Notebooks over result files, and `execute` to run them from the command line."""
