"""Keys, names and origins, without a server."""

from __future__ import annotations

import hmac
from types import SimpleNamespace

import pytest
from aiohttp.test_utils import make_mocked_request
from hypothesis import given
from hypothesis import strategies as st

from slime_router.auth.access import Access
from slime_router.auth.caller import ANYBODY, Caller, caller, introduce, owned, owner_of, shown
from slime_router.auth.keys_file import read_keys_file
from slime_router.auth.surface import is_for_clients
from slime_router.auth.tls import tls_context
from slime_router.cli.flags import parser, read_config
from slime_router.config import Config
from slime_router.edge.cors import Cors
from slime_router.errors import SetupError

OWNERS = st.sampled_from(["", "a", "b", "ab"])
NAMES = st.text(st.sampled_from("ab\x1f/ "), max_size=4)


# Names


@given(OWNERS, NAMES, OWNERS, NAMES)
def test_two_owners_never_mean_one_thing(owner, name, other_owner, other_name):
    one, other = owned(owner, name), owned(other_owner, other_name)
    assert (one == other) == ((owner, name) == (other_owner, other_name))
    assert (owner_of(one), shown(one)) == (owner, name)


def test_what_belongs_to_nobody_has_its_own_name():
    assert owned("", "ep-7") == "ep-7"


def test_who_asks_is_anybody_until_it_is_known():
    request = make_mocked_request("GET", "/")
    assert caller(request) is ANYBODY
    introduce(request, Caller("a", sees_all=False))
    by = caller(request)
    assert by.sees(owned("a", "s"))
    assert not by.sees(owned("b", "s"))
    assert not by.sees("s")
    assert ANYBODY.sees(owned("b", "s"))


# The file of keys


def keys_file(tmp_path, text):
    path = tmp_path / "keys"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


@pytest.mark.parametrize(
    "text",
    [
        '{"ann": "sk-1", "bob": "sk:2"}',
        ' \n{"ann":"sk-1",\n"bob":"sk:2"}\n',
        "# who\n\nann: sk-1\r\n  bob :sk:2  \n",
    ],
)
def test_a_file_of_keys_is_json_or_lines(tmp_path, text):
    assert read_keys_file(keys_file(tmp_path, text)) == {"ann": "sk-1", "bob": "sk:2"}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "has no keys"),
        ("{}", "has no keys"),
        ("ann: SECRET\nbob SECRET", "line 2: is not 'name: key'"),
        ("ann: SECRET\nann: SECRETS", "line 2: the name 'ann' is given twice"),
        ('{"ann": "SECRET", "ann": "SECRETS"}', "key 2: the name 'ann' is given twice"),
        ("ann:", "line 1: the key is empty"),
        ("ann: SECRET SECRET", "line 1: a key is at most 4096 ASCII characters, no spaces"),
        ("ann: SECRETé", "line 1: a key is"),
        ("a/b: SECRET", "line 1: a name is"),
        (": SECRET", "line 1: a name is"),
        ("ann: session:SECRET", "names a session"),
        ('{"ann": %s}' % ("1" * 5000), "is not an object of names and keys"),
        ('{"ann": SECRET}', "is not JSON: Expecting value: line 1 column 9"),
        ('{"ann": {"key": "SECRET"}}', "key 1: the key is empty or not a string"),
        ('{"ann": ["SECRET"]}', "key 1: the key is empty or not a string"),
        (b"ann: SECRET\xff", "is not UTF-8"),
    ],
)
def test_a_bad_file_of_keys_is_told_in_one_line_that_says_no_key(tmp_path, text, told):
    path = keys_file(tmp_path, text)
    with pytest.raises(SetupError) as caught:
        read_keys_file(path)
    assert told in caught.value.message
    assert str(path) in caught.value.message
    assert "\n" not in caught.value.message
    assert "SECRET" not in caught.value.message


def test_a_file_of_keys_that_is_not_there_is_told(tmp_path):
    with pytest.raises(SetupError, match="no-such: No such file or directory"):
        read_keys_file(tmp_path / "no-such")


# Keys


def config(**settings):
    return Config(hf_checkpoint="x", **settings)


@pytest.mark.parametrize(
    "settings",
    [
        {"api_key": ""},
        {"admin_api_key": ""},
        {"api_key": "a b"},
        {"api_key": "session:x"},
        {"api_key": "same", "admin_api_key": "same"},
    ],
)
def test_a_key_that_cannot_work_ends_the_start(settings):
    """An empty one above all: it comes of an empty variable, and must not open the router."""
    with pytest.raises(SetupError):
        Access.of(config(**settings))


def test_one_key_cannot_have_two_names(tmp_path):
    path = keys_file(tmp_path, "ann: SECRET\nbob: SECRET")
    with pytest.raises(SetupError, match="twice") as caught:
        Access.of(config(api_keys_file=str(path)))
    assert "SECRET" not in caught.value.message


def test_no_repr_says_a_key(tmp_path):
    path = keys_file(tmp_path, "ann: SECRET-3")
    settings = config(
        api_key="SECRET-1",
        admin_api_key="SECRET-2",
        api_keys_file=str(path),
        worker_api_key="SECRET-4",
    )
    found = Access.of(settings)
    assert len(found._keys) == 3
    assert "SECRET" not in repr(settings)
    assert "SECRET" not in repr([found, found._keys, vars(found)])


