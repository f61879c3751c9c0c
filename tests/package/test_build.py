"""What is in the wheel and in the source distribution, and that one version is said everywhere."""

from __future__ import annotations

import email.message
import email.parser
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

from slime_router import __version__

ROOT = Path(__file__).parents[2]
PAGES = ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "LICENSE")


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both, built as `make dist` does."""
    folder = tmp_path_factory.mktemp("dist")
    build = (sys.executable, "-m", "hatchling", "build", "--directory", str(folder))
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    return folder


@pytest.fixture(scope="module")
def wheel(dist: Path) -> zipfile.ZipFile:
    [path] = dist.glob("*.whl")
    return zipfile.ZipFile(path)


@pytest.fixture(scope="module")
def metadata(wheel: zipfile.ZipFile) -> email.message.Message:
    [name] = [name for name in wheel.namelist() if name.endswith("/METADATA")]
    return email.parser.BytesParser().parsebytes(wheel.read(name))


@pytest.mark.slow
def test_the_wheel_holds_the_package_and_nothing_else(wheel):
    source = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "slime_router").rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }
    info = f"slime_router-{__version__}.dist-info/"
    assert {name for name in wheel.namelist() if not name.startswith(info)} == source
    assert "slime_router/py.typed" in source
    assert wheel.read(f"{info}licenses/LICENSE") == (ROOT / "LICENSE").read_bytes()


def test_the_source_distribution_can_be_tested_and_holds_no_cache(dist):
    [path] = dist.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert names >= {*PAGES, "Makefile", "pyproject.toml", "tests/conftest.py", ".ci/run"}
    strange = re.compile(r"__pycache__|\.venv|\.cache|\.hypothesis|\.log$|egg-info")
    assert [name for name in names if strange.search(name)] == []


def test_it_says_who_may_use_it_and_what_it_runs_on(metadata):
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Version"] == __version__
    assert metadata["Requires-Python"] == ">=3.11"
    pythons = re.findall(r"Python :: (3\.\d+)", " ".join(metadata.get_all("Classifier", ())))
    assert pythons == ["3.11", "3.12", "3.13"]


def test_no_extra_but_the_workers_own_asks_for_sglang_or_torch(metadata):
    wanted = metadata.get_all("Requires-Dist", ())
    heavy = [line for line in wanted if re.match(r"(sglang|torch)\b", line)]
    assert len(heavy) == 1
    assert re.fullmatch(r"sglang<0\.6,>=[\d.]+; extra == 'sglang'", heavy[0])


def test_every_dependency_has_a_floor():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"].values()
    wanted = [*project["dependencies"], *(line for extra in extras for line in extra)]
    assert len(wanted) > 15
    assert [line for line in wanted if not re.match(r"[\w.-]+>=\d", line)] == []


def test_the_changelog_tells_of_this_version_and_of_what_comes():
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    heads = re.findall(r"^## (.*)$", changelog, re.MULTILINE)
    assert heads[0] == "Unreleased"
    assert heads[1].partition(" ")[0] == __version__


def test_the_license_is_apaches():
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert text.split("\n", 2)[0].strip() == "Apache License"
    assert "END OF TERMS AND CONDITIONS" in text
