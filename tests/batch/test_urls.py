"""Recordings behind URLs: what is fetched, what is refused, and what messages keep to themselves."""

import errno
from collections.abc import Iterator
from contextlib import ExitStack
from io import BytesIO
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from tests.support.batches import make_manifest, make_recording
from voxcli.batch.inputs import sources
from voxcli.batch.urls import is_url, proxy_notice, read_recording
from voxcli.errors import AudioInputError, ConfigError


class Bucket(MemoryFileSystem):  # type: ignore[misc]  # fsspec has no annotations
    """Stands for S3; it holds what a test puts in, or raises what it says."""

    protocol = "s3"
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]
    failure: ClassVar[Exception | None] = None
    stream: ClassVar[BytesIO | None] = None

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return "/" + path.removeprefix("s3://").lstrip("/")

    def open(self, path: str, *args: Any, **options: Any) -> Any:
        if self.failure:
            raise self.failure
        return self.stream or super().open(path, *args, **options)


@pytest.fixture
def bucket() -> Iterator[type[Bucket]]:
    fsspec.register_implementation("s3", Bucket, clobber=True)
    yield Bucket
    Bucket.failure = Bucket.stream = None
    Bucket.store.clear()


class Web(Bucket):
    """Stands for a web server; keeps the options that it was last opened with."""

    protocol = "http"
    options: ClassVar[dict[str, Any]] = {}

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return "/" + path.removeprefix("http://").lstrip("/")

    def open(self, path: str, *args: Any, **options: Any) -> Any:
        Web.options = dict(self.storage_options)
        return super().open(path, *args, **options)


@pytest.fixture
def web(bucket: type[Bucket], monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Web]]:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY", "no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    before = fsspec.registry.get("http")
    fsspec.register_implementation("http", Web, clobber=True)
    yield Web
    Web.failure = None
    if before:
        fsspec.register_implementation("http", before, clobber=True)


class RefusedError(Exception):
    """Stands for what an HTTP library raises."""

    def __init__(self, status: int) -> None:
        super().__init__(f"{status}, url='secret'")
        self.status = status


def missing_because(status: int) -> Exception:
    """Return what fsspec raises for any answer but a good one."""
    error = FileNotFoundError("https://secret")
    error.__cause__ = RefusedError(status)
    return error


def message_of(url: str, seconds: float = 60.0) -> str:
    with pytest.raises(AudioInputError) as raised:
        read_recording(url, max_seconds=seconds)
    return raised.value.message


@pytest.mark.parametrize("text", ["s3://b/x.wav", "https://host/x", "file:///x.wav", "S3://b/x"])
def test_urls_are_known_by_their_scheme(text: str) -> None:
    assert is_url(text)


@pytest.mark.parametrize(
    "text", ["x.wav", "/a/b.wav", "C:\\x.wav", "a:b.wav", "://x", "c://x", " s3://b/x", "./s3://x"]
)
def test_names_of_files_are_no_urls(text: str) -> None:
    assert not is_url(text)


def test_a_file_is_read_by_its_path_and_by_its_url(tmp_path: Path) -> None:
    path = make_recording(tmp_path / "q 1.wav", samples=4800)
    assert len(read_recording(str(path), max_seconds=1).samples) == 4800
    assert len(read_recording(f"file://{path}", max_seconds=1).samples) == 4800


def test_a_recording_is_read_from_a_bucket(bucket: type[Bucket], tmp_path: Path) -> None:
    bucket().pipe_file("s3://voices/a?b.wav", make_recording(tmp_path / "q.wav", samples=8000).read_bytes())
    assert len(read_recording("s3://voices/a?b.wav", max_seconds=1).samples) == 8000


def test_what_is_not_there_is_said_so(bucket: type[Bucket]) -> None:
    assert message_of("s3://voices/none.wav") == "s3://voices/none.wav does not exist"


def test_what_is_no_audio_is_refused_as_in_a_file(bucket: type[Bucket]) -> None:
    bucket().pipe_file("s3://voices/page.wav", b"<html>" * 100)
    assert "not audio" in message_of("s3://voices/page.wav")


def test_a_stream_without_an_end_is_cut_off(bucket: type[Bucket]) -> None:
    class Endless(BytesIO):
        given = 0

        def read(self, size: int | None = -1) -> bytes:
            self.given += 1 << 20
            return b"RIFF\xff\xff\xff\xffWAVE".ljust(1 << 20, b"\1")

    endless = Endless()
    bucket.stream = endless
    assert "gave more than" in message_of("s3://voices/endless.wav", seconds=1.0)
    assert endless.given < 70 << 20


def test_a_longer_recording_than_the_limit_is_refused(bucket: type[Bucket], tmp_path: Path) -> None:
    bucket().pipe_file("s3://voices/q.wav", make_recording(tmp_path / "q.wav", samples=32000).read_bytes())
    assert "longer than the limit" in message_of("s3://voices/q.wav", seconds=1.0)


