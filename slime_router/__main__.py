"""`python -m slime_router`."""

from slime_router.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main())
