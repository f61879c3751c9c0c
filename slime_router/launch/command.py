"""How SGLang servers are started: their command lines, and which GPUs each of them sees."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field

from slime_router.auth.keys import check_header_value
from slime_router.errors import SetupError
from slime_router.launch.machine import HOST, require_sglang, visible_gpus

logger = logging.getLogger(__name__)

API_KEY = "--api-key"
ROUTERS_OWN = ("--host", "--port")  # flags that the user of a router cannot give to its workers
_TP = ("--tp", "--tp-size", "--tensor-parallel-size")
_PP = ("--pp", "--pp-size", "--pipeline-parallel-size")
_DP = ("--dp", "--dp-size", "--data-parallel-size")
# With one of these the user has chosen the devices.
_DEVICES = ("--base-gpu-id", "--device", "--nnodes")


@dataclass(frozen=True, slots=True)
class WorkerCommand:
    """How one worker is started, wherever it is to listen. `gpus` None: it sees them all.

    `api_key` is the one that it requires, according to its `args`.
    """

    args: tuple[str, ...] = field(repr=False)
    gpus: str | None = None
    api_key: str | None = field(default=None, repr=False)

    def at(self, port: int) -> tuple[str, ...]:
        """The command line for this port."""
        return (*self.args, "--host", HOST, "--port", str(port))

    @property
    def env(self) -> dict[str, str]:
        """Environment variables that it gets besides the router's."""
        return {} if self.gpus is None else {"CUDA_VISIBLE_DEVICES": self.gpus}


def sglang_commands(
    count: int,
    checkpoint: str,
    flags: Sequence[str],
    *,
    python: str,
    trust_remote_code: bool = False,
    api_key: str | None = None,
) -> tuple[WorkerCommand, ...]:
    """`count` SGLang servers of one checkpoint. `flags` are SGLang's own, and win over ours.

    On a machine with several GPUs each server gets as many of its own as its flags ask for; unless
    they choose the devices themselves. Each asks for `api_key`, or for the one in its flags.

    Raises:
        SetupError: `python` has no SGLang, the machine has too few GPUs for one server, or a key
            cannot be sent.
    """
    if not count:
        return ()
    require_sglang(python)
    trust = ("--trust-remote-code",) if trust_remote_code else ()
    own_key = _value(flags, (API_KEY,))
    if own_key:
        check_header_value(own_key, f"{API_KEY} after --")
    # One word: SGLang would take a key that begins with a dash for a flag.
    guard = () if own_key or api_key is None else (f"{API_KEY}={api_key}",)
    server = (python, "-m", "sglang.launch_server", "--model-path", checkpoint)
    args = (*server, *trust, *flags, *guard)
    is_chosen = any(flag.partition("=")[0] in _DEVICES for flag in flags)
    slices = gpu_slices(() if is_chosen else visible_gpus(), gpus_per_worker(flags), count)
    return tuple(WorkerCommand(args, gpus, own_key or api_key) for gpus in slices)


def gpus_per_worker(flags: Sequence[str]) -> int:
    """How many GPUs a server with these flags takes."""
    copies = 1 if "--enable-dp-attention" in flags else _number(flags, _DP)
    return _number(flags, _TP) * _number(flags, _PP) * copies


def gpu_slices(gpus: Sequence[str], size: int, count: int) -> list[str | None]:
    """Which GPUs each of `count` workers sees; they share them where there are too few for all.

    Raises:
        SetupError: there are too few for one.
    """
    if len(gpus) < 2:
        return [None] * count
    slices = [",".join(gpus[i : i + size]) for i in range(0, len(gpus) - size + 1, size)]
    if not slices:
        raise SetupError(f"a worker with these flags needs {size} GPUs, there are {len(gpus)}")
    if count > len(slices):
        logger.warning("%d workers of %d GPUs share %d GPUs", count, size, len(gpus))
    return [slices[index % len(slices)] for index in range(count)]


def _number(flags: Sequence[str], names: Sequence[str]) -> int:
    """The value of a flag; 1 if it is missing, or so wrong that SGLang itself complains."""
    text = _value(flags, names)
    return int(text) if text.isdecimal() and len(text) < 10 and int(text) else 1


def _value(flags: Sequence[str], names: Sequence[str]) -> str:
    """The last value given for a flag; "" if there is none."""
    text = ""
    for index, flag in enumerate(flags):
        name, is_said, value = flag.partition("=")
        if name in names:
            text = value if is_said else "".join(flags[index + 1 : index + 2])
    return text
