"""Rows of many sessions in a directory: each once, in files that tools for training data read."""
