"""tpmm export --push, against a stub of the Hub's API on loopback."""

import base64
import http.server
import json
import threading

import command_runs
import huggingface_hub
import pytest

from tpmm_jax.commands import export as command

NAME = "me/my-model"


def is_private(made):
    """As older and newer clients say it."""
    return bool(made.get("private")) or made.get("visibility") == "private"


class Hub(http.server.BaseHTTPRequestHandler):
    """A repository that is not there yet; files arrive in a commit or by LFS."""

    def answer(self, content, code=200):
        data = json.dumps(content).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def body(self):
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def do_GET(self):
        hub, token = self.server, self.headers.get("authorization", "")
        if token != "Bearer hf_right":
            self.answer({"error": "Invalid credentials in Authorization header"}, 401)
        elif self.path == "/api/whoami-v2":
            auth = {"type": "access_token", "accessToken": {"role": hub.role}}
            self.answer({"name": "me", "type": "user", "orgs": [], "auth": auth})
        elif hub.created is None:
            self.send_response(404)
            self.send_header("X-Error-Code", "RepoNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()
        elif "/tree/" in self.path:
            kind = {"type": "file", "size": 1, "oid": "0"}
            self.answer([{**kind, "path": path} for path in hub.files])
        else:
            self.answer({"id": NAME, "private": is_private(hub.created)})

    def do_POST(self):
        hub, body = self.server, self.body()
        url = f"{hub.url}/{NAME}"
        if self.path == "/api/repos/create":
            hub.created = json.loads(body)
            self.answer({"url": url, "name": NAME})
        elif self.path == "/api/validate-yaml":
            self.answer({"warnings": [], "errors": []})
        elif self.path.endswith("/preupload/main"):
            files = json.loads(body)["files"]
            large = ".safetensors"
            modes = [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if large in file["path"] else "regular",
                    "shouldIgnore": False,
                }
                for file in files
            ]
            self.answer({"files": modes})
        elif self.path.endswith("/info/lfs/objects/batch"):
            objects = [
                {**x, "actions": {"upload": {"href": f"{hub.url}/lfs/{x['oid']}"}}}
                for x in json.loads(body)["objects"]
            ]
            self.answer({"transfer": "basic", "objects": objects})
        elif self.path.endswith("/commit/main"):
            if hub.full:
                self.answer({"error": "Private repository storage limit reached"}, 403)
                return
            for line in map(json.loads, body.splitlines()):
                value = line["value"]
                if line["key"] == "file":
                    hub.files[value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "deletedFile":
                    del hub.files[value["path"]]
                elif line["key"] == "lfsFile":
                    hub.files[value["path"]] = hub.large[value["oid"]]
            self.answer({"commitUrl": f"{url}/commit/1", "commitOid": "1"})
        else:
            self.answer({"error": f"no {self.path}"}, 404)

    def do_PUT(self):
        self.server.large[self.path.rpartition("/")[2]] = self.body()
        self.answer({})

    def log_message(self, *args):
        pass


@pytest.fixture
def hub(monkeypatch):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.url = f"http://127.0.0.1:{server.server_port}"
    server.created, server.files, server.large, server.full = None, {}, {}, False
    server.role = "write"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    constants = huggingface_hub.constants
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    # A stub of LFS, which every server has.
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_TOKEN", "hf_right")
    yield server
    server.shutdown()


def export(capsys, *argv):
    code = command.main([*map(str, argv)])
    out, err = capsys.readouterr()
    assert "Traceback" not in err
    return code, " ".join((out + err).split())


def test_a_push_is_the_directory_and_the_runs_own_files(capsys, hub, tmp_path):
    run, out = command_runs.finished_run(), tmp_path / "out"
    code, said = export(
        capsys, f"{run}/trajectory@2", "--output", out, "--push", NAME, "--private"
    )
    assert code == 0, said
    assert f"{hub.url}/{NAME}/commit/1" in said
    assert hub.created["name"] == "my-model" and is_private(hub.created)
    wanted = {path.name: path.read_bytes() for path in out.iterdir()}
    for name in ("config.json", "report.html"):
        if (run / name).exists():
            wanted[f"training/{name}"] = (run / name).read_bytes()
    assert hub.files == wanted and "training/config.json" in wanted
    assert "model.safetensors" in hub.files and "README.md" in hub.files


def test_weights_of_an_earlier_push_go(capsys, hub, tmp_path):
    hub.created = {"name": "my-model"}
    hub.files = dict.fromkeys(
        ("model-00001-of-00002.safetensors", "model.safetensors.index.json", "LICENSE"),
        b"",
    )
    run, out = command_runs.finished_run(), tmp_path / "out"
    code, said = export(capsys, f"{run}/trajectory@2", "--output", out, "--push", NAME)
    assert code == 0, said
    assert {"LICENSE", "model.safetensors"} <= set(hub.files)
    assert not any("00001" in name or "index" in name for name in hub.files)


def test_what_cannot_be_written_is_said_before_anything(capsys, hub, tmp_path):
    def refused(*argv):
        code, said = export(capsys, "nowhere", "--output", tmp_path / "out", *argv)
        assert code == 2
        return said

    assert "me can write to me" in refused("--push", "other/model")
    hub.created = {"name": "my-model", "private": False}
    assert "that repository is public" in refused("--push", NAME, "--private")
    hub.role = "read"
    assert "may read only" in refused("--push", NAME)


def test_nobody_logged_in_is_said_before_anything(capsys, hub, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    out = tmp_path / "out"
    code, said = export(capsys, "nowhere", "--output", out, "--push", NAME)
    assert code == 2 and "hf auth login" in said and not out.exists()


def test_a_hub_that_refuses_leaves_the_directory(capsys, hub, tmp_path):
    hub.full = True
    out = tmp_path / "out"
    run = command_runs.finished_run()
    code, said = export(capsys, f"{run}/trajectory@0", "--output", out, "--push", NAME)
    assert code == 4 and f"hf upload {NAME} {out}" in said
    assert (out / "model.safetensors").exists()


@pytest.mark.parametrize("name", ["my-model", "a/b/c", "me/my model"])
def test_a_name_that_is_none_is_refused(capsys, tmp_path, name):
    code, said = export(capsys, "x", "--output", tmp_path / "out", "--push", name)
    assert code == 2 and "wanted a hub id such as org/name" in said
