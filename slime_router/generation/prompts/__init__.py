"""Prompts: how one is made of a call, and what it keeps."""
