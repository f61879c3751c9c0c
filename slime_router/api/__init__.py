"""Wire formats: what clients send, and what they get back."""
