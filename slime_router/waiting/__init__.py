"""What waits: what others can end, what has to wait for its turn, and what no longer has to."""
