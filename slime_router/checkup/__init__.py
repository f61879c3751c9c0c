"""The check-up: is every turn of a model family exact? Conversations without a model, judged."""
