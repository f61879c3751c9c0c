"""SGLang's pure modules are opened without its engine, and without libraries they only name."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

_LOADS_PARSERS = """
import sys
from slime_router.replies.sglang_parsers import load_parsers
tool = load_parsers().Tool(type="function", function={"name": "look", "parameters": {}})
print(tool.function.name)
print(sorted({"IPython", "openai", "requests"} & {name.partition(".")[0] for name in sys.modules}))
print(any("sglang_entry" in type(finder).__module__ for finder in sys.meta_path))
"""
_THEN_OPENAI = """
from openai.types.responses import ResponseOutputText
print("annotations" in ResponseOutputText.model_fields)
"""
_OPENAI_FIRST = """
import openai
from slime_router.replies.sglang_parsers import load_parsers
load_parsers()
from sglang.srt.entrypoints.openai import protocol
print(protocol.ResponseOutputText.__module__.partition(".")[0], sys.modules["openai"] is openai)
"""


@pytest.mark.parsers
def test_the_parsers_load_without_the_libraries_that_they_only_name():
    tool, loaded, finds_stand_ins = _said(_LOADS_PARSERS)
    assert (tool, loaded, finds_stand_ins) == ("look", "[]", "False")


@pytest.mark.parsers
def test_who_imports_such_a_library_later_gets_the_library():
    assert _said(_LOADS_PARSERS + _THEN_OPENAI)[-1] == "True"


@pytest.mark.parsers
def test_a_library_that_is_imported_already_stays():
    assert _said("import sys\n" + _OPENAI_FIRST) == ["openai True"]


@pytest.mark.parametrize(
    "uses",
    [
        pytest.param("VALUE = openai.READY + 1", id="as it is imported"),
        pytest.param("from openai.parts import Part\nVALUE = Part.size + 1", id="of its parts"),
    ],
)
def test_a_sglang_that_uses_such_a_library_gets_the_library(tmp_path: Path, uses: str):
    parser = tmp_path / "sglang/srt/parser.py"
    parts = tmp_path / "openai/parts.py"
    for file, text in (
        (parser, f"import openai\nfrom sglang.srt import names\n{uses}\n"),
        (tmp_path / "sglang/srt/names.py", "from openai.parts import Part\n"),
        (tmp_path / "openai/__init__.py", "READY = 1\n"),
        (parts, "class Part:\n    size = 1\n"),
    ):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
    (tmp_path / "sglang/__init__.py").write_text("raise ImportError('the engine')\n")
    code = (
        "from slime_router.checkpoint.sglang_entry import import_from_sglang\n"
        "parser = import_from_sglang('parser')\n"
        "print(parser.VALUE, parser.names.Part.size)\n"
    )
    assert _said(code, tmp_path) == ["2 1"]


def _said(code: str, *first: Path) -> list[str]:
    """The lines that a new process prints; it looks for modules in `first` before all others."""
    path = os.pathsep.join([*map(str, first), *sys.path])
    ran = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": path},
    )
    return ran.stdout.splitlines()
