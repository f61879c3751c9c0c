"""Where settings come from: flags, variables, and a file."""
