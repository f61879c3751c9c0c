"""What changes while the router runs: keys, certificates and the workers that the settings name."""
