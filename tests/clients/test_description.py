"""What `/openapi.json` says is true: schemathesis makes requests of it, right and wrong ones.

None is a 5xx, every error has the form that its path says, and what the description forbids is
refused. That all that it allows is served, it does not claim: a template, a vocabulary or a session
may refuse what has the right form.
"""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import pytest

from tests.clients.environment import python
from tests.integration.gateway import served

HERE = Path(__file__).parent / "python"
CHECKS = "not_a_server_error,response_schema_conformance,negative_data_rejection"
# What would change the workers or the router itself, for the requests that come after.
CHANGES = (
    r"/(workers|add_worker|remove_worker|reload|dashboard|pause|release|start_profile"
    r"|update_weight|unload|load_lora)"
)
TIMEOUT_S = 800.0  # a minute, where nothing else runs


@pytest.mark.timeout(900)
async def test_no_request_made_from_the_description_finds_it_wrong():
    async with served() as (router, _), router.http.get("/openapi.json") as there:
        process = await asyncio.create_subprocess_exec(
            python("description"),
            *("-m", "schemathesis.cli", "--config-file", HERE / "description.toml"),
            *("run", str(there.url), "--checks", CHECKS, "--no-color"),
            *("--phases", "coverage,fuzzing", "--max-examples", "2", "--continue-on-failure"),
            *("--exclude-path-regex", CHANGES, "--generation-deterministic"),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        try:
            async with asyncio.timeout(TIMEOUT_S):
                output, _ = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
    said = output.decode()
    assert process.returncode == 0, said[-8_000:]
    [tested] = re.findall(r"Tested: (\d+)", said)
    assert int(tested) >= 60, "it has read the description"
