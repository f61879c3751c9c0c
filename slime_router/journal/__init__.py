"""The journal: what must outlive the process, in a directory of its own."""
