"""Where held tokens and a rendering differ, and why."""