@pytest.mark.parametrize("shown", [("k-client", "k-admin"), ("k-admin", "k-client")])
def test_of_several_keys_the_admins_counts(shown):
    guard = Access.of(config(api_key="k-client", admin_api_key="k-admin"))
    headers = {"authorization": f"Bearer {shown[0]}", "x-api-key": shown[1]}
    found = guard._known(make_mocked_request("GET", "/", headers=headers))
    assert found is not None
    assert found.is_admin


def test_the_admins_key_counts_before_a_named_one_too(tmp_path):
    path = keys_file(tmp_path, "ann: k-ann")
    guard = Access.of(config(admin_api_key="k-admin", api_keys_file=str(path)))
    headers = {"authorization": "Bearer k-ann", "x-api-key": "k-admin"}
    found = guard._known(make_mocked_request("GET", "/", headers=headers))
    assert found is not None
    assert found.is_admin


def test_a_key_is_compared_in_constant_time_with_every_key(tmp_path, monkeypatch):
    path = keys_file(tmp_path, "".join(f"n{i}: k{i}\n" for i in range(5)))
    guard = Access.of(config(api_keys_file=str(path)))
    compared = []

    def compare(one, other):
        compared.append((len(one), len(other)))
        return hmac.compare_digest(one, other)

    monkeypatch.setattr("slime_router.auth.access.hmac", SimpleNamespace(compare_digest=compare))
    request = make_mocked_request("GET", "/", headers={"api-key": "k0"})
    found = guard._known(request)
    assert found is not None
    assert found.name == "n0"
    assert compared == [(32, 32)] * 5


@pytest.mark.parametrize(
    ("host", "settings", "warns"),
    [
        ("127.0.0.1", {}, False),
        ("127.8.0.1", {}, False),
        ("::1", {}, False),
        ("localhost", {}, False),
        ("0.0.0.0", {}, True),
        ("::", {}, True),
        ("10.0.0.1", {}, True),
        ("gateway.internal", {}, True),
        ("0.0.0.0", {"api_key": "k"}, False),
        ("0.0.0.0", {"admin_api_key": "k"}, True),
    ],
)
def test_who_is_open_to_others_without_a_key_is_warned(host, settings, warns):
    assert (Access.of(config(**settings)).warning(host) is not None) == warns


@pytest.mark.parametrize(
    "path",
    [
        "v1/embeddings",
        "v1/audio/transcriptions",
        "rerank",
        "get_model_info",
        "v1//score/",
        "encode",
    ],
)
def test_what_clients_of_a_worker_use_is_theirs(path):
    assert is_for_clients(f"/{path}")


@pytest.mark.parametrize(
    "path",
    [
        "/flush_cache",
        "flush_cache/",
        "api/chat",
        "vertex_generate",
        "v1/../flush_cache",
        "v1/./x",
        "v1/",
        "v1x",
        "server_info",
        "update_weights_from_elsewhere",
        "v1/x\n",
        "encode/x",
    ],
)
def test_any_other_path_of_a_worker_may_be_control(path):
    assert not is_for_clients(f"/{path}")


# Flags


def test_the_flags_of_access_are_read():
    given = [
        "--hf-checkpoint",
        "x",
        "--api-key",
        "a",
        "--admin-api-key",
        "b",
        "--api-keys-file",
        "f",
    ]
    given += [
        "--cors-allowed-origins",
        "http://a",
        "https://b",
        "--tls-cert-path",
        "c",
        "--tls-key-path",
        "k",
    ]
    read = read_config(given)
    assert (read.api_key, read.admin_api_key, read.api_keys_file) == ("a", "b", "f")
    assert read.cors_allowed_origins == ("http://a", "https://b")
    assert (read.tls_cert_path, read.tls_key_path) == ("c", "k")


def test_a_misspelled_flag_is_told_without_the_key_behind_it(capsys):
    with pytest.raises(SystemExit):
        parser().parse_args(["--api-kye=SECRET"])
    told = capsys.readouterr().err
    assert "did you mean --api-key?" in told
    assert "SECRET" not in told


@pytest.mark.parametrize(
    "origin", ["", "example.org", "http://a/", "http://a/b", "null", "http://"]
)
def test_what_is_no_origin_ends_the_start(origin):
    with pytest.raises(SetupError, match="--cors-allowed-origins"):
        Cors([origin])


def test_tls_needs_both_files_and_both_to_be_there(tmp_path):
    there = tmp_path / "there"
    there.write_text("no certificate")
    for cert, key, told in (
        (there, None, "together"),
        (None, there, "together"),
        (tmp_path / "gone", there, "--tls-cert-path .*gone: No such file"),
        (there, tmp_path / "gone", "--tls-key-path .*gone: No such file"),
        (there, there, "--tls-cert-path .*there, --tls-key-path .*there: "),
    ):
        with pytest.raises(SetupError, match=told) as caught:
            tls_context(cert and str(cert), key and str(key))
        assert "\n" not in caught.value.message
    assert tls_context(None, None) is None


@pytest.mark.parametrize(
    "value", ["a\nX: 1", "a\r\nX: 1", "", "\x00", "\u00e9", "a" * 5000, "\ud800"]
)
def test_what_cannot_be_a_header_is_an_error_at_the_start(value):
    """Later, every request would fail, or carry a header that nobody asked for."""
    with pytest.raises(SetupError, match="--worker-api-key"):
        Access.of(config(worker_api_key=value))
    with pytest.raises(SetupError, match="--health-check-endpoint"):
        Access.of(config(health_check_endpoint=value))
    with pytest.raises(SetupError, match="--cors-allowed-origins"):
        Cors([f"https://{value}"])


def test_a_workers_key_may_be_any_header():
    Access.of(config(worker_api_key="sk-a b:c"))
