"""The house: which room may use which, and how big a room may be. Read off the source itself."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = "slime_router"
MAX_FILE_LEN = 400
MAX_FUNCTION_LEN = 60

# Bottom to top. A module stands on the floor with the longest prefix of its name.
FLOORS = ("words", "pure", "async", "flow", "doors", "server", "cli")
FLOOR_OF = {
    "": "words",
    "types": "words",
    "errors": "words",
    "config": "words",
    "owners": "words",
    "cache": "pure",
    "chat": "pure",
    "trajectory": "pure",
    "workers": "pure",
    "cache.prefix_cache": "async",
    "workers.client": "async",
    "workers.connector": "async",
    "workers.exchange": "async",
    "workers.attempts": "async",
    "workers.relay": "async",
    "workers.health": "async",
    "workers.pairs": "async",
    "launch": "async",
    "prompt": "flow",
    "router": "flow",
    "retrieval": "flow",
    "diagnosis": "flow",
    "weights": "flow",
    "metrics": "flow",
    "token_path": "flow",
    "checkup": "flow",
    "middleware": "flow",
    "doors": "doors",
    "server": "server",
    "client": "cli",  # beside the router: a trainer's side of its API
    "cli": "cli",
    "flags": "cli",
    "flag_groups": "cli",
    "diagnose_cli": "cli",
    "check_cli": "cli",
    "parsers_cli": "cli",
    "__main__": "cli",
    "testing": "cli",  # beside the router: nothing of it may be used by the router
}
STRANGERS = ("cache", "chat", "workers", "trajectory")  # rooms that never meet

# Who may use what, and why.
ASYNCIO_ON_THE_PURE_FLOOR = {
    "chat.tokenizer": "long texts are encoded in its executor",
}
CLOCKS = {
    "doors.chat_request": "a reply says when it was created",
    "doors.completions_request": "a reply says when it was created",
    "doors.responses_request": "a reply says when it was created",
    "server.boundary": "the log says how long a request took",
    "workers.pool": "a breaker opens and closes with time; handed in by tests",
    "prompt": "the date of a conversation; handed in by tests",
}
AIOHTTP = {
    "workers.client": "talks to the workers",
    "workers.connector": "opens the connections to them",
    "server": "serves",
    "cli": "serves",
    "client.aio": "talks to a router",
    "doors": "reads requests and writes replies",
    "testing": "is a worker",
}
TRANSFORMERS = {
    "chat.checkpoint": "loads tokenizers",
    "chat.checkpoint_files": "finds files of the hub",
    "chat.renderer": "renders templates",
}
SPELLINGS = {"max_new_tokens", "sampling_seed", "output_token_logprobs", "no_stop_trim"}
SPELLS_AS_SGLANG = {
    "workers": "speaks with SGLang",
    "testing": "is an SGLang",
    "doors.generate_request": "this door's API is the worker's own",
    "doors.generate_reply": "this door's API is the worker's own",
    "doors.schema": "a chat client may name fields of SGLang's chat API",
}
PARTS = {
    "AdmissionMiddleware",
    "ChatDoor",
    "ChatTemplate",
    "CompletionsDoor",
    "ControlRoutes",
    "CountingMiddleware",
    "DiagnoseDoor",
    "Doctor",
    "GenerateDoor",
    "Fleet",
    "Greetings",
    "Health",
    "LaunchedWorkers",
    "Launcher",
    "Joiner",
    "MessagesDoor",
    "ModelAdmin",
    "PassThrough",
    "PrefixCache",
    "PromptMaker",
    "Relay",
    "RadixTreeMiddleware",
    "RecordingMiddleware",
    "RetrieveDoor",
    "ReplyParsers",
    "ResponsesDoor",
    "Retriever",
    "Router",
    "RowsDoor",
    "SessionDoor",
    "SessionMiddleware",
    "SlowClients",
    "Tokenizer",
    "TrajectoryStore",
    "Upkeep",
    "WeightVersions",
    "WorkerAdmin",
    "WorkerClient",
    "WorkerPool",
}
MUTABLE = (ast.List, ast.Dict, ast.Set, ast.ListComp, ast.DictComp, ast.SetComp)
MUTABLE_CALLS = {"list", "dict", "set", "deque", "defaultdict", "OrderedDict", "Counter"}


@cache
def sources() -> dict[str, tuple[Path, ast.Module]]:
    """Every module without the package's name: `chat.match`; a package has its own: `chat`."""
    found = {}
    for path in sorted((ROOT / PACKAGE).rglob("*.py")):
        parts = path.relative_to(ROOT / PACKAGE).with_suffix("").parts
        name = ".".join(part for part in parts if part != "__init__")
        found[name] = (path, ast.parse(path.read_text(encoding="utf-8")))
    return found


def listed(module: str, names: dict[str, str]) -> str | None:
    """The longest of `names` that is the module or holds it."""
    fitting = [n for n in names if module == n or (n and module.startswith(f"{n}."))]
    return max(fitting, key=len, default=None)


def floor(module: str) -> int:
    name = listed(module, FLOOR_OF)
    assert name is not None, f"{module} stands on no floor: say which"
    return FLOORS.index(FLOOR_OF[name])


