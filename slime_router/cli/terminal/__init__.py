"""What operators and researchers run beside a router: tables, tokens and checks in a terminal."""
