"""Checks of a backward pass: one file for each kind of check, and ``check.py`` runs them."""
