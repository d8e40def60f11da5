"""One method a file; none imports another. See ``registry.py`` for the names."""
