"""The pure side of chat: tokenizer, template, message identity."""