def imports(tree: ast.AST) -> Iterator[str]:
    """Full names of what is imported anywhere in a module; `from a import b` is `a` and `a.b`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield str(node.module)
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def own_imports(tree: ast.AST) -> set[str]:
    names = {n.removeprefix(f"{PACKAGE}.") for n in imports(tree) if n.startswith(f"{PACKAGE}.")}
    return names & sources().keys()


def users_of(package: str) -> set[str]:
    return {
        module
        for module, (_, tree) in sources().items()
        if any(name.partition(".")[0] == package for name in imports(tree))
    }


def strings(tree: ast.AST) -> set[str]:
    """Strings and the names of keyword arguments and attributes: where a wire's words stand."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.add(node.value)
        elif isinstance(node, ast.keyword) and node.arg:
            found.add(node.arg)
        elif isinstance(node, ast.Attribute):
            found.add(node.attr)
    return found


def uncovered(modules: set[str], allowed: dict[str, str]) -> tuple[set[str], set[str]]:
    """Modules that are not allowed, and permissions that nobody uses any more."""
    used = {module: listed(module, allowed) for module in modules}
    return {m for m, name in used.items() if name is None}, set(allowed) - set(used.values())


def test_imports_point_down():
    wrong = [
        f"{module} ({FLOORS[floor(module)]}) imports {used} ({FLOORS[floor(used)]})"
        for module, (_, tree) in sources().items()
        for used in own_imports(tree)
        if floor(used) > floor(module)
    ]
    assert wrong == []
    assert len(sources()) > 40, "the test looks at something"


def test_the_rooms_of_the_lower_floors_never_import_each_other():
    wrong = [
        f"{module} imports {used}"
        for module, (_, tree) in sources().items()
        for used in own_imports(tree)
        if module.partition(".")[0] in STRANGERS
        and used.partition(".")[0] in STRANGERS
        and module.partition(".")[0] != used.partition(".")[0]
    ]
    assert wrong == []


def test_the_router_does_not_use_what_is_for_tests():
    wrong = [
        f"{module} imports {used}"
        for module, (_, tree) in sources().items()
        for used in own_imports(tree)
        if used.partition(".")[0] == "testing" and module.partition(".")[0] != "testing"
    ]
    assert wrong == []


def test_the_pure_floor_knows_no_event_loop():
    pure = {m for m in users_of("asyncio") if FLOORS[floor(m)] in ("words", "pure")}
    assert uncovered(pure, ASYNCIO_ON_THE_PURE_FLOOR) == (set(), set())
    awaiting = {
        module
        for module, (_, tree) in sources().items()
        if FLOORS[floor(module)] in ("words", "pure")
        and any(isinstance(n, ast.AsyncFunctionDef | ast.Await) for n in ast.walk(tree))
    }
    assert uncovered(awaiting, ASYNCIO_ON_THE_PURE_FLOOR) == (set(), set())


def test_clocks_are_few():
    readers = users_of("time") | {
        module
        for module, (_, tree) in sources().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and node.attr in ("now", "today", "utcnow")
    }
    assert uncovered(readers, CLOCKS) == (set(), set())


def test_http_stays_at_the_edges():
    assert uncovered(users_of("aiohttp"), AIOHTTP) == (set(), set())


def test_transformers_stays_in_its_room():
    assert uncovered(users_of("transformers"), TRANSFORMERS) == (set(), set())


def test_only_those_who_speak_with_sglang_spell_as_it_does():
    spelling = {module for module, (_, tree) in sources().items() if strings(tree) & SPELLINGS}
    assert uncovered(spelling, SPELLS_AS_SGLANG) == (set(), set())


def test_only_the_wiring_makes_the_parts():
    makers: dict[str, set[str]] = {}
    for module, (_, tree) in sources().items():
        for node in ast.walk(tree):
            if not isinstance(node, ast.Call):
                continue
            made = node.func
            if isinstance(made, ast.Attribute) and made.attr == "load":
                made = made.value
            if isinstance(made, ast.Name) and made.id in PARTS:
                makers.setdefault(made.id, set()).add(module)
    wiring = {"server.app", "server.fleet", "token_path"}
    assert {part: modules for part, modules in makers.items() if modules - wiring} == {}
    assert all(len(modules) == 1 for modules in makers.values()), "each part is made in one place"
    assert makers.keys() == PARTS, "a part has another name now"


def test_modules_have_no_state():
    """What changes belongs to an object with an owner."""
    wrong = []
    for module, (_, tree) in sources().items():
        for node in tree.body:
            if not isinstance(node, ast.Assign | ast.AnnAssign):
                continue
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names = [ast.unparse(target) for target in targets]
            value = node.value
            is_call = isinstance(value, ast.Call) and ast.unparse(value.func) in MUTABLE_CALLS
            is_constant = all(name.isupper() or name == "__all__" for name in names)
            if (isinstance(value, MUTABLE) or is_call) and not is_constant:
                wrong.append(f"{module}: {', '.join(names)}")
        wrong += [f"{module}: global" for n in ast.walk(tree) if isinstance(n, ast.Global)]
    assert wrong == []


def test_files_and_functions_are_short():
    wrong = []
    for module, (path, tree) in sources().items():
        length = len(path.read_text(encoding="utf-8").splitlines())
        if length > MAX_FILE_LEN:
            wrong.append(f"{module}: {length} lines")
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                assert node.end_lineno is not None
                length = node.end_lineno - node.lineno + 1
                if length > MAX_FUNCTION_LEN:
                    wrong.append(f"{module}.{node.name}: {length} lines")
    assert wrong == []


def test_every_module_says_what_it_is():
    assert [name for name, (_, tree) in sources().items() if not ast.get_docstring(tree)] == []
    folders = {path.parent for path, _ in sources().values()}
    assert [f for f in folders if not (f / "__init__.py").exists()] == []
