"""GGUF files in repositories of a hub: selection and download, with a hub on the loopback interface."""

from __future__ import annotations

import hashlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from gumba import GGUFFile, store
from gumba.errors import ConvertError, DownloadError, GumbaError, RequestError, ResourceError, UnsupportedError
from gumba.hub.reference import Reference, parse
from support.local_sites import COMMIT, Hub, serving
from support.tiny_checkpoints import write_checkpoint

SIZE = 1_500_000
FILES = {
    "tiny-F16.gguf": SIZE,
    "tiny-Q4_0.gguf": SIZE + 1,
    "tiny-Q4_K_M.gguf": SIZE + 2,
    "tiny-Q4_0_4_4.gguf": SIZE + 4,
    "tiny-Q8_0.gguf": SIZE + 3,
    "mmproj-tiny-Q8_0.gguf": 2000,
    "imatrix.gguf": 2000,
    "BF16/tiny-BF16-00001-of-00002.gguf": 3000,
    "BF16/tiny-BF16-00002-of-00002.gguf": 3001,
}


def content(path: str, n_bytes: int) -> bytes:
    return b"GGUF" + hashlib.shake_128(path.encode()).digest(n_bytes - 4)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub with a repository of GGUF files, which the hub's library uses, with a cache of the test."""
    from huggingface_hub import constants

    folder = tmp_path / "server"
    for path, n_bytes in FILES.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content(path, n_bytes))
    (folder / "config.json").write_text("{}")
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf" / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with serving(Hub(folder)) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        yield server


def resolve(text: str, **options: object) -> Path:
    return store.resolve(text, announce=lambda line: None, **options)


def blobs(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "hf").rglob("blobs/*"))


def cached(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "hf").rglob("*.gguf"))


# ------------------------------------------------------------------------------------------------- which is meant


@pytest.mark.parametrize(
    ("text", "file"),
    [
        ("ada/tiny", "tiny-Q4_K_M.gguf"),
        ("ada/tiny:latest", "tiny-Q4_K_M.gguf"),
        ("ada/tiny:q8_0", "tiny-Q8_0.gguf"),
        ("hf.co/ada/tiny:F16", "tiny-F16.gguf"),
        ("huggingface.co/ada/tiny:fp16", "tiny-F16.gguf"),
        ("ada/tiny:tiny-Q8_0.gguf", "tiny-Q8_0.gguf"),
        ("ada/tiny/tiny-Q8_0.gguf", "tiny-Q8_0.gguf"),
        ("https://huggingface.co/ada/tiny/resolve/main/tiny-F16.gguf?download=true", "tiny-F16.gguf"),
        ("https://hf.co/ada/tiny/blob/v1/tiny-F16.gguf", "tiny-F16.gguf"),
        ("https://huggingface.co/ada/tiny", "tiny-Q4_K_M.gguf"),
        ("https://huggingface.co/ada/tiny/tree/main", "tiny-Q4_K_M.gguf"),
        ("https://huggingface.co/ada/tiny?show_file_info=tiny-F16.gguf", "tiny-F16.gguf"),
        ("ENDPOINT/ada/tiny/resolve/main/tiny-F16.gguf", "tiny-F16.gguf"),
    ],
)
def test_selected_file(hub: Hub, tmp_path: Path, text: str, file: str) -> None:
    path = resolve(text.replace("ENDPOINT", hub.url))
    assert path.name == file
    assert path.read_bytes() == content(file, FILES[file])
    assert cached(tmp_path) == [file], "only what is meant"
    assert {method for method, _ in hub.requests} <= {"GET", "HEAD"}, "nothing is sent"
    revision = "v1" if "/v1/" in text else "main"
    assert (tmp_path / "hf/hub/models--ada--tiny/refs" / revision).read_text() == COMMIT


@pytest.mark.parametrize("text", ["ada/tiny:bf16", "ada/tiny/BF16/tiny-BF16-00001-of-00002.gguf"])
def test_shards_are_one_model(hub: Hub, tmp_path: Path, text: str) -> None:
    path = resolve(text)
    assert path.name == "tiny-BF16-00001-of-00002.gguf"
    assert (path.parent / "tiny-BF16-00002-of-00002.gguf").stat().st_size == 3001
    assert len(cached(tmp_path)) == 2


