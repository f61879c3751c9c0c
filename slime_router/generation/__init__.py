"""One generation, from a call to its recorded turn."""
