"""What requests look for in an archive is fetched before they look, as long as it answers."""
