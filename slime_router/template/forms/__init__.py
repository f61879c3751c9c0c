"""Renderings of a chat template with blanks where the texts of the messages go."""
