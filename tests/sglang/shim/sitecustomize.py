"""Lets SGLang be imported without a GPU. Python runs this file at start if it is on PYTHONPATH.

Some imports would fail: `triton`, which is not installed, `torchvision`, whose published wheel
holds CUDA operators that do not load, and models that see, which look for kernels of SGLang's at
once, though they need none of them. And where SGLang notes which experts it routed tokens to, and
for adapters, it wants memory that CUDA has pinned: plain memory does too. SGLang's server starts
Python processes of its own; they inherit PYTHONPATH, and with it this file.
"""

import importlib.machinery
import sys
import types

TRITON_VERSION = "3.0.0"  # some importers compare it
MISSING_OPERATORS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
MISSING_KERNELS = tuple(
    f"{name}(Tensor x) -> Tensor"
    for name in (
        "fused_qk_gemma_rmsnorm_cpu",
        "fused_qk_gemma_rmsnorm_with_gate_cpu",
        "fused_qkvzba_split_reshape_cat_contiguous_cpu",
        "fused_sigmoid_mul_cpu",
    )
)


class Stub:
    """Any attribute, any item, and a decorator that changes nothing."""

    def __getattr__(self, name):
        return stub_for(name)

    def __getitem__(self, key):
        return self

    def __call__(self, *args, **kwargs):
        if len(args) == 1 and not kwargs and callable(args[0]):
            return args[0]  # used as @decorator
        return lambda decorated: decorated  # used as @decorator(...)


class StubModule(types.ModuleType):
    """A module in which every name can be found."""

    __version__ = TRITON_VERSION
    __path__ = ()  # a package, so that its submodules are asked for

    def __getattr__(self, name):
        return stub_for(name)


def stub_for(name):
    """What a stub gives under `name`: classes where a class is meant, since people inherit."""
    if name.startswith("__"):
        raise AttributeError(name)
    if name[0].isupper():
        return type(name, (), {"__init__": lambda self, *args, **kwargs: None})
    return REAL_FUNCTIONS.get(name) or Stub()


def cdiv(x, y):
    """The quotient of two whole numbers, rounded up."""
    return -(-x // y)


def next_power_of_2(n):
    """The least power of two that is not below `n`."""
    return 1 << max(n - 1, 0).bit_length()


REAL_FUNCTIONS = {"cdiv": cdiv, "next_power_of_2": next_power_of_2}


def unpin_memory():
    """From now on torch makes plain tensors where it is asked for pinned ones."""
    import torch

    def plain(make):
        return lambda *args, pin_memory=False, **kwargs: make(*args, **kwargs)

    for name in ("arange", "empty", "ones", "tensor", "zeros"):
        setattr(torch, name, plain(getattr(torch, name)))
    torch.Tensor.pin_memory = lambda self, *args: self


class Shim:
    """An entry of `sys.meta_path`: finds and loads triton, and prepares for other imports."""

    def __init__(self):
        self.libraries = {}  # the operators live as long as these objects

    def find_spec(self, name, path=None, target=None):
        if name == "torchvision":
            self.define("torchvision", MISSING_OPERATORS)
        if name == "sglang.srt.multimodal.processors":
            self.define("sgl_kernel", MISSING_KERNELS)
        if name == "sglang.srt.state_capturer.base":
            self.allow_plain_memory()
        if name == "sglang.srt.lora.layers":
            unpin_memory()
        if name.partition(".")[0] == "triton":
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None  # somebody else finds it

    def create_module(self, spec):
        return StubModule(spec.name)

    def exec_module(self, module):
        """Nothing to run."""

    def define(self, namespace, schemas):
        if namespace not in self.libraries:
            import torch

            library = torch.library.Library(namespace, "FRAGMENT")
            self.libraries[namespace] = library
            for schema in schemas:
                library.define(schema)

    def allow_plain_memory(self):
        import torch
        from sglang.srt.mem_cache.pool_host import common

        common.ALLOC_MEMORY_FUNCS["cpu"] = lambda dims, *, dtype, **_: torch.empty(
            dims, dtype=dtype
        )


sys.meta_path.insert(0, Shim())
