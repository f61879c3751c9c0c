"""Readers of calls in formats of which SGLang's parser alone is not enough."""
