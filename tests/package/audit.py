"""Known holes in what is installed: asks `pip-audit`, or says that nobody could be asked.

    python -m tests.package.audit

`pip-audit` asks PyPI's advisories. Where those cannot be reached, what is installed is compared
with the floors in `pyproject.toml`, which are above every hole that was known when they were set.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version

from packaging.requirements import Requirement

from tests.sglang.child import ROOT

TIMEOUT_S = 300
# Found, looked at, and of no matter here; each with its reason.
ACCEPTED: dict[str, str] = {}


def main() -> int:
    """The exit status: 1 if there is a known hole, or something is older than its floor."""
    answer = _ask_pip_audit()
    low = list(_below_floors())
    for line in low:
        print(f"audit: {line}")
    if answer is None:
        print(
            "audit: no advisories could be reached; what is installed was compared with the floors"
            " of pyproject.toml only"
        )
        return int(bool(low))
    holes = [line for line in _holes(answer) if line.split()[0] not in ACCEPTED]
    for line in holes:
        print(f"audit: {line}")
    print(f"audit: {len(answer)} packages, {len(holes)} known holes")
    return int(bool(low or holes))


def _ask_pip_audit() -> list[dict[str, object]] | None:
    """What it says of each package; None if it could ask about none."""
    command = [sys.executable, "-m", "pip_audit", "--format", "json", "--progress-spinner", "off"]
    try:
        done = subprocess.run(
            command, capture_output=True, timeout=TIMEOUT_S, check=False, cwd=ROOT
        )
        found = json.loads(done.stdout)["dependencies"]
    except (subprocess.TimeoutExpired, ValueError, KeyError) as exc:
        print(f"audit: pip-audit gave no report ({type(exc).__name__})")
        return None
    asked = [each for each in found if "skip_reason" not in each]
    return asked or None


def _holes(packages: list[dict[str, object]]) -> Iterator[str]:
    for package in packages:
        holes = package.get("vulns")
        for hole in holes if isinstance(holes, list) else ():
            fixed = ", ".join(hole.get("fix_versions") or ()) or "no version"
            yield f"{hole['id']} in {package['name']} {package['version']}, mended in {fixed}"


def _below_floors() -> Iterator[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    extras = project["project"]["optional-dependencies"]
    wanted = [
        *project["project"]["dependencies"],
        *(each for name, listed in extras.items() if name != "sglang" for each in listed),
        *project["dependency-groups"]["dev"],
    ]
    for requirement in map(Requirement, wanted):
        if requirement.marker is not None and not requirement.marker.evaluate():
            continue
        try:
            installed = version(requirement.name)
        except PackageNotFoundError:
            continue  # an extra that is not here
        if not requirement.specifier.contains(installed, prereleases=True):
            yield f"{requirement.name} {installed} is not {requirement.specifier}"


if __name__ == "__main__":
    sys.exit(main())
