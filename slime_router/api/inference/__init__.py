"""vLLM's token API: ids in, ids out."""
