"""Which proxy and which certificates the environment names for a URL."""

import sys
from importlib.machinery import ModuleSpec
from importlib.util import module_from_spec
from pathlib import Path

import pytest

from voxcli.config.proxies import Proxy, check_certificates, check_proxies, find_proxy, is_loopback
from voxcli.errors import ConfigError

VARIABLES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "SSL_CERT_FILE", "SSL_CERT_DIR")


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST", "localhost.", "a.localhost", "a.localhost.", "127.0.0.1"])
@pytest.mark.parametrize("port", ["", ":8000"])
def test_names_and_addresses_of_this_machine(host: str, port: str) -> None:
    assert is_loopback(f"http://{host}{port}/v1")


@pytest.mark.parametrize("host", ["127.9.9.9", "127.1", "[::1]", "[::ffff:127.0.0.1]", "0.0.0.0", "[::]"])  # noqa: S104
def test_addresses_that_lead_to_this_machine(host: str) -> None:
    assert is_loopback(f"http://{host}/v1")


@pytest.mark.parametrize("host", ["localhost.example.org", "mylocalhost", "128.0.0.1", "gpu", "[::2]", "dead"])
def test_other_machines(host: str) -> None:
    assert not is_loopback(f"http://{host}/v1")


def test_the_proxy_of_a_scheme_comes_before_that_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_proxy("http://gpu/v1") is None
    monkeypatch.setenv("ALL_PROXY", "http://all:1080")
    monkeypatch.setenv("https_proxy", "secure:3128")
    assert find_proxy("http://gpu/v1") == Proxy("http://all:1080", "ALL_PROXY")
    assert find_proxy("HTTPS://gpu/v1") == Proxy("http://secure:3128", "https_proxy")


def test_a_variable_in_lower_case_comes_first_and_an_empty_one_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://upper:1")
    monkeypatch.setenv("http_proxy", "http://lower:1")
    assert find_proxy("http://gpu/v1") == Proxy("http://lower:1", "http_proxy")
    monkeypatch.setenv("http_proxy", "")
    assert find_proxy("http://gpu/v1") is None


@pytest.mark.parametrize(
    ("no_proxy", "bypassed"),
    [
        ("*", True),
        ("a.corp", True),
        ("corp", True),
        (".corp", True),
        ("*.corp", True),
        (" b , A.CORP ", True),
        ("b a.corp", True),
        ("a.corp:8000", True),
        ("a.corp:9000", False),
        ("b.corp", False),
        ("", False),
        ("rp", False),
    ],
)
def test_names_without_a_proxy(monkeypatch: pytest.MonkeyPatch, no_proxy: str, bypassed: bool) -> None:
    monkeypatch.setenv("http_proxy", "http://proxy:1")
    monkeypatch.setenv("NO_PROXY", no_proxy)
    assert (find_proxy("http://a.corp:8000/v1") is None) is bypassed


@pytest.mark.parametrize("no_proxy", ["10.0.0.0/8", "10.1.2.3", "nonsense/8,10.0.0.0/8", "fd00::/8", "[fd00::]/8"])
def test_networks_without_a_proxy(monkeypatch: pytest.MonkeyPatch, no_proxy: str) -> None:
    monkeypatch.setenv("ALL_PROXY", "http://proxy:1")
    monkeypatch.setenv("NO_PROXY", no_proxy)
    inside, outside = ("10.1.2.3", "11.1.2.3") if "10." in no_proxy else ("[fd00::1]", "[fe00::1]")
    assert find_proxy(f"http://{inside}:8000/v1") is None
    assert find_proxy(f"http://{outside}:8000/v1") is not None


def test_a_proxy_shows_its_password_to_nobody() -> None:
    proxy = Proxy("http://me:sword%20fish@proxy:3128", "HTTP_PROXY")
    assert str(proxy) == "the proxy proxy:3128 (HTTP_PROXY)"
    assert "sword" not in f"{proxy!r}"
    assert proxy.hidden_in("to http://me:sword%20fish@proxy") == "to http://[proxy password]@proxy"


@pytest.mark.parametrize(
    "value",
    ["socks4://h:1", "foo://h:1", "file:///etc/passwd", "http://", "http://h:port", "http://h:0x", "a b", "http://["],
)
def test_a_proxy_that_can_not_be_used_is_named_by_its_variable(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("HTTPS_PROXY", value)
    with pytest.raises(ConfigError, match="HTTPS_PROXY") as caught:
        find_proxy("https://gpu/v1")
    assert "HTTPS_PROXY" in caught.value.hint
    with pytest.raises(ConfigError, match="HTTPS_PROXY"):
        check_proxies()
    assert find_proxy("http://gpu/v1") is None, "it is not for this scheme"
    assert find_proxy("https://localhost/v1") is None


def test_a_socks_proxy_needs_a_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("all_proxy", "socks5h://me:secret@h:1080")
    monkeypatch.setitem(sys.modules, "socksio", None)
    with pytest.raises(ConfigError, match="all_proxy names a SOCKS proxy") as caught:
        find_proxy("http://gpu/v1")
    assert "pip install socksio" in caught.value.hint
    monkeypatch.setitem(sys.modules, "socksio", module_from_spec(ModuleSpec("socksio", None)))
    assert find_proxy("http://gpu/v1") == Proxy("socks5h://me:secret@h:1080", "all_proxy")


def test_certificates(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    check_certificates()
    empty = tmp_path / "empty.pem"
    empty.write_text("no certificate")
    monkeypatch.setenv("SSL_CERT_DIR", f"{tmp_path / 'nothing'}:{tmp_path}")
    check_certificates()
    for name, value, reason in [
        ("SSL_CERT_DIR", str(empty), "not a folder"),
        ("SSL_CERT_FILE", str(empty), "no certificates"),
        ("SSL_CERT_FILE", str(tmp_path / "nothing"), "No such file"),
        ("SSL_CERT_FILE", str(tmp_path), "can't be used"),
    ]:
        monkeypatch.setenv(name, value)
        with pytest.raises(ConfigError, match=f"{name} names .*: .*{reason}|{name} names .*{reason}"):
            check_certificates()
