"""Workers that nobody registers: they stand in a file, or are the addresses of a name."""
