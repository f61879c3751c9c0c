"""One file for each kind of gateway: how a session is opened, and how its tokens come back."""
