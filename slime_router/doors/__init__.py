"""One room per wire format. A door turns requests into calls and chunks into replies."""
