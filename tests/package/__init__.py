"""The package as a stranger gets it: what is in it, and what it does where nothing else is."""
