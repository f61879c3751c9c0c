"""Settings from the environment and from a file, and what they are when all are put together."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from slime_router.cli.flags import parser, read_config, read_settings
from slime_router.cli.settings.option import Option, options
from slime_router.config import Config
from slime_router.errors import SetupError

ALL = [option for group in options().values() for option in group]
A_VALUE = {bool: "true", int: "7", float: "0.5", str: "word"}


def config(*flags: str, environ: dict[str, str] | None = None) -> Config:
    return read_config(["--hf-checkpoint", "m", *flags], environ or {})


def written(folder: Path, text: str, name: str = "router.toml") -> str:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return str(path)


def error(capsys: pytest.CaptureFixture[str]) -> str:
    out, line = capsys.readouterr()
    assert out == ""
    assert line.count("\n") == 1
    assert line.startswith("slime-router: error: ")
    return line.removeprefix("slime-router: error: ").rstrip("\n")


def word_for(option: Option) -> str:
    if option.dest == "version_policy":
        return "max-staleness:7"
    if option.choices:
        return option.choices[-1]
    if option.dest in ("retry_jitter_factor", "retry_backoff_multiplier"):
        return "1"
    return "/word" if option.dest.endswith("_path") else A_VALUE[option.kind]


# Declarations


def test_every_setting_is_in_one_group_and_has_help_and_limits():
    assert sorted(o.dest for o in ALL) == sorted(field.name for field in fields(Config))
    for option in ALL:
        assert option.setting.help
        if option.kind in (int, float) and option.setting.read is None:
            assert option.setting.low is not None, option.dest
            assert option.setting.high is not None, option.dest


def test_the_help_has_a_sentence_for_every_flag_and_a_default_for_every_setting():
    for action in parser()._actions:
        assert action.help, action.option_strings
    text = "".join(parser().format_help().split())  # a line may end after a hyphen
    for option in ALL:
        if option.flags and not option.is_required:
            told = f"{option.setting.help} (default: {option.default_in_words()})"
            assert "".join(told.split()) in text


def test_flags_do_not_share_a_spelling_a_variable_or_a_key():
    spellings = [name for action in parser()._actions for name in action.option_strings]
    assert len(spellings) == len(set(spellings))
    assert len({option.variable for option in ALL}) == len({o.key for o in ALL}) == len(ALL)


def test_keys_are_not_shown_with_the_config():
    secrets = [option.dest for option in ALL if option.setting.is_secret]
    assert secrets == ["worker_api_key", "api_key", "admin_api_key", "store"]
    values: dict[str, Any] = dict.fromkeys(secrets, "SECRET")
    assert "SECRET" not in repr(Config(hf_checkpoint="m", **values))


def test_the_help_does_not_wait_for_what_serves():
    """What takes long to import is left until the arguments are read."""
    code = (
        "import sys; from slime_router.cli.main import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "print(sorted({'numpy', 'aiohttp', 'transformers', 'yaml'} & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.splitlines()[-1] == "[]"


# Sources


@pytest.mark.parametrize("option", ALL, ids=lambda option: option.dest)
def test_each_setting_is_the_same_by_flag_variable_and_file(option, tmp_path):
    word = word_for(option)
    more = ["--launch-workers", "1"] if option.dest == "worker_flags" else []
    if not option.flags:
        flags = ["--", word]
    else:
        flags = [option.flags[0], *([] if option.kind is bool else [word])]
    by_flag = read_config(["--hf-checkpoint", "m", *more, *flags], {})
    base = {} if option.dest == "hf_checkpoint" else {"SLIME_ROUTER_HF_CHECKPOINT": "m"}
    by_variable = read_config(more, {**base, option.variable: word})
    value = f'["{word}"]' if option.is_list else f'"{word}"'
    value = f"[{value}]" if option.setting.is_repeated else value
    path = written(tmp_path, f"{option.key} = {value}\n")
    assert by_flag == by_variable == read_config(["--config", path, *more], base)
    assert getattr(by_flag, option.dest) != option.default or option.kind is bool


def test_a_flag_that_is_repeated_adds_a_list_each_time(tmp_path, capsys):
    groups = (("teacher", "http://a", "http://b"), ("critic", "http://c"))
    flags = [word for group in groups for word in ("--worker-group", *group)]
    environ = {"SLIME_ROUTER_WORKER_GROUP": "teacher http://a,http://b; critic http://c"}
    table = 'worker_group = [["teacher", "http://a", "http://b"], ["critic", "http://c"]]\n'
    path = written(tmp_path, table)
    for read in (config(*flags), config(environ=environ), config("--config", path)):
        assert read.worker_group == groups
    with pytest.raises(SystemExit):
        config(*flags, "--print-config")
    assert table.strip() in capsys.readouterr().out
    for wrong in ('["teacher"]', '"teacher"', '[["teacher", 1]]'):
        with pytest.raises(SystemExit):
            config("--config", written(tmp_path, f"worker_group = {wrong}\n", "wrong.toml"))


def test_a_flag_counts_more_than_a_variable_and_that_more_than_the_file(tmp_path):
    path = written(tmp_path, "port = 1\nqueue_size = 1\nmax_sessions = 1\n")
    environ = {
        "SLIME_ROUTER_CONFIG": path,
        "SLIME_ROUTER_PORT": "2",
        "SLIME_ROUTER_QUEUE_SIZE": "2",
    }
    read = config("--port", "3", environ=environ)
    assert (read.port, read.queue_size, read.max_sessions) == (3, 2, 1)
    other = written(tmp_path, "max_sessions = 9\n", "other.toml")
    assert config("--config", other, environ=environ).max_sessions == 9


def test_a_switch_that_a_file_sets_can_be_taken_back(tmp_path):
    path = written(tmp_path, "trust_remote_code = true\nenable_health_check = false\n")
    flags = ["--config", path, "--no-trust-remote-code", "--enable-health-check"]
    assert config(*flags) == config()


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.toml", 'worker_wait_secs = 5\nworker-urls = ["http://a"]\nport = 7'),
        ("a.TOML", 'worker-wait-secs = 5.0\nworker_urls = ["http://a"]\nsglang_router_port = 7'),
        ("a.yaml", "worker_wait_secs: 5\nworker-urls: [http://a]\nport: '7'"),
        ("a.yml", "worker-wait-secs: 5.0\nworker_urls:\n- http://a\nport: 7"),
    ],
)
def test_a_file_is_toml_or_yaml(name, text, tmp_path):
    read = config("--config", written(tmp_path, text, name))
    assert read == Config(hf_checkpoint="m", worker_wait_s=5.0, worker_urls=("http://a",), port=7)


def test_a_path_may_begin_with_the_home_directory(tmp_path, monkeypatch):
    """bash leaves the `~` of `--journal=~/x` as it is, and no file is read by a shell."""
    monkeypatch.setenv("HOME", str(tmp_path))
    written(
        tmp_path, 'journal = "~/j"\nhf_checkpoint = "~/m"\nserved_model_name = "~/n"\n', "a.toml"
    )
    read = read_config(
        ["--config=~/a.toml", "--api-keys-file=~/k"], {"SLIME_ROUTER_WORKER_LOG_DIR": "~"}
    )
    home = str(tmp_path)
    assert (read.journal, read.hf_checkpoint, read.served_model_name) == (
        f"{home}/j",
        f"{home}/m",
        "~/n",
    )
    assert (read.api_keys_file, read.worker_log_dir) == (f"{home}/k", home)


def test_files_may_begin_with_a_byte_order_mark(tmp_path):
    for name, text in (("a.toml", "port = 7"), ("a.yaml", "port: 7")):
        assert config("--config", written(tmp_path, f"\ufeff{text}\n", name)).port == 7
    key = written(tmp_path, "\ufeffsecret\n", "key")
    assert config(environ={"SLIME_ROUTER_API_KEY_FILE": key}).api_key == "secret"


def test_an_empty_file_sets_nothing(tmp_path):
    for name in ("a.toml", "a.yaml"):
        assert config("--config", written(tmp_path, "", name)) == config()


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.toml", "prot = 1", "unknown setting 'prot': did you mean 'port'?"),
        ("a.yaml", "worker-url: x", "unknown setting 'worker-url': did you mean 'worker_urls'?"),
        ("a.toml", "[server]\nport = 1", "unknown setting 'server'"),
        ("a.yaml", "3: x", "unknown setting '3'"),
        ("a.toml", "port = 0", "port (--port): 0 is not in [1, 65535]"),
        ("a.toml", "port = 1.5", "port (--port): must be a whole number"),
        ("a.toml", "port = true", "port (--port): must be a number"),
        ("a.toml", "port = 'x'", "port (--port): invalid int value: 'x'"),
        ("a.toml", "worker_wait_secs = nan", "(--worker-wait-secs): nan is not in [0.0,"),
        ("a.toml", "port = 1\nsglang-router-port = 2", "(--port): it is set twice"),
        ("a.yaml", "port: 1\nhost: a\nport: 2", "port: it is set twice"),
        ("a.yaml", "journal: ''", "journal (--journal): it is empty"),
        ("a.toml", "host = ' '", "host (--host): it is empty"),
        ("a.toml", "strict_model = 1", "(--strict-model): must be true or false"),
        ("a.toml", "strict_model = 'x'", "(--strict-model): x is neither true nor false"),
        ("a.toml", "worker_urls = 'a'", "(--worker-urls): must be a list of strings"),
        ("a.toml", "worker_urls = [1]", "(--worker-urls): must be a list of strings"),
        ("a.toml", "host = 1", "(--host): must be a string"),
        ("a.yaml", "host:", "(--host): must be a string"),
        ("a.toml", "version_policy = 3", "(--version-policy): must be a string"),
        ("a.toml", "history = 'all'", "(--history): invalid choice: 'all'"),
        ("a.toml", "port = ", "Invalid value"),
        ("a.yaml", "port: [", "expected the node content"),
        ("a.yaml", "- port", "it must hold settings by name"),
        ("a.json", "{}", "is neither .toml nor .yaml"),
        ("a.yaml", "port: !!int x", "invalid literal"),
        ("a.yaml", "strict_model: !!bool maybe", "maybe"),
        ("a.yaml", "host: !!timestamp x", "has no attribute"),
        ("a.yaml", f"port: {'9' * 5000}", "5000 digits"),
        ("a.toml", f"port = {'9' * 5000}", "5000 digits"),
        ("a.toml", f"worker_wait_secs = {'9' * 400}", "is not in [0.0,"),
        ("a.yaml", f"host: {'[' * 1000}", "recursion"),
        ("a.toml", f"host = {'[' * 5000}", "recursion"),
        ("a.toml", 'version_policy = "a\\nb"', "a\\nb is not any"),
        ("a.yaml", "worker_group: [[]]", "one list of them is empty"),
        ("a.yaml", 'chat_template: "a\\0b"', "it has a NUL character"),
        ("a.toml", 'worker_urls = ["a\\u0000b"]', "it has a NUL character"),
        ("a.toml", 'worker_group = [["a", " "]]', "it is empty"),
        ("a.toml", 'served_model_name = "a\\nb"', "it has control characters"),
        ("a.toml", 'otlp_endpoint = "http://a\\nb:1"', "it has control characters"),
        ("a.toml", 'store = "redis://a\\rb"', "it has control characters"),
        ("a.toml", 'store_prefix = "a\\tb"', "it has control characters"),
        ("a.toml", 'allowed_hosts = ["a\\nb"]', "it has control characters"),
        ("a.toml", f"strict_model = '{'x' * 100_000}'", "xxx..."),
    ],
)
def test_a_wrong_file_ends_with_2_and_one_line(name, text, said, tmp_path, capsys):
    path = written(tmp_path, text, name)
    with pytest.raises(SystemExit) as caught:
        config("--config", path)
    assert caught.value.code == 2
    line = error(capsys)
    assert said in line
    assert path in line


def test_a_file_that_cannot_be_read_is_named(tmp_path, capsys):
    (tmp_path / "b.toml").write_bytes(b"\xff")
    for name, said in (("a.toml", "No such file"), ("b.toml", "is not UTF-8")):
        with pytest.raises(SystemExit):
            config("--config", str(tmp_path / name))
        line = error(capsys)
        assert name in line
        assert said in line


@pytest.mark.parametrize(
    ("variable", "text", "said"),
    [
        ("PORT", "0", "SLIME_ROUTER_PORT (--port): 0 is not in [1, 65535]"),
        ("STRICT_MODEL", "maybe", "(--strict-model): maybe is neither true nor false"),
        ("HISTORY", "all", "(--history): invalid choice: 'all'"),
        ("WORKER_FLAGS", "'a", "SLIME_ROUTER_WORKER_FLAGS (worker_flags): No closing quotation"),
        ("API_KEY", "", "SLIME_ROUTER_API_KEY (--api-key): the secret is empty"),
        ("API_KEY_FILE", "/no/such", "SLIME_ROUTER_API_KEY_FILE: cannot read /no/such"),
    ],
)
def test_a_wrong_variable_ends_with_2_and_one_line(variable, text, said, capsys):
    with pytest.raises(SystemExit) as caught:
        config(environ={f"SLIME_ROUTER_{variable}": text})
    assert caught.value.code == 2
    assert said in error(capsys)


def test_lists_in_variables_have_commas_or_spaces_between():
    for text in ("http://a,http://b", "http://a http://b", " http://a,\n http://b "):
        assert config(environ={"SLIME_ROUTER_WORKER_URLS": text}).worker_urls == (
            "http://a",
            "http://b",
        )
    environ = {"SLIME_ROUTER_WORKER_FLAGS": "--a 'b c'", "SLIME_ROUTER_LAUNCH_WORKERS": "1"}
    assert config(environ=environ).worker_flags == ("--a", "b c")


def test_what_kubernetes_sets_for_a_service_of_that_name_is_not_a_setting():
    environ = {
        "SLIME_ROUTER_PORT": "tcp://10.0.0.1:30000",
        "SLIME_ROUTER_SERVICE_HOST": "10.0.0.1",
        "SLIME_ROUTER_PORT_30000_TCP_PORT": "30000",
    }
    assert config(environ=environ) == config()


def test_what_kubernetes_sets_for_other_services_is_not_a_misspelled_setting():
    """A service `slime-router-worker-python`, say, makes names that are nearly settings."""
    environ = {
        "SLIME_ROUTER_HOST_PORT": "tcp://10.0.0.1:80",
        "SLIME_ROUTER_WORKER_URL_SERVICE_HOST": "10.0.0.1",
        "SLIME_ROUTER_WORKER_URL_PORT_80_TCP_ADDR": "10.0.0.1",
        "SLIME_ROUTER_FUZZ": "50",  # what is like no setting is for somebody else
    }
    assert config(environ=environ) == config()


@pytest.mark.parametrize(
    ("variable", "meant"),
    [("PROT", "PORT"), ("WORKER_URL", "WORKER_URLS"), ("API_KEYFILE", "API_KEY_FILE")],
)
def test_a_misspelled_variable_is_refused_with_a_suggestion(variable, meant, capsys):
    with pytest.raises(SystemExit):
        config(environ={f"SLIME_ROUTER_{variable}": "1"})
    said = f"unknown variable SLIME_ROUTER_{variable}: did you mean SLIME_ROUTER_{meant}?"
    assert error(capsys) == said


def test_every_flag_has_a_sentence_and_a_default_in_the_help(capsys):
    for action in parser()._actions:
        assert action.help, action.option_strings
        is_setting = action.dest in {o.dest for o in ALL} and action.const is None
        if is_setting and action.dest != "hf_checkpoint":
            assert "(default: " in action.help, action.option_strings


def test_the_file_and_the_secrets_are_read_again(tmp_path):
    path = written(tmp_path, 'worker_urls = ["http://a"]\n')
    key = written(tmp_path, "one", "key")
    settings = read_settings(
        ["--hf-checkpoint", "m", "--config", path], {"SLIME_ROUTER_API_KEY_FILE": key}
    )
    written(tmp_path, 'worker_urls = ["http://b"]\n')
    written(tmp_path, "two", "key")
    again = settings.read_again()
    assert (settings.config.worker_urls, settings.config.api_key) == (("http://a",), "one")
    assert (again.worker_urls, again.api_key) == (("http://b",), "two")
    written(tmp_path, "worker_url = []\n")
    with pytest.raises(SetupError, match="unknown setting 'worker_url': did you mean"):
        settings.read_again()


def test_an_empty_variable_is_not_set():
    environ = {"SLIME_ROUTER_PORT": "", "SLIME_ROUTER_WORKER_URLS": "", "SLIME_ROUTER_CONFIG": ""}
    assert config(environ=environ) == config()


def test_a_key_may_stand_in_a_file_that_a_variable_names(tmp_path, capsys):
    path = written(tmp_path, "SECRET\n", "key")
    assert config(environ={"SLIME_ROUTER_API_KEY_FILE": path}).api_key == "SECRET"
    both = {"SLIME_ROUTER_API_KEY_FILE": path, "SLIME_ROUTER_API_KEY": "SECRET"}
    with pytest.raises(SystemExit):
        config(environ=both)
    assert error(capsys) == "SLIME_ROUTER_API_KEY and SLIME_ROUTER_API_KEY_FILE are both set"
    with pytest.raises(SystemExit):
        config(environ={"SLIME_ROUTER_API_KEY_FILE": written(tmp_path, "\n", "empty")})
    assert "the secret is empty" in error(capsys)


# What holds


def printed(capsys: pytest.CaptureFixture[str], *flags: str, **environ: str) -> str:
    with pytest.raises(SystemExit) as caught:
        config("--print-config", *flags, environ=environ)
    assert caught.value.code == 0
    return capsys.readouterr().out


def test_the_printed_config_says_where_each_setting_comes_from(tmp_path, capsys):
    path = written(tmp_path, "queue_size = 1\n")
    lines = printed(capsys, "--port", "3", "--config", path, SLIME_ROUTER_MAX_SESSIONS="2")
    for line in (
        'hf_checkpoint = "m"  # flag',
        "port = 3  # flag",
        f"queue_size = 1  # {path}",
        "max_sessions = 2  # SLIME_ROUTER_MAX_SESSIONS",
        'version_policy = "any"  # default',
        "# served_model_name is not set  # default",
    ):
        assert line in lines.splitlines()


def test_the_printed_config_has_no_keys(capsys):
    text = printed(capsys, "--api-key", "SECRET", SLIME_ROUTER_ADMIN_API_KEY="SECRET")
    assert "SECRET" not in text
    assert "# api_key = ***  # flag" in text


def test_a_printed_config_that_is_read_again_is_the_same(tmp_path, capsys):
    """Also with what has to be escaped."""
    flags = ["--chat-template", 'a "b"\\\n\x7f\u00e4\U0001f600', "--version-policy", "latest"]
    flags += ["--worker-urls", "http://a", "--queue-timeout-secs", "0.1", "--strict-model"]
    flags += ["--no-enable-multimodal", "--launch-workers", "2", "--", "--x", "y z"]
    path = written(tmp_path, printed(capsys, *flags))
    assert read_config(["--config", path], {}) == config(*flags)


def test_a_wrong_config_is_not_printed(capsys):
    with pytest.raises(SystemExit) as caught:
        config("--print-config", "--openai-chat-completion-path", "v1")
    assert caught.value.code == 2
    error(capsys)
