"""What waits: what others can end, and what has to wait for its turn."""
