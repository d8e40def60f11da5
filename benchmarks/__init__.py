"""Command lines: ``run.py`` trains and compares."""
