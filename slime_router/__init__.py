"""A token-exact gateway between language-model agents and SGLang workers."""
