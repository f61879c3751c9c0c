"""What keeps the event loop from standing still, and notices where it does."""
