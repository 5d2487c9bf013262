"""Checks of a backward pass: one file for each kind of question, ``check.py`` asks them all."""
