"""Stands in for SGLang's kernel package, of which no CPU build is published.

The torch paths of SGLang call one function of it. Every other name can be imported and fails when
it is called. No `torch.ops.sgl_kernel` is defined: its absence makes SGLang choose those paths.
"""


def assign_req_to_token_pool_cpu(
    req_pool_indices, req_to_token, start_offset, end_offset, out_cache_loc, stride
):
    """Write each request's new cache slots, which stand one after another, into its own row."""
    taken = 0
    for row, start, end in zip(
        req_pool_indices.tolist(), start_offset.tolist(), end_offset.tolist(), strict=True
    ):
        req_to_token[row, start:end] = out_cache_loc[taken : taken + end - start]
        taken += end - start


def __getattr__(name):
    if name.startswith("__"):
        raise AttributeError(name)

    def missing(*args, **kwargs):
        raise NotImplementedError(f"sgl_kernel.{name} has no CPU build")

    return missing
