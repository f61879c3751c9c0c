"""SGLang servers that the router starts itself, watches, and starts again when they die."""
