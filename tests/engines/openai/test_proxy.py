"""Proxies on the way to a server: which are used, what is said of them, and that loopback has none."""

import socket
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.engines.openai.test_engine import KEY, OPTIONS, ask, certificate, failure, options
from tests.support.openai_server import REPLY, OpenAIServer, ProxyServer
from voxcli.cli import app
from voxcli.config.proxies import find_proxy
from voxcli.engines import factory
from voxcli.errors import RemoteError
from voxcli.servers.server import Server

pytest.importorskip("openai")

from voxcli.engines.openai.engine import RemoteEngine

__all__ = ["certificate"]  # a fixture

PASSWORD = "swordfish"  # noqa: S105 - of the tests
VARIABLES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "SSL_CERT_FILE", "SSL_CERT_DIR")


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


@pytest.fixture
def server() -> Iterator[OpenAIServer]:
    with OpenAIServer() as server:
        yield server


@pytest.fixture
def proxy(monkeypatch: pytest.MonkeyPatch) -> Iterator[ProxyServer]:
    with ProxyServer() as proxy:
        monkeypatch.setenv("ALL_PROXY", f"http://me:{PASSWORD}@127.0.0.1:{proxy.port}")
        yield proxy


@pytest.fixture
def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


def engine_at(url: str) -> RemoteEngine:
    return RemoteEngine(Server(url, KEY, retries=0, proxy=find_proxy(url)), OPTIONS)


def proxied_failure(url: str) -> RemoteError:
    error = failure(engine_at(url))
    assert PASSWORD not in f"{error.message}{error.hint}{error.__cause__!r}"
    return error


def test_loopback_is_never_proxied(server: OpenAIServer, proxy: ProxyServer) -> None:
    for host in ("127.0.0.1", "localhost", "127.1", "0.0.0.0"):  # noqa: S104 - connected to
        assert ask(engine_at(server.url.replace("127.0.0.1", host)))[0] == list(REPLY)
    assert proxy.heads == []


