"""Benchmarks of deltaprop and other libraries: ``python -m benchmarks``."""
