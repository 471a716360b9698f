"""A Hub on localhost, of the standard library alone: the real client creates, pushes, lists and loads through HTTP.

It keeps whole snapshots by commit, blobs by digest, and a note of every request. `fail_at` breaks one endpoint.
"""

import base64
import hashlib
import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import huggingface_hub
import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from transformers import BertTokenizer, PreTrainedModel, ViltImageProcessorPil

from dual_distill.modeling import (
    DualDistillProcessor,
    DualEncoderConfig,
    DualEncoderForQuestionAnswering,
    FusionEncoderConfig,
    FusionEncoderForQuestionAnswering,
)

TOKEN = "hf_" + "ThisIsTheTokenOfTheTests" * 2
OWNER = "me"
CUT, CORRUPT, LOST = "cut", "corrupt", "lost"  # no answer; a flipped bit; done, but the answer never arrives
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "what", "is", "in", "the", "image", "?"]
ANSWERS = ["yes", "no", "red", "blue"]
SIDE = 16
_REPO = r"(?P<repo>[\w.-]+/[\w.-]+)"
ENDPOINTS = {
    "create": ("POST", r"/api/repos/create"),
    "validate-yaml": ("POST", r"/api/validate-yaml"),
    "preupload": ("POST", rf"/api/models/{_REPO}/preupload/(?P<revision>.+)"),
    "commit": ("POST", rf"/api/models/{_REPO}/commit/(?P<revision>.+)"),
    "branch": ("POST", rf"/api/models/{_REPO}/branch/(?P<revision>.+)"),
    "delete-branch": ("DELETE", rf"/api/models/{_REPO}/branch/(?P<revision>.+)"),
    "tree": ("GET", rf"/api/models/{_REPO}/tree/(?P<revision>[^/]+)(?P<folder>/.*)?"),
    "info": ("GET", rf"/api/models/{_REPO}(?:/revision/(?P<revision>.+))?"),
    "lfs-batch": ("POST", rf"/{_REPO}\.git/info/lfs/objects/batch"),
    "lfs-put": ("PUT", r"/blobs/(?P<oid>[0-9a-f]{64})"),
    "lfs-verify": ("POST", r"/verify"),
    "resolve": ("(?:GET|HEAD)", rf"/{_REPO}/resolve/(?P<revision>[^/]+)/(?P<file>.+)"),
}


class Repo:
    """Branches, and a snapshot for each commit."""

    def __init__(self, private: bool):
        self.private = private
        self.commits: dict[str, dict[str, bytes]] = {}
        self.branches: dict[str, str] = {}
        self.titles: list[str] = []
        self.commit("main", {}, "initial commit")

    def commit(self, branch: str, files: dict[str, bytes], title: str) -> str:
        self.titles.append(title)
        content = repr((branch, title, len(self.commits), sorted(files))).encode()
        sha = hashlib.sha1(content).hexdigest()
        self.commits[sha] = files
        self.branches[branch] = sha
        return sha

    def files(self, revision: str = "main") -> dict[str, bytes]:
        return self.commits[self.branches.get(revision, revision)]


