"""Checks of a backward pass: one file for each kind of check; ``check.py`` has the table of them and runs them."""
