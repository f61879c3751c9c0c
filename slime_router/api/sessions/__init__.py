"""Sessions and their training rows."""
