"""Where a client's credentials come from, and what does not fit."""

import json
from pathlib import Path

import pytest

from memkv.client import options
from memkv.client.credentials import CREDENTIAL_NAMES, Credentials, credentials_of
from memkv.client.options import ConnectOptions
from memkv.errors import CallerError, ConfigError
from memkv.testing.certificates import Authority

PEM = Authority().pem.decode()


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("endpoint", *CREDENTIAL_NAMES):
        monkeypatch.delenv(f"MEMKV_{name.upper()}", raising=False)
    monkeypatch.setattr(options, "CONNECTION_FILE", tmp_path / "connection.json")


def write(folder: Path, **more: object) -> None:
    document = {"endpoint": "meta.example:7443", "pool": "prod/kv", **more}
    (folder / "connection.json").write_text(json.dumps(document))


def resolve(
    endpoint: str | None = None, credentials: Credentials | None = None
) -> Credentials | None:
    return ConnectOptions.resolve(
        endpoint, options.DEFAULT_POOL, "default", 1000, credentials
    ).credentials


def test_pods_file_has_ca_and_token(tmp_path: Path) -> None:
    write(tmp_path, ca=PEM, token_file="/run/token")
    found = resolve()
    assert found == Credentials(str(tmp_path / "connection.json"), Path("/run/token"))
    assert found.authorities() == PEM.encode()


def test_ca_of_a_pods_file_is_the_one_that_is_there_now(tmp_path: Path) -> None:
    write(tmp_path, ca="old")
    found = resolve()
    assert found is not None
    write(tmp_path, ca="new")
    assert found.authorities() == b"new"
    write(tmp_path)
    with pytest.raises(ConfigError, match="no CA any more"):
        found.authorities()
    (tmp_path / "connection.json").write_text("half a fi")
    with pytest.raises(ConfigError, match="no CA any more"):
        found.authorities()


def test_pods_file_may_say_that_payload_is_plain(tmp_path: Path) -> None:
    write(tmp_path, ca=PEM, payload_encryption="None")
    found = resolve()
    assert found is not None
    assert not found.payload_encryption


def test_pods_file_without_a_ca_is_a_pool_without_tls(tmp_path: Path) -> None:
    write(tmp_path)
    assert resolve() is None


def test_endpoint_of_the_caller_has_nothing_to_do_with_the_file(tmp_path: Path) -> None:
    write(tmp_path, ca=PEM)
    assert resolve("here:1") is None


def test_environment_and_caller_win_over_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, ca=PEM)
    monkeypatch.setenv("MEMKV_CA", "/etc/ca.crt")
    assert resolve() == Credentials("/etc/ca.crt")
    own = Credentials("mine")
    assert resolve(credentials=own) is own


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"token_file": "/run/token"}, "token_file without ca"),
        ({"tls_cert": "c", "tls_key": "k"}, "tls_cert without ca"),
        ({"ca": PEM, "tls_cert": "c"}, "go together"),
        ({"ca": PEM, "tls_key": "k"}, "go together"),
        ({"ca": PEM, "payload_encryption": "some"}, "neither TLS nor None"),
    ],
)
def test_what_does_not_fit_is_refused_and_its_place_named(
    values: dict[str, str], words: str
) -> None:
    with pytest.raises(CallerError, match=words):
        credentials_of(values, "somewhere")


@pytest.mark.parametrize("more", [{"ca": PEM, "payload_encryption": 7}, {"token_file": "t"}])
def test_broken_file_is_refused(tmp_path: Path, more: dict[str, object]) -> None:
    write(tmp_path, **more)
    with pytest.raises(CallerError):
        resolve()


def test_ca_is_text_or_a_file_that_is_read_anew(tmp_path: Path) -> None:
    assert Credentials(PEM).authorities() == PEM.encode()
    path = tmp_path / "ca.crt"
    given = Credentials(str(path))
    with pytest.raises(ConfigError, match=r"ca\.crt.*mounted"):
        given.authorities()
    for text in ("first", "second"):
        path.write_text(text)
        assert given.authorities() == text.encode()


def test_nodes_are_encrypted_to_unless_told_otherwise(tmp_path: Path) -> None:
    def context(credentials: Credentials | None) -> object:
        return ConnectOptions("here:1", credentials=credentials).node_context()

    assert context(None) is None
    assert context(Credentials(PEM, payload_encryption=False)) is None
    assert context(Credentials(PEM)) is not None
    with pytest.raises(ConfigError, match="CA"):
        context(Credentials("-----BEGIN nothing"))