class Hub(ThreadingHTTPServer):
    """The server; `repos` is what it holds, `requests` what it was asked."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.repos: dict[str, Repo] = {}
        self.blobs: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.failure: tuple[str, int | str] | None = None
        self.before_commit: Callable[[], None] | None = None
        self.commits_wait_at: threading.Barrier | None = None
        self.lock = threading.Lock()

    def fail_at(self, endpoint: str, how: int | str) -> None:
        assert endpoint in ENDPOINTS
        self.failure = (endpoint, how)

    def recover(self) -> None:
        self.failure = None


class Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else each answer waits 40 ms for the client to confirm its head

    def log_message(self, *arguments: Any) -> None:
        """Stay quiet."""

    def answer(self, status: int, body: Any = None, headers: dict[str, str] | None = None) -> None:
        if getattr(self, "is_lost", False):
            return
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {
            "Content-Type": "application/json",
            "Content-Length": str(len(content)),
            **(headers or {}),
        }.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def refuse(self, status: int, message: str, code: str = "") -> None:
        self.answer(
            status, {"error": message}, {"X-Error-Message": message, **({"X-Error-Code": code} if code else {})}
        )

    def handle_request(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = self.read_chunks()
        path = unquote(urlsplit(self.path).path)
        for name, (method, pattern) in ENDPOINTS.items():
            found = re.fullmatch(pattern, path)
            if found is None or not re.fullmatch(method, self.command):
                continue
            self.server.requests.append(name)
            failing, how = self.server.failure or (None, None)
            if name == failing and how == CUT:
                self.close_connection = True
                return
            if name == failing and isinstance(how, int):
                self.refuse(how, f"the test asks for {how}")
                return
            if name == failing and how == CORRUPT:
                body = body[:-1] + bytes([body[-1] ^ 1])
            self.is_lost = name == failing and how == LOST
            self.close_connection = self.close_connection or self.is_lost
            if name == "commit" and self.server.commits_wait_at is not None:
                self.server.commits_wait_at.wait(timeout=600)
            with self.server.lock:
                getattr(self, name.replace("-", "_"))(body, **found.groupdict())
            return
        self.refuse(404, f"no such endpoint: {self.command} {path}")

    do_GET = do_POST = do_PUT = do_HEAD = do_DELETE = handle_request

    def read_chunks(self) -> bytes:
        content = b""
        while size := int(self.rfile.readline(), 16):
            content += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return content

    def found(self, repo: str, revision: str | None = None) -> Repo | None:
        """The repository, if it and the revision are there; else the refusal is sent."""
        held = self.server.repos.get(repo)
        if held is None:
            self.refuse(404, "Repository not found", "RepoNotFound")
        elif revision is not None and revision not in held.branches and revision not in held.commits:
            self.refuse(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        else:
            return held
        return None

    def create(self, body: bytes) -> None:
        asked = json.loads(body)
        name = f"{asked['organization'] or OWNER}/{asked['name']}"
        url = {"url": f"{self.server.url}/{name}", "id": name}
        if name in self.server.repos:
            self.answer(409, {**url, "error": "You already created this model repo"})
            return
        self.server.repos[name] = Repo(asked.get("visibility") == "private" or bool(asked.get("private")))
        self.answer(200, url)

    def validate_yaml(self, body: bytes) -> None:
        content = json.loads(body)["content"]
        problems = [] if content.startswith("---\n") else [{"message": "no metadata"}]
        self.answer(400 if problems else 200, {"errors": problems, "warnings": []})

    def info(self, body: bytes, repo: str, revision: str | None) -> None:
        if (held := self.found(repo, revision)) is None:
            return
        sha = held.branches.get(revision or "main", revision)
        siblings = [{"rfilename": name} for name in held.files(sha)]
        self.answer(200, {"id": repo, "sha": sha, "private": held.private, "siblings": siblings, "tags": []})

    def preupload(self, body: bytes, repo: str, revision: str) -> None:
        if self.found(repo, revision) is None:
            return
        files = [
            {"path": file["path"], "shouldIgnore": False, "uploadMode": "lfs" if is_large(file["path"]) else "regular"}
            for file in json.loads(body)["files"]
        ]
        self.answer(200, {"files": files})

    def lfs_batch(self, body: bytes, repo: str) -> None:
        objects = []
        for one in json.loads(body)["objects"]:
            actions = {
                "upload": {"href": f"{self.server.url}/blobs/{one['oid']}", "header": {}},
                "verify": {"href": f"{self.server.url}/verify", "header": {}},
            }
            objects.append({**one, **({} if one["oid"] in self.server.blobs else {"actions": actions})})
        self.answer(200, {"transfer": "basic", "objects": objects})

    def lfs_put(self, body: bytes, oid: str) -> None:
        if hashlib.sha256(body).hexdigest() != oid:
            self.refuse(400, "wrong checksum")
            return
        self.server.blobs[oid] = body
        self.answer(200)

    def lfs_verify(self, body: bytes) -> None:
        asked = json.loads(body)
        held = self.server.blobs.get(asked["oid"])
        self.answer(200 if held is not None and len(held) == asked["size"] else 422)

    def commit(self, body: bytes, repo: str, revision: str) -> None:
        if (held := self.found(repo, revision)) is None:
            return
        if self.server.before_commit is not None:
            hook, self.server.before_commit = self.server.before_commit, None
            hook()
        lines = [json.loads(line) for line in body.splitlines() if line]
        header = lines[0]["value"]
        if header.get("parentCommit") not in (None, held.branches[revision]):
            self.refuse(412, "A commit has happened since. Please refresh and try again.")
            return
        files = dict(held.files(revision))
        for line in lines[1:]:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.server.blobs[value["oid"]]
            elif line["key"] == "deletedFile":
                del files[value["path"]]
        answer: dict[str, Any] = {"success": True}
        if "create_pr" in parse_qs(urlsplit(self.path).query):
            revision = "refs/pr/1"
            answer["pullRequestUrl"] = f"{self.server.url}/{repo}/discussions/1"
        sha = held.commit(revision, files, header["summary"])
        self.answer(200, {**answer, "commitOid": sha, "commitUrl": f"{self.server.url}/{repo}/commit/{sha}"})

    def branch(self, body: bytes, repo: str, revision: str) -> None:
        if (held := self.found(repo)) is None:
            return
        held.branches[revision] = json.loads(body).get("startingPoint") or held.branches["main"]
        self.answer(200)

    def delete_branch(self, body: bytes, repo: str, revision: str) -> None:
        if (held := self.found(repo, revision)) is not None:
            del held.branches[revision]
            self.answer(200)

    def tree(self, body: bytes, repo: str, revision: str, folder: str | None) -> None:
        if (held := self.found(repo, revision)) is None:
            return
        if folder and folder.strip("/"):
            self.refuse(404, "no such folder", "EntryNotFound")
            return
        files = held.files(revision).items()
        self.answer(200, [{"type": "file", "path": n, "size": len(c), "oid": git_oid(c)} for n, c in files])

    def resolve(self, body: bytes, repo: str, revision: str, file: str) -> None:
        if (held := self.found(repo, revision)) is None:
            return
        content = held.files(revision).get(file)
        if content is None:
            self.refuse(404, "Entry not found", "EntryNotFound")
            return
        commit = held.branches.get(revision, revision)
        etag = hashlib.sha256(content).hexdigest() if is_large(file) else git_oid(content)
        headers = {"Content-Type": "application/octet-stream", "ETag": f'"{etag}"', "X-Repo-Commit": commit}
        self.answer(200, content, headers)


def is_large(name: str) -> bool:
    return name.endswith((".safetensors", ".png"))


def git_oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@pytest.fixture
def hub_server() -> Iterator[Hub]:
    """A Hub of its own, on a port of its own."""
    server = Hub()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def hub(hub_server: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Hub:
    """The Hub, with the client of this process told to use it; where it would wait before another try, it does not."""
    from huggingface_hub import constants
    from huggingface_hub.utils import _http

    for name, value in {
        "ENDPOINT": hub_server.url,
        "HUGGINGFACE_CO_URL_TEMPLATE": hub_server.url + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_DISABLE_XET": True,
        "HF_HUB_DISABLE_TELEMETRY": True,
        "HF_HUB_OFFLINE": False,
        "HF_TOKEN_PATH": str(tmp_path / "no-token"),
    }.items():
        assert hasattr(constants, name)
        monkeypatch.setattr(constants, name, value)
    # The functions of the module, `file_exists` and such, belong to a client that was made at import.
    monkeypatch.setattr(huggingface_hub.hf_api.api, "endpoint", hub_server.url)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(_http, "time", SimpleNamespace(sleep=lambda seconds: None, time=time.time))
    assert huggingface_hub.get_token() == TOKEN
    return hub_server


@pytest.fixture
def hub_environment(hub_server: Hub, tmp_path: Path) -> dict[str, str]:
    """What a process must be given to use the Hub, set before it imports anything."""
    return {
        "HF_ENDPOINT": hub_server.url,
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_OFFLINE": "0",
        "HF_HOME": str(tmp_path / "hf-home"),
        "HF_TOKEN": TOKEN,
        "OMP_NUM_THREADS": "1",
    }


@pytest.fixture
def make_folder(tmp_path: Path) -> Callable[..., Path]:
    """Write a folder that looks like a checkpoint of a dual encoder; its weights are eight numbers."""

    def make(name: str = "checkpoint", value: float = 0.0, **config: Any) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        tower = {"hidden_size": 4, "num_attention_heads": 1, "num_hidden_layers": 1}
        fields = {
            "architectures": ["DualEncoderForQuestionAnswering"],
            "model_type": "dual_distill_dual_encoder",
            "text_config": {**tower, "max_position_embeddings": 8},
            "vision_config": {**tower, "image_size": [8, 12], "patch_size": 4},
            "id2label": {"0": "yes", "1": "no"},
            "label2id": {"no": 1, "yes": 0},
            "num_images": 1,
            **config,
        }
        (folder / "config.json").write_text(json.dumps(fields))
        (folder / "processor_config.json").write_text(json.dumps({"processor_class": "DualDistillProcessor"}))
        save_file({"weight": np.full((2, 4), value, np.float32)}, folder / "model.safetensors")
        return folder

    return make


def tiny(kind: str) -> PreTrainedModel:
    """A dual or a fusion encoder with noise on every parameter, the same at each call."""
    torch.manual_seed(3)
    body = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    text, image = {"vocab_size": len(WORDS), "max_position_embeddings": 8}, {"image_size": SIDE, "patch_size": 8}
    labels = {"id2label": dict(enumerate(ANSWERS)), "label2id": {name: i for i, name in enumerate(ANSWERS)}}
    if kind == "fusion":
        model = FusionEncoderForQuestionAnswering(FusionEncoderConfig(**body, **text, **image, **labels))
    else:
        config = DualEncoderConfig(text_config={**body, **text}, vision_config={**body, **image}, **labels)
        model = DualEncoderForQuestionAnswering(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model.eval()


def saved(model: PreTrainedModel, folder: Path) -> DualDistillProcessor:
    """Write a model and a processor for it; returns the processor."""
    tokenizer = BertTokenizer({word: index for index, word in enumerate(WORDS)})
    processor = DualDistillProcessor(ViltImageProcessorPil(size={"shortest_edge": SIDE}, size_divisor=8), tokenizer)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return processor


@pytest.fixture
def make_model() -> Callable[[str], PreTrainedModel]:
    return tiny


@pytest.fixture
def save_model() -> Callable[[PreTrainedModel, Path], DualDistillProcessor]:
    return saved
