"""The house: which room may use which, and how big a room may be. Read off the source itself."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

from slime_router.pool.worker import Worker

ROOT = Path(__file__).parents[1]
PACKAGE = "slime_router"
MAX_FILE_LEN = 400
MAX_FUNCTION_LEN = 60

# Bottom to top. A module stands on the floor with the longest prefix of its name.
FLOORS = ("words", "pure", "async", "flow", "api", "server", "cli")
FLOOR_OF = {
    "": "words",
    "types": "words",
    "values": "words",
    "aside": "async",
    "waiting": "async",
    "errors": "words",
    "host_port": "words",
    "json_text": "words",
    "beginnings": "words",
    "choices": "words",
    "config": "words",
    "setting": "words",
    "shortcut": "words",
    "worker_settings": "words",
    "configured_file": "words",
    "telemetry": "words",
    "auth": "words",
    "cache": "pure",
    "checkpoint": "pure",
    "doctor": "pure",
    "engine": "pure",
    "failover": "pure",
    "archive.homes": "pure",
    "archive.merging": "pure",
    "archive.redis_log": "pure",
    "journal.closings": "pure",
    "journal.codec": "pure",
    "journal.database": "pure",
    "journal.first_rows": "pure",
    "journal.tap": "pure",
    "journal.writing": "pure",
    "pool": "pure",
    "replies": "pure",
    "rows": "pure",
    "template": "pure",
    "tokens": "pure",
    "trajectory": "pure",
    "archive": "async",
    "cache.prefix_cache": "async",
    "discovery": "async",
    "engine.client": "async",
    "engine.connector": "async",
    "engine.kept": "async",
    "engine.wire.event_tap": "async",
    "engine.exchange": "async",
    "engine.identity": "async",
    "failover.attempts": "async",
    "failover.disaggregated": "async",
    "failover.health": "async",
    "failover.relay": "async",
    "failover.session_kv": "async",
    "failover.scoring": "async",
    "journal": "async",
    "launch": "async",
    "siblings": "async",
    "supervisor": "async",
    "checkup": "flow",
    "doctor.doctor": "flow",
    "generation": "flow",
    "failover.greetings": "flow",
    "edge": "api",
    "api": "api",
    "reload": "server",
    "dashboard": "api",
    "server": "server",
    "client": "cli",  # beside the router: a trainer's side of its API
    "export": "cli",  # likewise, or it reads what a router has kept
    "conformance": "cli",  # likewise: it asks any gateway
    "integrations": "cli",  # likewise, inside a trainer
    "cli": "cli",
    "__main__": "cli",
    "testing": "cli",  # beside the router: the router may use none of it
}
STRANGERS = ("cache", "replies", "pool", "trajectory")  # rooms that never meet
MAX_FILES = 15  # in a folder

# Who may use what, and why.
ASYNCIO_ON_THE_PURE_FLOOR = {
    "tokens.tokenizer": "long texts are encoded in its executor",
}
CLOCKS = {
    "api.chat.request": "a reply says when it was created",
    "api.completions.request": "a reply says when it was created",
    "api.request": "ids begin with the time",
    "api.responses.request": "a reply says when it was created",
    "cli.log": "a line says when it was written",
    "cli.terminal.top": "rates are differences over time",
    "server.boundary": "the log says how long a request took",
    "telemetry.request_record": "what happened when; handed in by tests",
    "api.sessions.endpoints": "a session says when it was opened; handed in by tests",
    "archive.database": "a session says when it was closed; handed in by tests",
    "journal.closings": "likewise; handed in by the archive",
    "journal.retention": "how long it has been closed; handed in by the archive",
    "journal.lock": "waits until another router has brought the file up to date",
    "journal.writer": "says when upkeep is due",
    "checkpoint.hub": "a moment between two looks",
    "configured_file": "a pipe has a limited time",
    "pool.pool": "a breaker opens and closes with time; handed in by tests",
    "integrations.trl": "TRL counts how long a rollout took",
    "integrations.verl": "verl counts how long a rollout took",
    "generation.prompts.prompt_maker": "the date of a conversation; handed in by tests",
}
# Tasks that last no longer than the request, the block or the process they belong to; each module
# awaits its own.
STARTS_TASKS = {
    "api.fanout": "the samples of one request",
    "archive.fetching.absence": "looks for an archive that is away, until it is back",
    "archive.shared": "its start, which its end awaits",
    "integrations.slime": "the work of one rollout, which awaits it",
    "api.retries": "a generation that a retry may join",
    "cli.processes.parent": "a wait for a signal or an end; the start of workers",
    "cli.run": "the server itself",
    "edge.listener": "accepting, and the opening of each connection, until it closes",
    "api.sse": "a sign of life, which its stream awaits at its end",
    "engine.client": "aborts after closed requests",
    "failover.disaggregated": "the prefill of one generation",
    "launch.process": "the output of one process",
    "supervisor": "all that outlives a request",
}
AIOHTTP = {
    "engine.client": "talks to the workers",
    "engine.connector": "opens the connections to them, and reads what comes before aiohttp does",
    "engine.kept": "writes to them what is short",
    "engine.wire.event_tap": "says which answer it takes events off",
    "server": "serves",
    "reload": "replies what it changed",
    "cli": "serves",
    "conformance": "talks to any gateway, and is its worker",
    "client.aio_transport": "talks to a router",
    "api": "reads requests and writes replies",
    "edge": "accepts connections and reads requests",
    "dashboard": "serves its page",
    "auth.access": "reads which route is asked for",
    "auth.origins": "reads where a request comes from",
    "auth.caller": "reads who asks",
    "siblings.siblings": "the processes of a router talk over sockets",
    "testing": "is a worker",
}
TRANSFORMERS = {
    "checkpoint.checkpoint": "loads tokenizers",
    "checkpoint.files": "finds files of the hub",
    "integrations.trl": "describes tools as TRL does",
    "template.renderer": "renders templates",
}
SPELLINGS = {"max_new_tokens", "sampling_seed", "output_token_logprobs", "no_stop_trim"}
SPELLS_AS_SGLANG = {
    "engine": "speaks with SGLang",
    "failover": "goes on with what SGLang has begun",
    "testing": "is an SGLang",
    "integrations": "reads trainers' sampling parameters, which are SGLang's",
    "api.generate.request": "this door's API is the worker's own",
    "api.generate.reply": "this door's API is the worker's own",
    "api.chat.fields": "a chat client may name fields of SGLang's chat API",
}
PARTS = {
    "AdmissionQueue",
    "ChatTemplate",
    "ControlRoutes",
    "Counting",
    "DiagnoseDoor",
    "Discovery",
    "Dashboard",
    "Doctor",
    "Fleet",
    "Greetings",
    "Health",
    "SharedArchive",
    "LaunchedWorkers",
    "Launcher",
    "LookDoor",
    "Joiner",
    "ModelAdmin",
    "PassThrough",
    "PrefixCache",
    "PromptMaker",
    "Relay",
    "Reloader",
    "Cacher",
    "Recorder",
    "RetrieveDoor",
    "ReplyParsers",
    "EndpointContext",
    "ResponseStore",
    "Retriever",
    "Router",
    "RowsDoor",
    "SessionDoor",
    "Sessions",
    "SlowClients",
    "Supervisor",
    "Tokenizer",
    "TrajectoryStore",
    "Upkeep",
    "WeightVersions",
    "WorkerAdmin",
    "WorkerClient",
    "WorkerPool",
}
OPENINGS = re.compile(
    r"(?:That|Those) (?:of|not|which|in|who|fields)\b|As `|(?:It|They|Its)\b|All of it"
)
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


@cache
def nodes(tree: ast.AST) -> list[ast.AST]:
    """All of a module, walked once for all tests."""
    return list(ast.walk(tree))


def listed(module: str, names: dict[str, str]) -> str | None:
    """The longest of `names` that is the module or holds it."""
    fitting = [n for n in names if module == n or (n and module.startswith(f"{n}."))]
    return max(fitting, key=len, default=None)


def floor(module: str) -> int:
    name = listed(module, FLOOR_OF)
    assert name is not None, f"{module} stands on no floor: say which"
    return FLOORS.index(FLOOR_OF[name])


@cache
def imports(tree: ast.AST) -> frozenset[str]:
    """Full names of what is imported anywhere in a module; `from a import b` is `a` and `a.b`."""
    found: set[str] = set()
    for node in nodes(tree):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            found.add(str(node.module))
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
    return frozenset(found)


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
    for node in nodes(tree):
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


def starts_tasks(tree: ast.Module) -> bool:
    called = [ast.unparse(node.func) for node in nodes(tree) if isinstance(node, ast.Call)]
    return any(
        name.rpartition(".")[2] in ("create_task", "ensure_future")
        and not name.startswith("group.")  # a TaskGroup's own
        for name in called
    )


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
        if used.partition(".")[0] == "testing"
        and module.partition(".")[0] not in ("testing", "conformance")  # it brings its workers
    ]
    assert wrong == []


def test_the_pure_floor_knows_no_event_loop():
    pure = {m for m in users_of("asyncio") if FLOORS[floor(m)] in ("words", "pure")}
    assert uncovered(pure, ASYNCIO_ON_THE_PURE_FLOOR) == (set(), set())
    awaiting = {
        module
        for module, (_, tree) in sources().items()
        if FLOORS[floor(module)] in ("words", "pure")
        and any(isinstance(n, ast.AsyncFunctionDef | ast.Await) for n in nodes(tree))
    }
    assert uncovered(awaiting, ASYNCIO_ON_THE_PURE_FLOOR) == (set(), set())


def test_clocks_are_few():
    readers = users_of("time") | {
        module
        for module, (_, tree) in sources().items()
        for node in nodes(tree)
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
        for node in nodes(tree):
            if not isinstance(node, ast.Call):
                continue
            made = node.func
            if isinstance(made, ast.Attribute) and made.attr in ("load", "of"):
                made = made.value
            if isinstance(made, ast.Name) and made.id in PARTS:
                makers.setdefault(made.id, set()).add(module)
    wiring = {
        *("server.app", "server.fleet", "api.sessions.routes", "checkup.chosen_formats"),
        *("generation.token_path", "checkpoint.checkpoint", "archive.opening"),
    }
    makers["Supervisor"].remove("cli.processes.parent")  # it has one of its own, and no other part
    assert {part: modules for part, modules in makers.items() if modules - wiring} == {}
    assert all(len(modules) == 1 for modules in makers.values()), "each part is made in one place"
    assert makers.keys() == PARTS, "a part has another name now"


def test_only_a_worker_writes_its_fields():
    """What changes one is a method that names what happened."""
    wrong = [
        f"{module}: {ast.unparse(node)}"
        for module, (_, tree) in sources().items()
        if not module.startswith("testing")
        for node in nodes(tree)
        if isinstance(node, ast.Attribute)
        and isinstance(node.ctx, ast.Store)
        and node.attr in Worker.__slots__
        and ast.unparse(node.value).endswith("worker")
    ]
    assert wrong == []


def test_only_owners_start_tasks():
    found = {
        module
        for module, (_, tree) in sources().items()
        if not module.startswith(("client", "testing")) and starts_tasks(tree)
    }
    assert found == STARTS_TASKS.keys()


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
        wrong += [f"{module}: global" for n in nodes(tree) if isinstance(n, ast.Global)]
    assert wrong == []


def test_files_and_functions_are_short():
    wrong = []
    for module, (path, tree) in sources().items():
        length = len(path.read_text(encoding="utf-8").splitlines())
        if length > MAX_FILE_LEN:
            wrong.append(f"{module}: {length} lines")
        for node in nodes(tree):
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


def test_a_docstring_names_what_it_is_about():
    """Read alone, in an editor's hint, `It is gone` and `Those of a chunk` say nothing."""
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    found = [
        f"{module}: {words[:60]}"
        for module, (_, tree) in sources().items()
        for node in nodes(tree)
        if isinstance(node, documented) and OPENINGS.match(words := ast.get_docstring(node) or "")
    ]
    assert not found, "\n" + "\n".join(found)


def test_no_folder_is_flat_with_many_files():
    files: dict[Path, int] = {}
    for path, _ in sources().values():
        if path.name != "__init__.py":
            files[path.parent] = files.get(path.parent, 0) + 1
    assert {str(folder): count for folder, count in files.items() if count > MAX_FILES} == {}


def test_no_two_rooms_need_each_other():
    rooms: dict[str, set[str]] = {}
    for module, (_, tree) in sources().items():
        room = module.partition(".")[0]
        rooms.setdefault(room, set()).update(
            other for used in own_imports(tree) if (other := used.partition(".")[0]) != room
        )
    circles = {(a, b) for a, used in rooms.items() for b in used if a in rooms.get(b, ())}
    assert circles == set()
