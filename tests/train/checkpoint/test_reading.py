"""What a checkpoint may do while it is read: nothing, from a file, a URL or a stage's src_ckpt, unless somebody asked."""

import functools
import http.server
import logging
import os
import threading

import pytest

pytest.importorskip("torchdistill", reason="akd-train needs torchdistill: pip install '.[test]'")
pytest.importorskip("torchvision.datasets", reason="torchdistill needs torchvision: pip install '.[test]'")

import torch
from places import TINY
from train_fixture import save_teacher, tiny_net

from akd_ext.train.checkpoint import reading
from akd_ext.train.checkpoint.reading import checkpoint_rules, read_checkpoint
from akd_ext.train.cli import main


class Touches:
    """Unpickled, it makes a folder: what a hostile checkpoint would do worse."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.makedirs, (str(self.path), 0o777, True)  # a run may read it twice


@pytest.fixture
def hostile(tmp_path):
    """A checkpoint whose weights are good, and the folder that shows that code from it ran."""
    mark = tmp_path / "code_ran"
    torch.save({"model": tiny_net().state_dict(), "also": Touches(mark)}, tmp_path / "hostile.pt")
    return tmp_path / "hostile.pt", mark


@pytest.fixture
def as_https(tmp_path, monkeypatch):
    """Files of ``tmp_path`` under https://files.test/, fetched by torch's own download from a server of this process."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(tmp_path)))
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    download = torch.hub.download_url_to_file
    local = f"http://127.0.0.1:{server.server_port}/"
    monkeypatch.setattr(
        torch.hub, "download_url_to_file",
        lambda url, *args, **kwargs: download(url.replace("https://files.test/", local), *args, **kwargs),
    )  # fmt: skip
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    yield "https://files.test/"
    server.shutdown()


@pytest.mark.parametrize("by_url", [False, True])
def test_code_in_a_checkpoint_runs_only_when_allowed(hostile, as_https, by_url, caplog):
    path, mark = hostile
    name = as_https + path.name if by_url else str(path)
    with pytest.raises(ValueError, match=r"more than weights \(os\.makedirs\), .*--allow_pickle"):
        read_checkpoint(name)
    with checkpoint_rules(allow_pickle=False), pytest.raises(ValueError, match="--allow_pickle"):
        read_checkpoint(name)
    assert not mark.exists()
    with checkpoint_rules(allow_pickle=True), caplog.at_level(logging.WARNING):
        assert "model" in read_checkpoint(name)
    assert mark.exists() and "code from it runs" in caplog.text


def test_weights_come_by_url(tmp_path, as_https):
    from safetensors.torch import save_file

    (tmp_path / "a").mkdir(), (tmp_path / "b").mkdir()
    torch.save({"w": torch.ones(2)}, tmp_path / "a" / "model.pt")
    torch.save({"w": torch.zeros(3)}, tmp_path / "b" / "model.pt")  # the same name: not the same file
    save_file({"w": torch.arange(2)}, tmp_path / "w.safetensors")
    assert read_checkpoint(as_https + "a/model.pt")["w"].tolist() == [1, 1]
    assert read_checkpoint(as_https + "b/model.pt")["w"].tolist() == [0, 0, 0]
    assert read_checkpoint(as_https + "w.safetensors")["w"].tolist() == [0, 1]


def test_plain_http_is_refused(monkeypatch):
    monkeypatch.setattr(torch.hub, "download_url_to_file", lambda *args, **kwargs: pytest.fail("it was fetched"))
    for url in ("http://files.test/model.pt", "HTTP://files.test/model.pt"):
        with pytest.raises(ValueError, match="plain http can be changed on the way; accepted: https, or a file"):
            read_checkpoint(url)


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"hello world\n", "no torch.save wrote it: it begins with 'hello world'"), (b"", "it is empty"),
     (b"<!DOCTYPE html>", "begins with '<!DOCTYPE html>'"), (b"e\n", "begins with 'e'"), (b"\x8d\x00W", "begins with the bytes 8d 00 57")],
)  # fmt: skip
def test_another_kind_of_file_is_said_to_be_one(tmp_path, content, words):
    (tmp_path / "x.pt").write_bytes(content)
    with pytest.raises(ValueError, match=words):
        read_checkpoint(str(tmp_path / "x.pt"))


@pytest.mark.parametrize(
    "key", ["models.student_model.src_ckpt", "train.stage1.student.src_ckpt", "train.stage2.teacher.src_ckpt"]
)
def test_akd_train_runs_no_code_from_a_checkpoint(hostile, tmp_path, monkeypatch, capfd, key):
    monkeypatch.chdir(tmp_path)
    path, mark = hostile
    save_teacher(tmp_path)
    arguments = ["--config", TINY, "--output_dir", "out", "--seed", "0", "--quiet", "--set", f"{key}={path}"]
    assert main(arguments) == 2
    assert not mark.exists()
    error = capfd.readouterr().err
    assert "src_ckpt" in error and "--allow_pickle" in error
    if "stage1" in key:
        assert main([*arguments, "--overwrite", "--allow_pickle", "--set", "train.stage1.num_epochs=1"]) == 0
        assert mark.exists()


def test_akd_train_refuses_plain_http_before_anything_is_built(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    save_teacher(tmp_path)
    assert main(["--config", TINY, "--set", "train.stage2.teacher.src_ckpt=http://files.test/x.pt"]) == 2
    assert "train.stage2.teacher.src_ckpt: plain http" in capfd.readouterr().err


def test_torchdistills_loader_comes_back(tmp_path):
    from torchdistill.core import distillation

    theirs = distillation.load_ckpt
    with checkpoint_rules(allow_pickle=False):
        assert distillation.load_ckpt is not theirs
        distillation.load_ckpt(str(tmp_path / "none.pt"), tiny_net())  # torchdistill passes over what is not there
    assert distillation.load_ckpt is theirs and not reading._allow_pickle.get()
