"""The edge of a request: its head, its body, and what of it may go on to a worker."""