@pytest.mark.parametrize(
    ("text", "kind", "says"),
    [
        (
            "ada/tiny:Q4_0_4_4",
            UnsupportedError,
            "does not support Q4_0_4_4; name one that it supports: ada/tiny:Q4_K_M, :Q4_0, :Q8_0, :BF16, :F16",
        ),
        ("ada/tiny/tiny-Q4_0_4_4.gguf", UnsupportedError, "does not support Q4_0_4_4"),
        ("ada/tiny:Q5_0", RequestError, "no file has the type Q5_0; the repository has .*Q4_0"),
        ("ada/tiny/other.gguf", RequestError, r"no file 'other\.gguf'; its GGUF files are .*tiny-Q4_0\.gguf"),
        ("ada/tiny/mmproj-tiny-Q8_0.gguf", RequestError, "expected a language model"),
        ("https://example.org/ada/tiny", RequestError, r"huggingface\.co and modelscope\.cn only"),
        ("https://huggingface.co/datasets/ada/tiny", RequestError, "expected a model, found"),
        ("https://huggingface.co/ada/tiny/resolve/main/../x.gguf", RequestError, "not a valid path in a repository"),
        ("https://huggingface.co/ada/tiny/resolve/main/%2Fx%00.gguf", RequestError, "not a valid path in a repository"),
        ("https://huggingface.co/ada/tiny/resolve/main/%FF.gguf", RequestError, "not a valid URL"),
        ("ada/other", DownloadError, "ada/other: no such model on the hub, or it is private"),
        ("ada/other:Q4_0", DownloadError, "ada/other: no such model on the hub, or it is private"),
        ("smollm2-135m-instrct", DownloadError, "did you mean smollm2-135m-instruct"),
        ("llama3.2:99b", RequestError, r"no known model 'llama3\.2:99b'.*did you mean llama3\.2:3b"),
    ],
)
def test_unsupported_files_are_refused_before_the_download(
    hub: Hub, tmp_path: Path, text: str, kind: type[GumbaError], says: str
) -> None:
    with pytest.raises(kind, match=says) as caught:
        resolve(text)
    assert "\n" not in str(caught.value) and hub.ranges == [] and cached(tmp_path) == []


def test_several_files_of_one_type(hub: Hub) -> None:
    (hub.folder / "other-Q4_K_M.gguf").write_bytes(content("o", 50))
    for text in ("ada/tiny", "ada/tiny:Q4_K_M"):
        with pytest.raises(
            RequestError, match=r"several files have Q4_K_M as type: .*; name one, e.g. ada/tiny/other-Q4_K_M\.gguf"
        ):
            resolve(text)
    assert resolve("ada/tiny/other-Q4_K_M.gguf").stat().st_size == 50


def test_a_missing_shard(hub: Hub) -> None:
    (hub.folder / "BF16/tiny-BF16-00002-of-00002.gguf").unlink()
    with pytest.raises(DownloadError, match="the repository has 1 of the 2 shards of BF16/tiny-BF16"):
        resolve("ada/tiny:BF16")


def test_a_repository_with_both(hub: Hub, tmp_path: Path) -> None:
    """The checkpoint is used, unless a type or file is named."""
    write_checkpoint(hub.folder)
    lines: list[str] = []
    converted = store.resolve("ada/tiny", announce=lines.append)
    assert converted.parent.name == "converted"
    assert re.fullmatch(r"downloading the checkpoint ada/tiny \(\d+\.\d kB\) from 127\.0\.0\.1:\d+", lines[0])
    assert store.resolve("ada/tiny", announce=lines.append) == converted and len(lines) == 1
    assert resolve("ada/tiny", revision="main") != converted, "a revision that is named has its own"
    assert resolve("ada/tiny:Q8_0").name == "tiny-Q8_0.gguf"
    for path in FILES:
        (hub.folder / path).unlink()
    with pytest.raises(RequestError, match=r"there is no file 'tiny-Q8_0\.gguf'; its GGUF files are none"):
        resolve("ada/tiny:tiny-Q8_0.gguf")


