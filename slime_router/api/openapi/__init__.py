"""The API's description for machines and for people: `/openapi.json` and `/docs`."""