@pytest.mark.parametrize(
    ("failure", "said"),
    [
        (PermissionError(errno.EACCES, "no"), "may not be read"),
        (RuntimeError("Unable to locate credentials\x1b[2J"), "RuntimeError: Unable to locate credentials\\x1b[2J"),
        (TimeoutError(), "TimeoutError"),
        (missing_because(404), "does not exist"),
        (missing_because(403), "may not be read"),
        (missing_because(503), "can't be read: HTTP 503"),
    ],
)
def test_what_a_driver_raises_is_one_line(bucket: type[Bucket], failure: Exception, said: str) -> None:
    bucket.failure = failure
    message = message_of("s3://voices/q.wav")
    assert message.startswith("s3://voices/q.wav ")
    assert said in message
    assert "secret" not in message
    assert "\n" not in message


def test_a_missing_driver_gives_the_command_that_installs_it() -> None:
    with pytest.raises(ImportError):
        fsspec.get_filesystem_class("gs")
    assert message_of("gs://voices/q.wav").endswith("pip install fsspec gcsfs")


def test_only_known_kinds_of_url_are_read() -> None:
    assert "s3://, gs://, https://" in message_of("github://someone:repo@/x.wav")
    assert "s3://" in message_of("simplecache://x")


@pytest.mark.parametrize(
    "url", ["https://user:secret@127.0.0.1:9/q.wav", "https://127.0.0.1:9/q.wav?X-Signature=secret#secret"]
)
def test_no_message_shows_what_a_signed_url_holds(url: str) -> None:
    message = message_of(url)
    assert message.startswith("https://127.0.0.1:9/q.wav ")
    assert "secret" not in message


def test_the_web_is_reached_through_the_proxy_of_the_environment(
    web: type[Web], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = make_recording(tmp_path / "q.wav", samples=4800).read_bytes()
    for host in ("voxtral.test", "127.0.0.1"):
        web().pipe_file(f"http://{host}/q.wav", content)
    read_recording("http://voxtral.test/q.wav", max_seconds=1)
    assert "client_kwargs" not in web.options
    monkeypatch.setenv("ALL_PROXY", "http://me:secret@proxy:3128")
    read_recording("http://voxtral.test/q.wav", max_seconds=1)
    assert web.options["client_kwargs"] == {"proxy": "http://me:secret@proxy:3128"}
    read_recording("http://127.0.0.1/q.wav", max_seconds=1)
    assert "client_kwargs" not in web.options


def test_a_failure_on_the_web_names_the_proxy_and_is_no_missing_file(
    web: type[Web], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://me:secret@proxy:3128")
    web.failure = FileNotFoundError("http://voxtral.test/q.wav")
    assert message_of("http://voxtral.test/q.wav").endswith(
        "(through the proxy proxy:3128 (http_proxy)) does not exist"
    )
    web.failure.__cause__ = ConnectionRefusedError()
    assert message_of("http://voxtral.test/q.wav") == (
        "http://voxtral.test/q.wav (through the proxy proxy:3128 (http_proxy)) can't be read: ConnectionRefusedError"
    )


@pytest.mark.parametrize("proxy", ["socks5://proxy:1080", "foo://proxy", "http://"])
def test_a_proxy_that_can_not_be_used_for_recordings(
    web: type[Web], monkeypatch: pytest.MonkeyPatch, proxy: str
) -> None:
    monkeypatch.setenv("all_proxy", proxy)
    with pytest.raises(ConfigError, match="all_proxy"):
        read_recording("http://voxtral.test/q.wav", max_seconds=1)


def test_a_url_that_is_none_is_refused() -> None:
    assert "can't be a URL" in message_of("https://[host/q.wav")


def test_inputs_and_manifests_take_urls_as_they_are(tmp_path: Path) -> None:
    manifest = make_manifest(
        tmp_path / "m.jsonl", [{"id": "far", "audio": "s3://voices/x.wav"}, {"id": "near", "audio": "x.wav"}]
    )
    with ExitStack() as stack:
        found = [
            (item.id, item.path)
            for source in sources(["https://host/q.wav?part=*", str(manifest)], None, stack)
            for item in source
        ]
    assert sorted(found) == [
        ("far", "s3://voices/x.wav"),
        ("https://host/q.wav?part=*", "https://host/q.wav?part=*"),
        ("near", str(tmp_path / "x.wav")),
    ]


def test_the_proxy_of_a_batch_is_named_once(web: type[Web], monkeypatch: pytest.MonkeyPatch) -> None:
    sources = [
        "a.wav",
        "s3://bucket/a.wav",
        "http://localhost/a.wav",
        "http://voxtral.test/a.wav",
        "https://voxtral.test/b",
    ]
    assert proxy_notice(sources) == ""
    monkeypatch.setenv("all_proxy", "http://me:secret@proxy:3128")
    assert proxy_notice(sources) == "recordings are fetched through the proxy proxy:3128 (all_proxy)"
    assert proxy_notice(sources[:3]) == ""
