"""The journal: what must outlive the process, in its own directory."""
