"""Commands that try something out."""
