"""The SGLang workers: who they are, who is next, how to talk to them."""
