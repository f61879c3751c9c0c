"""Wire formats: what clients send, and what they are sent."""
