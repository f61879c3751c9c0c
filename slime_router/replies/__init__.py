"""Replies taken apart: reasoning, content, tool calls."""
