"""The Hugging Face hub: whether it can be reached, and what of it is on this machine.

Its library tries each file again for half a minute where nothing answers, and a checkpoint has
some eight: one look before saves a start without a network these minutes.
"""

from __future__ import annotations

import logging
from time import sleep

from slime_router.errors import SetupError, one_line

LOOK_TIMEOUT_S = 10.0  # as the library waits for a file's head
LOOKS = 2  # a name may not be known for a moment
PAUSE_S = 1.0  # between them

logger = logging.getLogger(__name__)


def reached(repository: str) -> str:
    """The repository where the hub answers; else its directory in the cache, with a log line.

    Raises:
        SetupError: the hub cannot be reached, and none of the repository is in the cache.
    """
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    failure = _failure(repository)
    if failure is None:
        return repository
    unreachable = f"{constants.ENDPOINT} cannot be reached ({LOOKS} tries: {one_line(failure)})"
    try:
        directory = snapshot_download(repository, local_files_only=True)
    except LocalEntryNotFoundError:
        raise SetupError(
            f"no such directory, {unreachable}, and it is not in {constants.HF_HUB_CACHE}"
        ) from failure
    logger.warning("%s: %s: %s is used", repository, unreachable, directory)
    return directory


def _failure(repository: str) -> Exception | None:
    """Why the hub does not answer; None where it does, or is not to be asked."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.errors import OfflineModeIsEnabled

    failure: Exception | None = None
    for look in range(LOOKS):
        if look:
            sleep(PAUSE_S)
        try:
            get_hf_file_metadata(hf_hub_url(repository, "config.json"), timeout=LOOK_TIMEOUT_S)
        except (OfflineModeIsEnabled, ValueError):  # ValueError: it is not an id
            return None
        except Exception as exc:  # noqa: BLE001 - its HTTP library's error: it has had three of those
            # An answer that it does not like is an answer.
            if getattr(exc, "response", None) is not None:
                return None
            failure = exc
        else:
            return None
    return failure
