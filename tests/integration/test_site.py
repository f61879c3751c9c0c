"""The site: it is built without a warning, made from the code where it says so, and its tutorials
are walked through, command by command."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from html.parser import HTMLParser
from pathlib import Path

import pytest

from slime_router.cli.flags import parser
from slime_router.doctor.causes import Cause
from slime_router.server.metrics import METRICS
from slime_router.telemetry.meters import INSTRUMENTS, PREFIX
from tests.integration.test_docs import ROOT, blocks, every_error, names, page, section, table
from tests.ports import free_port

DOCS = ROOT / "docs"
WALKS = [
    "docs/index.md",
    *(f"docs/tutorials/{name}.md" for name in ("application", "trainer", "operator", "framework")),
]
WALK_TIMEOUT_S = 200.0
OTHERS_FLAGS = {  # of docker, curl, kubectl, SGLang, agents and trainers
    *("--publish", "--volume", "--env", "--tag", "--rm", "--file", "--namespace", "--kustomize"),
    *(
        "--silent",
        "--fail",
        "--retry",
        "--retry-all-errors",
        "--retry-delay",
        "--retry-connrefused",
    ),
    *("--from-literal", "--only-matching", "--router", "--use-rollout-routing-replay"),
    *("--custom-generate-function-path", "--custom-reward-post-process-path"),
}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    variables = {**os.environ, "PYTHONPATH": str(ROOT), "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


class Assets(HTMLParser):
    """The addresses from which a page loads something."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag in ("script", "img", "iframe") and given.get("src"):
            self.found.append(str(given["src"]))
        if tag == "link" and given.get("rel") not in ("canonical", "next", "prev"):
            self.found.append(str(given.get("href")))


def built_pages(site: Path) -> Iterator[tuple[str, str]]:
    for path in sorted(site.rglob("*.html")):
        yield str(path.relative_to(site)), path.read_text(encoding="utf-8")


# What is built


@pytest.mark.slow
def test_every_page_is_built_and_loads_nothing_from_elsewhere(site):
    built = dict(built_pages(site))
    pages = {str(each.relative_to(DOCS).with_suffix(".html")) for each in DOCS.rglob("*.md")}
    assert pages - built.keys() == set()
    for name, html in built.items():
        assets = Assets()
        assets.feed(html)
        assert assets.found, name
        assert [each for each in assets.found if "//" in each] == [], name


@pytest.mark.slow
def test_marks_of_tests_are_not_shown(site):
    for name, html in built_pages(site):
        assert "```" not in html, name
        assert not re.search(r">sh (walk|runnable)|python (walk|runnable)<", html), name


@pytest.mark.slow
def test_the_reference_has_every_setting_metric_and_error(site):
    texts = {
        name: (site / "generated" / f"{name}.html").read_text(encoding="utf-8")
        for name in ("flags", "metrics", "errors")
    }
    flags = {flag for action in parser()._actions for flag in action.option_strings}
    apart = {"-h", "--help", "--version", "--config", "--print-config"}
    flags = {flag for flag in flags - apart if not flag.startswith("--no-")}
    assert [flag for flag in sorted(flags) if f"<code>{flag}</code>" not in texts["flags"]] == []
    metrics = [f"<code>{PREFIX}{metric.name}</code>" for metric in (*METRICS, *INSTRUMENTS)]
    assert [each for each in metrics if each not in texts["metrics"]] == []
    internal = ("SetupError", "WorkerRefused")
    codes = {str(kind.code) for kind in every_error() if kind.__name__ not in internal}
    assert [code for code in sorted(codes) if f"<code>{code}</code>" not in texts["errors"]] == []


def test_pictures_say_what_they_show_and_know_the_dark():
    pictures = sorted(DOCS.glob("pictures/*.svg"))
    assert len(pictures) == 4
    for path in pictures:
        text = path.read_text(encoding="utf-8")
        assert "<title " in text
        assert "<desc " in text
        assert "prefers-color-scheme: dark" in text
        assert f"](pictures/{path.name})" in page("docs/concepts.md"), path.name


# What the pages say


