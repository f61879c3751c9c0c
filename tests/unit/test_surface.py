"""What a worker serves: every route of SGLang's own server is known, and stands in the docs."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from importlib.machinery import PathFinder
from pathlib import Path

import pytest

from slime_router.api.generate.request import SAMPLING_PARAMS
from slime_router.auth.surface import SURFACE, is_for_clients, served_at

PAGE = Path(__file__).parents[2] / "docs" / "api.md"
# Set by the server itself, never by a request.
INTERNAL_PARAMS = {
    "stop_strs",
    "stop_regex_strs",
    "stop_str_max_len",
    "stop_regex_max_len",
    "is_normalized",
}


def sglang() -> Path:
    found = PathFinder.find_spec("sglang")
    assert found is not None
    assert found.submodule_search_locations is not None
    return Path(found.submodule_search_locations[0]) / "srt"


def sglang_routes() -> Iterator[tuple[str, str]]:
    """Method and path of every route of SGLang's server, read off its source."""
    for name in ("http_server", "elastic_ep", "v1_loads"):
        source = (sglang() / "entrypoints" / f"{name}.py").read_text("utf-8")
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                for call in node.decorator_list:
                    yield from _routes_of(call)


def _routes_of(call: ast.expr) -> Iterator[tuple[str, str]]:
    if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Attribute):
        return
    of, kind = call.func.value, call.func.attr
    if not isinstance(of, ast.Name) or of.id not in ("app", "router"):
        return
    if kind in ("exception_handler", "middleware", "on_event"):
        return
    for path in [n.value for n in ast.walk(call.args[0]) if isinstance(n, ast.Constant)]:
        if not isinstance(path, str) or not path.startswith("/"):
            continue  # the name of a variable that can move it
        methods = next((k.value for k in call.keywords if k.arg == "methods"), None)
        names = [kind] if methods is None else ast.literal_eval(methods)
        yield from ((str(method).upper(), path) for method in names)


@pytest.mark.parsers
def test_every_route_of_sglang_is_known_with_its_methods():
    """A new one has to be looked at: does it carry ids, and who may ask for it?"""
    routes = {(m, re.sub(r"\{\w+(:\w+)?\}", "x", path)) for m, path in sglang_routes()}
    assert len(routes) > 90, "the test looks at something"
    unknown = sorted(path for _, path in routes if served_at(path) is None)
    assert unknown == []
    for method, path in routes:
        served = served_at(path)
        assert served is not None
        is_extra_get = method == "GET" and "POST" in served.methods  # it changes something
        assert method in served.methods or is_extra_get or served.how == "refused", (method, path)


@pytest.mark.parsers
def test_nothing_that_sglang_keeps_for_its_admin_is_a_clients():
    source = (sglang() / "entrypoints" / "http_server.py").read_text("utf-8")
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.AsyncFunctionDef | ast.FunctionDef):
            decorators = [ast.unparse(each) for each in node.decorator_list]
            if any(each.startswith("auth_level(AuthLevel.ADMIN") for each in decorators):
                for call in node.decorator_list:
                    for _, path in _routes_of(call):
                        assert not is_for_clients(path), path


@pytest.mark.parsers
def test_the_sampling_parameters_are_those_of_sglang():
    source = (sglang() / "sampling" / "sampling_params.py").read_text("utf-8")
    [params] = [
        node
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.ClassDef) and node.name == "SamplingParams"
    ]
    names = {
        node.target.id
        for node in params.body
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    }
    assert names - INTERNAL_PARAMS == SAMPLING_PARAMS


def test_the_table_of_the_api_page_has_every_route():
    text = PAGE.read_text("utf-8")
    rows = re.findall(r"^\| (`/[^|]*) \| ([A-Z, ]*) \| (\w+) \| (\w+) \|$", text, re.MULTILINE)
    told = {
        path: (how, who, tuple(methods.split(", ")) if methods else ())
        for paths, methods, how, who in rows
        for path in re.findall(r"`(/[^`]*)`", paths)
    }
    real = {
        path: (served.how, served.who, tuple(m for m in served.methods if m != "HEAD"))
        for path, served in SURFACE.items()
    }
    assert told == real


def test_slashes_make_no_difference_and_dots_are_no_way_around():
    assert served_at("//v1//score/") is served_at("/v1/score")
    assert served_at("/hicache/storage-backend/clear/") is not None
    assert served_at("/v1/models/x") is not None
    for path in ("/v1/../score", "/v1/./score", "/V1/score", "/dumper"):
        assert not is_for_clients(path)