def test_a_checkpoint_is_converted_to_the_type_that_is_named(hub: Hub) -> None:
    for path in FILES:
        (hub.folder / path).unlink()
    write_checkpoint(hub.folder)
    default, f32 = resolve("ada/tiny"), resolve("ada/tiny:F32")
    assert f32.parent.name == "converted" and f32 != default
    with GGUFFile(f32) as file:
        assert {tensor.type.name for tensor in file.tensors.values()} == {"f32"}
    assert resolve("ada/tiny:f32") == f32 and resolve("ada/tiny") == default and default.exists()
    with pytest.raises(ConvertError, match="unknown type 'Q9_0'; known are f32"):
        resolve("ada/tiny:Q9_0")


# ---------------------------------------------------------------------------------------------- what a download meets


def test_a_download_is_announced_once(hub: Hub, tmp_path: Path) -> None:
    lines: list[str] = []
    stages: dict[str, tuple[int, int]] = {}
    for _ in range(2):
        store.resolve(
            "ada/tiny:Q8_0",
            announce=lines.append,
            progress=lambda stage, done, total: stages.update({stage: (done, total)}),
        )
    (line,) = lines
    assert line == f"downloading tiny-Q8_0.gguf (1.5 MB) of ada/tiny from {hub.url.removeprefix('http://')}"
    assert stages == {"download": (SIZE + 3, SIZE + 3), "check": (SIZE + 3, SIZE + 3)}
    assert len(hub.ranges) == 1, "it is fetched once"


