"""What wraps a generation. Plug-ins use the same seam as the built-ins."""
