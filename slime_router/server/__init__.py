"""The HTTP application: routes, error boundary, wiring."""