@pytest.mark.parametrize("value", ["socks5://127.0.0.1:1", "foo://127.0.0.1:1", "http://", "http://[", "::"])
def test_loopback_works_whatever_the_variables_hold(
    server: OpenAIServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    for name in ("HTTP_PROXY", "https_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "nothing"))
    engine = factory.open_engine(options(url=server.url), tmp_path, lambda _: None)
    assert ask(engine)[0] == list(REPLY)


def test_a_request_through_a_proxy(server: OpenAIServer, proxy: ProxyServer) -> None:
    url = f"http://voxtral.test:{server.port}/v1"
    assert ask(engine_at(url))[0] == list(REPLY)
    (head,) = proxy.heads
    assert head.startswith(f"POST {url}/chat/completions HTTP/1.1".encode())
    assert b"proxy-authorization: basic" in head.lower()
    assert server.chats[0].headers["host"] == f"voxtral.test:{server.port}"


def test_a_tunnel_through_a_proxy(
    proxy: ProxyServer, certificate: tuple[Path, ssl.SSLContext], monkeypatch: pytest.MonkeyPatch
) -> None:
    made, context = certificate
    with OpenAIServer(tls=context) as server:
        url = f"https://voxtral.test:{server.port}/v1"
        error = proxied_failure(url)
        assert "the certificate of voxtral.test" in error.message
        assert f"through the proxy 127.0.0.1:{proxy.port} (ALL_PROXY)" in error.message
        monkeypatch.setenv("SSL_CERT_FILE", str(made))
        assert ask(engine_at(url))[0] == list(REPLY)
    assert all(KEY.secret.encode() not in head for head in proxy.heads)
    assert proxy.heads[-1].startswith(f"CONNECT voxtral.test:{server.port} ".encode())


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_dead_proxy_is_told_apart_from_a_dead_server(
    monkeypatch: pytest.MonkeyPatch, free_port: int, scheme: str
) -> None:
    monkeypatch.setenv(f"{scheme}_proxy", f"http://me:{PASSWORD}@127.0.0.1:{free_port}")
    error = proxied_failure(f"{scheme}://voxtral.test/v1")
    assert error.message == f"nothing listens at the proxy 127.0.0.1:{free_port} ({scheme}_proxy) (connection refused)"
    assert error.hint == f"check {scheme}_proxy, or name voxtral.test in NO_PROXY"
    monkeypatch.setenv(f"{scheme}_proxy", "http://proxy.invalid:3128")
    assert "the proxy proxy.invalid:3128" in proxied_failure(f"{scheme}://voxtral.test/v1").message


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize(
    ("refusal", "said", "hint"),
    [
        (b"403 Forbidden", "", ""),
        (b"407 Proxy Authentication Required", "407", "NAME:PASSWORD@HOST"),
        (b"502 Bad Gateway", "502", ""),
        (b"504 Gateway Timeout", "504", ""),
    ],
)
def test_a_proxy_that_refuses_is_named(proxy: ProxyServer, scheme: str, refusal: bytes, said: str, hint: str) -> None:
    proxy.refusal = refusal
    error = proxied_failure(f"{scheme}://voxtral.test/v1")
    assert f"the proxy 127.0.0.1:{proxy.port} (ALL_PROXY)" in error.message
    assert said in error.message
    assert hint in error.hint


@pytest.mark.parametrize(("scheme", "read"), [("http", True), ("https", False)])
def test_what_goes_through_a_proxy_is_announced_once(
    proxy: ProxyServer, monkeypatch: pytest.MonkeyPatch, scheme: str, read: bool
) -> None:
    proxy.refusal = b"502 Bad Gateway"
    monkeypatch.setenv("VOXCLI_API_KEY", "sk-canary")
    notices: list[str] = []
    factory.open_server(options(model="tiny"), f"{scheme}://voxtral.test/v1", notices.append)
    (notice,) = [notice for notice in notices if "proxy" in notice]
    assert f"the key and the audio for voxtral.test go through the proxy 127.0.0.1:{proxy.port} (ALL_PROXY)" in notice
    assert ("can read them" in notice) is read
    assert PASSWORD not in str(notices)


def test_a_host_in_no_proxy_is_asked_directly(monkeypatch: pytest.MonkeyPatch, proxy: ProxyServer) -> None:
    monkeypatch.setenv("no_proxy", "voxtral.test")
    notices: list[str] = []
    factory.open_server(options(model="tiny", connect_seconds=0.1), "http://voxtral.test/v1", notices.append)
    assert proxy.heads == []
    assert not any("proxy" in notice for notice in notices)


CASES = {
    "ALL_PROXY": ("socks4://me:swordfish@127.0.0.1:1", "http"),
    "all_proxy": ("foo://127.0.0.1:1", "https"),
    "HTTPS_PROXY": ("http://127.0.0.1:99999", "https"),
    "http_proxy": ("http://", "http"),
    "HTTP_PROXY": ("me:swordfish@[", "http"),
    "SSL_CERT_FILE": ("/nowhere/ca.pem", "https"),
    "SSL_CERT_DIR": ("/nowhere", "https"),
}


@pytest.mark.parametrize(
    ("command", "variable"), [*(("once", each) for each in CASES), ("doctor", "ALL_PROXY"), ("doctor", "SSL_CERT_FILE")]
)
def test_a_variable_that_can_not_be_used_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, variable: str, command: str
) -> None:
    value, scheme = CASES[variable]
    monkeypatch.setenv("VOXCLI_HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setenv(variable, value)
    question = Path(__file__).parents[3] / "examples" / "questions" / "capital-of-france.flac"
    arguments = [command, *([str(question)] if command == "once" else [])]
    done = CliRunner().invoke(
        app, [*arguments, "--engine", "remote", "--url", f"{scheme}://voxtral.test/v1", "--model", "m"]
    )
    assert done.exit_code == (2 if command == "once" else 1)
    assert variable in done.output
    assert PASSWORD not in done.output
    assert "unexpected" not in done.output


def test_doctor_names_the_proxy(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, server: OpenAIServer, proxy: ProxyServer
) -> None:
    monkeypatch.setenv("VOXCLI_HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "300")
    url = f"http://voxtral.test:{server.port}/v1"
    done = CliRunner().invoke(app, ["doctor", "--engine", "remote", "--url", url])
    assert f"it answers, through the proxy 127.0.0.1:{proxy.port} (ALL_PROXY), with tiny" in done.output
    assert PASSWORD not in done.output
