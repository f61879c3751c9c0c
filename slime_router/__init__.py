"""A token-exact gateway between language-model agents and SGLang workers."""

__version__ = "0.1.0"