def test_flags_that_guides_and_tutorials_name_exist():
    known = {flag for action in parser()._actions for flag in action.option_strings}
    folders = ("guides", "tutorials")
    pages = [each for folder in folders for each in (DOCS / folder).glob("*.md")]
    pages += [DOCS / "deploy.md", DOCS / "troubleshooting.md", DOCS / "index.md"]
    assert len(pages) > 10
    for path in pages:
        text = path.read_text(encoding="utf-8")
        named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", text))
        assert named - known - OTHERS_FLAGS == set(), path


def test_the_causes_of_drift_and_the_codes_of_errors_are_those_of_the_code():
    told = table(page("docs/troubleshooting.md"), "class")
    assert {names(row[0])[0] for row in told} <= {cause.value for cause in Cause}
    codes = {
        code for row in table(section("docs/api.md", "Errors"), "status") for code in names(row[2])
    }
    shown = table(section("docs/troubleshooting.md", "A 401 or a 403"), "you see")
    assert {names(row[0])[0] for row in shown} <= codes


def test_the_chinese_pages_have_the_commands_of_the_english_ones():
    for english, chinese in (("docs/index.md", "docs/index.zh.md"), ("README.md", "README.zh.md")):
        ours = [re.sub(r'"content": "[^"]*"', "", each.text) for each in blocks(english)]
        theirs = [re.sub(r'"content": "[^"]*"', "", each.text) for each in blocks(chinese)]
        commands = [re.sub(r" +#.*", "", text) for text in theirs]
        originals = [re.sub(r" +#.*", "", text) for text in ours]
        assert commands
        assert [text for text in commands if text not in originals] == []


# What the pages show is done


def script(name: str, port: int) -> str:
    """All that a page tells its reader to do, in one shell, against a free port."""
    parts = ["set -e", "trap 'kill $(jobs -p) 2>/dev/null || true' EXIT"]
    for number, block in enumerate(blocks(name)):
        if block.mark != "walk":
            continue
        text = block.text.replace("30001", str(port))
        if block.language == "python":
            text = f"cat > block-{number}.py <<'PROGRAM'\n{text}PROGRAM\npython block-{number}.py\n"
        parts.append(text)
    python = shlex.quote(sys.executable)
    whole = "\n".join(parts).replace("examples/", f"{ROOT}/examples/")
    whole = re.sub(r"^slime-router ", f"{python} -m slime_router ", whole, flags=re.MULTILINE)
    whole = re.sub(r"^python ", f"{python} ", whole, flags=re.MULTILINE)
    return whole.replace("curl ", "curl --show-error --fail ")


@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.parametrize("name", WALKS)
def test_a_reader_gets_through(name, tmp_path):
    """From an empty folder, with nothing but what the page says."""
    text = script(name, free_port())
    assert "curl" in text
    process = subprocess.Popen(
        ["bash", "-c", text],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        output, errors = process.communicate(timeout=WALK_TIMEOUT_S)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    assert process.returncode == 0, f"{output}\n{errors}"
    EXPECTED[name.partition("docs/")[2]](output)


def rows(output: str) -> None:
    assert '"loss_mask":' in output
    assert '"logprobs":' in output


def application(output: str) -> None:
    statuses = re.findall(r'"status":"(\w+)"', output)
    assert statuses == ["fresh", "extended", "extended"]
    assert re.search(r"^\d+ tokens, \d+ of them sampled$", output, re.MULTILINE)


def trainer(output: str) -> None:
    [(before, after)] = re.findall(r"^reward (\d\.\d+) -> (\d\.\d+)$", output, re.MULTILINE)
    assert float(before) < 0.2
    assert float(after) > 0.8
    assert len(re.findall(r"step +\d+  reward .* in 32 rows$", output, re.MULTILINE)) == 10


def operator(output: str) -> None:
    assert 'api_keys_file = "keys"  # router.toml' in output
    assert "# admin_api_key = ***  # SLIME_ROUTER_ADMIN_API_KEY" in output
    assert '"healthy_workers": 1' in output
    assert '"keys": 3' in output
    assert "slime_router_workers 1" in output


def framework(output: str) -> None:
    assert re.search(r'"completion_tokens": ?[1-4]\b', output)


EXPECTED = {
    "index.md": rows,
    "tutorials/application.md": application,
    "tutorials/trainer.md": trainer,
    "tutorials/operator.md": operator,
    "tutorials/framework.md": framework,
}