def test_offline_the_cache_is_used(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    path = resolve("ada/tiny:Q8_0")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    for text in ("ada/tiny", "ada/tiny:Q8_0", "ada/tiny/tiny-Q8_0.gguf"):
        assert resolve(text) == path
    with pytest.raises(RequestError, match="no file has the type F16; the repository has Q8_0"):
        resolve("ada/tiny:F16")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    for status in (500, 503, 429):
        hub.status = status
        assert resolve("ada/tiny:Q8_0") == path
        with pytest.raises(DownloadError, match=f"ada/new: the hub returned {status}"):
            resolve("ada/new:Q8_0")


def test_reconnects_after_a_broken_connection(hub: Hub) -> None:
    hub.cut = 9 << 16
    path = resolve("ada/tiny:Q8_0")
    assert path.read_bytes() == content("tiny-Q8_0.gguf", SIZE + 3)
    assert hub.ranges == [None, f"bytes={9 << 16}-", f"bytes={18 << 16}-"]


def test_an_interrupted_download_resumes(hub: Hub, tmp_path: Path) -> None:
    hub.cut = 1 << 16
    with pytest.raises(DownloadError, match=r"interrupted at 327680 of 1500003 bytes .*resumes there"):
        resolve("ada/tiny:Q8_0")
    assert cached(tmp_path) == [], "what is not complete has no name"
    hub.cut = 0
    hub.ranges.clear()
    lines: list[str] = []
    path = store.resolve("ada/tiny:Q8_0", announce=lines.append)
    assert path.read_bytes() == content("tiny-Q8_0.gguf", SIZE + 3)
    assert hub.ranges == ["bytes=327680-"] and "(1.5 MB, 327.7 kB of it already downloaded)" in lines[0]
    assert [name for name in blobs(tmp_path) if "incomplete" in name] == []


@pytest.mark.parametrize("there", [b"GGUF" + bytes(1000), bytes(SIZE + 3), bytes(SIZE + 500), b""])
@pytest.mark.parametrize("takes_ranges", [True, False])
def test_a_wrong_partial_download_is_repeated(hub: Hub, tmp_path: Path, there: bytes, takes_ranges: bool) -> None:
    hub.takes_ranges = takes_ranges
    right = content("tiny-Q8_0.gguf", SIZE + 3)
    part = tmp_path / f"hf/hub/models--ada--tiny/blobs/{hashlib.sha256(right).hexdigest()}.incomplete"
    part.parent.mkdir(parents=True)
    part.write_bytes(there)
    assert resolve("ada/tiny:Q8_0").read_bytes() == right


def test_a_range_that_the_hub_cannot_satisfy(hub: Hub, tmp_path: Path) -> None:
    """The hub's content is shorter than the local part: it is downloaded from the start, and has another hash."""
    right = content("tiny-Q8_0.gguf", SIZE + 3)
    part = tmp_path / f"hf/hub/models--ada--tiny/blobs/{hashlib.sha256(right).hexdigest()}.incomplete"
    part.parent.mkdir(parents=True)
    part.write_bytes(right[:-10])
    hub.files["tiny-Q8_0.gguf"] = right[:1000]
    with pytest.raises(DownloadError, match="tiny-Q8_0"):
        resolve("ada/tiny:Q8_0")
    assert cached(tmp_path) == []


LFS_POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"


@pytest.mark.parametrize(
    ("sent", "says"),
    [
        (content("other", SIZE + 3), "fails its check: the hub lists the hash"),
        (content("other", SIZE), "the hub sends 1500000 bytes where 1500003 are missing"),
        (b"<html>log in first</html>", "the hub sends 25 bytes where"),
        (LFS_POINTER, "the hub sends .* bytes where"),
        (b"", "the hub sends 0 bytes where"),
    ],
    ids=["other", "short", "html", "pointer", "empty"],
)
def test_content_that_differs_from_the_listing(hub: Hub, tmp_path: Path, sent: bytes, says: str) -> None:
    hub.files["tiny-Q8_0.gguf"] = sent
    with pytest.raises(DownloadError, match=says) as caught:
        resolve("ada/tiny:Q8_0")
    assert "\n" not in str(caught.value) and cached(tmp_path) == []
    hub.files.clear()
    assert resolve("ada/tiny:Q8_0").stat().st_size == SIZE + 3, "nothing is left in the way"


@pytest.mark.parametrize("data", [b"<html></html>", LFS_POINTER, b"", b"GGU"])
def test_a_file_that_is_not_gguf(hub: Hub, tmp_path: Path, data: bytes) -> None:
    """The file matches the hub's hash, but is not GGUF."""
    (hub.folder / "tiny-Q8_0.gguf").write_bytes(data)
    with pytest.raises(DownloadError, match=r"tiny-Q8_0\.gguf is not a GGUF file: it begins with b'"):
        resolve("ada/tiny:Q8_0")
    assert cached(tmp_path) == [] and blobs(tmp_path) == []


def test_a_small_file_outside_of_lfs(hub: Hub) -> None:
    """Its hash is Git's."""
    hub.listed["tiny-Q8_0.gguf"] = {"lfs": None}
    assert resolve("ada/tiny:Q8_0").read_bytes() == content("tiny-Q8_0.gguf", SIZE + 3)
    hub.files["tiny-F16.gguf"] = content("other", SIZE)
    hub.listed["tiny-F16.gguf"] = {"lfs": None}
    with pytest.raises(DownloadError, match="fails its check"):
        resolve("ada/tiny:F16")


@pytest.mark.parametrize(
    ("listed", "says"),
    [
        ({"rfilename": "../../tiny-Q8_0.gguf"}, "not a valid path in a repository, which the hub lists"),
        ({"rfilename": "/etc/tiny-Q8_0.gguf"}, "not a valid path in a repository"),
        ({"rfilename": "a\0-Q8_0.gguf"}, "not a valid path in a repository"),
        ({"rfilename": "a\\..\\b-Q8_0.gguf"}, "not a valid path in a repository"),
        ({"lfs": {"size": 1, "sha256": "../../../x", "pointerSize": 1}}, r"gives '\.\./\.\./\.\./x' as a hash"),
        ({"lfs": {"size": 1, "sha256": "AB" * 32, "pointerSize": 1}}, "as a hash"),
        ({"lfs": {"size": 1, "sha256": 5, "pointerSize": 1}}, "gives 5 as a hash"),
        ({"blobId": ["a"] * 40}, "as a hash"),
        ({"rfilename": ["x"]}, "no file has the type Q8_0"),
        ({"size": True}, "gives True as a size"),
        ({"size": None}, "no size or no hash"),
        ({"size": -1}, "as a size"),
        ({"size": 10}, "sends 1500003 bytes where 10 are missing"),
        ({"lfs": None, "blobId": None}, "no size or no hash"),
        ({"size": 1 << 60}, "not enough disk space"),
    ],
)
def test_the_api_is_not_trusted(hub: Hub, tmp_path: Path, listed: dict[str, object], says: str) -> None:
    hub.listed["tiny-Q8_0.gguf"] = listed
    with pytest.raises((DownloadError, RequestError, ResourceError), match=says) as caught:
        resolve("ada/tiny:Q8_0")
    assert "\n" not in str(caught.value) and cached(tmp_path) == []


def test_shards_are_one_download(hub: Hub) -> None:
    stages: list[tuple[str, int, int]] = []
    resolve("ada/tiny:BF16", progress=lambda *step: stages.append(step))
    assert {total for _, _, total in stages} == {6001}
    downloaded = [done for stage, done, _ in stages if stage == "download"]
    assert downloaded == sorted(downloaded) and downloaded[-1] == 6001


def test_the_token_goes_to_the_hub_only(hub: Hub, tmp_path: Path) -> None:
    """Content comes from another host, which must not get the token."""
    with serving(Hub(hub.folder)) as other:
        hub.redirects = other.url
        path = resolve("ada/tiny:Q8_0", token="hf_secret")
        assert path.read_bytes() == content("tiny-Q8_0.gguf", SIZE + 3)
        assert set(hub.tokens) == {"Bearer hf_secret"} and set(other.tokens) == {None}


@pytest.mark.parametrize("name", ["a b#c%41?d-Q8_0.gguf", "modèle-Q8_0.gguf", "x/y z/a-Q8_0.gguf"])
def test_names_that_need_quoting(hub: Hub, name: str) -> None:
    (hub.folder / "tiny-Q8_0.gguf").unlink()
    (hub.folder / name).parent.mkdir(parents=True, exist_ok=True)
    (hub.folder / name).write_bytes(content(name, 500))
    assert resolve("ada/tiny:Q8_0").read_bytes() == content(name, 500)


def test_from_pretrained_checks_hashes(hub: Hub) -> None:
    from gumba.hub.fetch import fetch_file

    assert fetch_file("ada/tiny", "tiny-Q8*.gguf").name == "tiny-Q8_0.gguf"
    hub.files["tiny-F16.gguf"] = content("other", SIZE)
    with pytest.raises(DownloadError, match="fails its check"):
        fetch_file("ada/tiny", "tiny-F16.gguf")


@pytest.mark.parametrize(
    "said",
    [b"<html></html>", b"", b"[]", b"{}", b'{"id": 1, "siblings": [{}]}', b'{"id": "a/b", "siblings": null}', b"\xff"],
)
def test_malformed_api_responses(hub: Hub, said: bytes) -> None:
    hub.said = said
    with pytest.raises((DownloadError, RequestError)) as caught:
        resolve("ada/tiny:Q8_0")
    assert str(caught.value).startswith("ada/tiny: ") and "\n" not in str(caught.value)


def test_two_at_once_download_once(hub: Hub) -> None:
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(4) as pool:
        paths = set(pool.map(resolve, ["ada/tiny:Q8_0"] * 4))
    assert len(paths) == 1 and hub.ranges == [None]


def test_a_read_only_cache(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    path = resolve("ada/tiny:Q8_0")

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(30, "Read-only file system")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "mkdir", refuse)
        assert resolve("ada/tiny:Q8_0") == path
        with pytest.raises(ResourceError, match=r"blobs cannot be written: Read-only file system$"):
            resolve("ada/tiny:F16")


def test_content_from_elsewhere(hub: Hub) -> None:
    hub.redirects = hub.url
    assert resolve("ada/tiny:Q8_0").read_bytes() == content("tiny-Q8_0.gguf", SIZE + 3)
    assert ("GET", "/elsewhere/tiny-Q8_0.gguf") in hub.requests


@pytest.mark.parametrize(
    ("status", "error", "says"),
    [
        (403, "GatedRepo", "access must be granted on the hub first"),
        (401, "RepoNotFound", "no such model on the hub, or it is private"),
        (404, "RevisionNotFound", "the hub has no revision v9"),
        (403, "", "refuses access"),
    ],
)
def test_a_hub_that_refuses(hub: Hub, status: int, error: str, says: str) -> None:
    hub.status, hub.error = status, error
    for text in ("ada/tiny:Q8_0", "ada/tiny"):
        with pytest.raises(DownloadError, match=says) as caught:
            resolve(text, revision="v9")
        assert "\n" not in str(caught.value)
        meant = error == "RepoNotFound" and text == "ada/tiny"  # a path, perhaps
        assert ("no local file or folder ada/tiny" in str(caught.value)) == meant


def test_a_revision_is_given_once(hub: Hub) -> None:
    assert resolve("ada/tiny:Q8_0", revision="v1").name == "tiny-Q8_0.gguf"
    assert ("GET", "/api/models/ada/tiny/revision/v1") in hub.requests
    with pytest.raises(RequestError, match="found 'v2', but the URL has 'v1'"):
        resolve("https://huggingface.co/ada/tiny/resolve/v1/tiny-Q8_0.gguf", revision="v2")
    with pytest.raises(RequestError, match="revision: expected a branch, tag or commit, found 'a b'"):
        resolve("ada/tiny:Q8_0", revision="a b")


def test_a_damaged_file_in_the_cache(hub: Hub) -> None:
    path = resolve("ada/tiny:Q8_0")
    right = path.read_bytes()
    path.write_bytes(right[:-5])
    assert resolve("ada/tiny:Q8_0").read_bytes() == right, "its size shows it"
    path.write_bytes(right[:-1] + b"?")
    assert resolve("ada/tiny:Q8_0", check=True).read_bytes() == right, "its hash shows it"


def test_a_disk_that_is_full(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 1_000})())
    with pytest.raises(ResourceError, match=r"not enough disk space: 1 MB needed, 0 MB free \(HF_HUB_CACHE\)"):
        resolve("ada/tiny:Q8_0")


