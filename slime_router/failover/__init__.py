"""Keeps a generation alive when a worker is not."""
