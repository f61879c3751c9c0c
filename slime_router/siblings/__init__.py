"""Several processes that are one router: they share a port, and hear what the others do."""