def test_llm_resolves_as_the_commands_do(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import gumba

    opened: list[Path] = []

    def stop(path: Path) -> None:
        opened.append(path)
        raise gumba.GGUFError("opened")

    monkeypatch.setattr("gumba.llm.llm.GGUFFile", stop)
    options = {"revision": "v1", "hf_token": "hf_secret", "download_dir": str(tmp_path / "here")}
    for model, more in (("ada/tiny:Q8_0", {}), ("ada/tiny:F16", options)):
        with pytest.raises(gumba.GGUFError, match="opened"):
            gumba.LLM(model, **more)
    assert [path.name for path in opened] == ["tiny-Q8_0.gguf", "tiny-F16.gguf"]
    assert tmp_path / "here" in opened[1].parents and cached(tmp_path) == ["tiny-Q8_0.gguf"]
    assert ("GET", "/api/models/ada/tiny/revision/v1") in hub.requests and hub.tokens[-1] == "Bearer hf_secret"


PULL = """
import sys
from gumba import store
print(store.resolve("ada/tiny:Q8_0", announce=print))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL")
def test_killed_at_any_moment(hub: Hub, tmp_path: Path) -> None:
    """A file has its name only when it is complete, and the next run resumes."""
    right = content("tiny-Q8_0.gguf", SIZE + 3)
    hub.cut = 6 << 16  # so that a run has several connections, at each of which it may be killed
    environment = {**os.environ, "HF_HUB_OFFLINE": "0", "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf")}
    for n_requests in (1, 2, 3):
        hub.ranges.clear()
        with subprocess.Popen([sys.executable, "-c", PULL], env=environment, stdout=subprocess.DEVNULL) as child:
            while len(hub.ranges) < n_requests and child.poll() is None:
                time.sleep(0.001)
            child.send_signal(signal.SIGKILL)
        for path in (tmp_path / "hf").rglob("*.gguf"):
            assert path.read_bytes() == right
    hub.cut = 0
    assert resolve("ada/tiny:Q8_0").read_bytes() == right
    assert [name for name in blobs(tmp_path) if "incomplete" in name] == []


@pytest.mark.parametrize("endpoint", ["http://[::1", "http://127.0.0.1:99999"])
def test_an_endpoint_that_is_not_a_url(hub: Hub, monkeypatch: pytest.MonkeyPatch, endpoint: str) -> None:
    monkeypatch.setenv("HF_ENDPOINT", endpoint)
    with pytest.raises(RequestError, match=r"HF_ENDPOINT is 'http://.*expected a URL"):
        resolve("ada/tiny:Q8_0")
    assert parse("https://huggingface.co/ada/tiny") == Reference("ada/tiny")
    assert Reference("ada/tiny").host


def test_a_setting_that_the_hubs_library_rejects(hub: Hub) -> None:
    command = [sys.executable, "-m", "gumba", "pull", "ada/tiny:Q8_0"]  # the library reads it once, as it is imported
    process = subprocess.run(
        command, env={**os.environ, "HF_HUB_DOWNLOAD_TIMEOUT": "soon"}, capture_output=True, text=True, check=False
    )
    assert process.returncode == 2
    assert process.stderr.startswith(
        "gumba: error: an environment variable of the hub's library (HF_...) has an invalid value: "
    )
    assert process.stderr.count("\n") == 1
