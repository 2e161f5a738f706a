"""Fetching into a folder, and loading by diffusers alone, against a Hub on the loopback."""

import json
import shutil
import subprocess
import sys

import diffusers
import pytest
import torch
from helpers import card, perturbed
from hub_server import TOKEN, environment_at, point_client_at, running_hub
from PIL import Image

import latentia
from latentia.commands import verify
from latentia.commands.main import main
from latentia.errors import CheckpointError, HubError, UsageError
from latentia.hub.pull import pull
from latentia.hub.push import export_files, push_to_hub

WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    root = tmp_path_factory.mktemp("exports") / "digits"
    torch.manual_seed(0)
    unet = perturbed(latentia.UNet2D(sample_size=8, in_channels=1, block_out_channels=(8,), attention_head_dim=8))
    latentia.UnconditionalDiffusionPipeline(unet, latentia.DDIMScheduler()).save_pretrained(root)
    card(pipeline_class="UnconditionalDiffusionPipeline").save(root / "README.md")
    (root / "samples").mkdir()
    Image.new("L", (8, 8)).save(root / "samples" / "grid.png")
    return root


@pytest.fixture
def hub(monkeypatch, tmp_path):
    with running_hub() as server:
        point_client_at(server, monkeypatch, str(tmp_path / "cache"))
        server.naps = []
        monkeypatch.setattr("time.sleep", server.naps.append)
        yield server


@pytest.fixture
def pushed(hub, saved):
    """The export on the Hub, amid what strangers put beside such files."""
    push_to_hub(saved, "user/digits")
    extra = ("pipeline.py", "unet/evil.py", "unet/diffusion_pytorch_model.bin", "unet/optimizer.safetensors", ".env")
    hub.put(
        "user/digits", {**dict.fromkeys(extra, b"raise SystemExit('ran')"), "run.sh": b"", "samples/other.png": b""}
    )
    hub.requests.clear()
    return hub


def names(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def fetched(hub):
    return {path.split("/resolve/")[1].split("/", 1)[1] for _, path in hub.requests if "/resolve/" in path}


def nothing_is_left(tmp_path):
    return {path.name for path in tmp_path.iterdir()} <= {"cache"}


def test_what_was_pushed_comes_back_whole_and_nothing_else(pushed, saved, tmp_path, capsys):
    main(["pull", "user/digits", str(tmp_path / "new" / "here")])
    out, here = capsys.readouterr().out, tmp_path / "new" / "here"
    assert names(here) == set(export_files(saved)) == fetched(pushed)
    for name in names(here) - {"README.md"}:
        assert (here / name).read_bytes() == (saved / name).read_bytes(), name
    assert pushed.refs["user/digits"]["main"] in out and "UnconditionalDiffusionPipeline" in out
    assert "Left on the Hub" in out and "pipeline.py" in out and ".env" in out
    assert nothing_is_left(tmp_path / "new" / "here" / "..") or {p.name for p in here.parent.iterdir()} == {"here"}
    push_to_hub(here, "user/again")  # a pull is an export
    assert set(pushed.find("user/again", "main")[1]) == set(export_files(saved))


def test_everything_is_of_one_commit(pushed, saved, tmp_path, monkeypatch):
    first = pushed.refs["user/digits"]["main"]
    evil = pushed.put("user/digits", {"model_index.json": b'{"_class_name": "evil.Evil"}'})
    pushed.refs["user/digits"]["main"] = first
    find = type(pushed).find

    def find_and_move(self, repo, revision):
        found = find(self, repo, revision)
        self.refs[repo]["main"] = evil
        return found

    monkeypatch.setattr(type(pushed), "find", find_and_move)
    assert pull("user/digits", tmp_path / "one").commit == first
    with pytest.raises(CheckpointError, match=r"evil\.Evil"):
        pull("user/digits", tmp_path / "two")
    assert pull("user/digits", tmp_path / "three", revision=first).commit == first
    assert not (tmp_path / "two").exists()


def test_only_an_empty_folder_is_filled(pushed, tmp_path):
    (tmp_path / "empty").mkdir()
    pull("user/digits", tmp_path / "empty")
    before = names(tmp_path / "empty")
    (tmp_path / "file").write_text("mine")
    for taken in ("empty", "file"):
        pushed.requests.clear()
        with pytest.raises(UsageError, match="must be a new or an empty folder"):
            pull("user/digits", tmp_path / taken)
        assert pushed.requests == []
    assert names(tmp_path / "empty") == before and (tmp_path / "file").read_text() == "mine"
    with pytest.raises(UsageError, match="user/name"):
        pull("not a name!", tmp_path / "x")


def test_a_network_alone_comes_too(pushed, saved, tmp_path):
    tree = {name: (saved / "unet" / name).read_bytes() for name in ("config.json", WEIGHTS.split("/")[1])}
    pushed.put("user/unet", {**tree, "pytorch_model.bin": b"no", "README.md": b"# Mine"})
    assert "UNet2D" in pull("user/unet", tmp_path / "unet").loaded
    assert names(tmp_path / "unet") == {*tree, "README.md"}
    pushed.put("user/nothing", {"README.md": b"# Mine"})
    with pytest.raises(CheckpointError, match="neither model_index"):
        pull("user/nothing", tmp_path / "nothing")


DAMAGE = {
    "index": ({"model_index.json": b'{"_class_name": "os.system"}'}, "_class_name"),
    "library": ({"model_index.json": b'{"_class_name": "DDPMPipeline", "unet": ["os", "x"]}'}, "library"),
    "cut weights": ({WEIGHTS: b"\x10"}, "cannot be read as safetensors"),
    "other weights": ({"unet/config.json": None}, "do not fit|cannot be loaded"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_what_does_not_load_leaves_no_folder(pushed, saved, tmp_path, case, capsys):
    change, said = DAMAGE[case]
    if change == {"unet/config.json": None}:
        config = json.loads((saved / "unet" / "config.json").read_text())
        change = {"unet/config.json": json.dumps(config | {"layers_per_block": 3}).encode()}
    pushed.put("user/digits", change)
    with pytest.raises(SystemExit) as exit:
        main(["pull", "user/digits", str(tmp_path / "new")])
    error = capsys.readouterr().err
    assert exit.value.code == 5 and "user/digits" in error and ".partial" not in error
    with pytest.raises(CheckpointError, match=said):
        pull("user/digits", tmp_path / "new")
    assert nothing_is_left(tmp_path)


def test_bytes_that_differ_from_what_the_hub_lists_are_refused(pushed, tmp_path, monkeypatch):
    import hub_server

    plain = hub_server.entry
    for key, name in (("lfs", WEIGHTS), ("oid", "scheduler/scheduler_config.json")):

        def lies(path, files, key=key, name=name):
            found = plain(path, files)
            if path == name:
                found[key] = {**found["lfs"], "oid": "0" * 64} if key == "lfs" else "0" * 40
            return found

        monkeypatch.setattr(hub_server, "entry", lies)
        with pytest.raises(HubError, match=f"{name} was downloaded with .* that differ from what the Hub lists"):
            pull("user/digits", tmp_path / "new")
    assert nothing_is_left(tmp_path)


def test_a_passing_fault_is_waited_for_and_a_lasting_one_ends(pushed, tmp_path, capsys):
    pushed.fail("GET /api/models/user/digits$", 503, times=2)  # one that the client itself does not ask again
    pull("user/digits", tmp_path / "new")
    assert len(pushed.naps) == 2
    for status in (429, 500):
        pushed.fail(f"GET .*/resolve/.*/{WEIGHTS}", status, times=10**6)
        pushed.naps.clear()
        with pytest.raises(SystemExit) as exit:
            main(["pull", "user/digits", str(tmp_path / f"none-{status}")])
        assert exit.value.code == 6 and "user/digits (main, commit " in capsys.readouterr().err
        assert len(pushed.naps) < 100 and sum(pushed.naps) < 400
        pushed.faults.clear()
    assert {path.name for path in tmp_path.iterdir()} <= {"cache", "new"}


def test_private_and_gated_repositories_say_what_to_do(pushed, tmp_path, monkeypatch):
    pushed.gated.add("user/digits")
    with pytest.raises(HubError, match=r"gated: ask for access at http://127.*/user/digits in a browser") as caught:
        pull("user/digits", tmp_path / "new")
    assert "hf auth login" in str(caught.value) and TOKEN not in str(caught.value) and pushed.naps == []
    pushed.gated.clear()
    pushed.private.add("user/digits")
    pull("user/digits", tmp_path / "mine")
    with monkeypatch.context() as patch:
        patch.setattr("huggingface_hub.utils._headers.get_token", lambda: None)
        with pytest.raises(HubError, match=r"private, log in with `hf auth login`.*ask its owner"):
            pull("user/digits", tmp_path / "new")
    pushed.fail("GET ", 403, times=10**6)
    with pytest.raises(HubError, match=r"ask its owner for access"):
        pull("user/digits", tmp_path / "new")
    pushed.faults.clear()
    for name, revision, said in (("user/none", None, "Check the name"), ("user/digits", "v9", r"\(v9\).*v9")):
        with pytest.raises(HubError, match=f"(?s){said}"):
            pull(name, tmp_path / "new", revision=revision)
    assert {path.name for path in tmp_path.iterdir()} <= {"cache", "mine"} and pushed.naps == []


# Verifying.


def test_verify_says_what_it_checked(pushed, saved, tmp_path, capsys):
    main(["verify", "user/digits"])
    out = capsys.readouterr().out
    assert pushed.refs["user/digits"]["main"] in out and "size and hash that the Hub lists" in out
    [line] = verify(str(saved / "unet")).lines
    assert "UNet2D" in line and "every weight in place" in line
    assert "DDIMScheduler" in verify(str(saved / "scheduler")).text()
    assert "UnconditionalDiffusionPipeline: " in verify(str(saved)).text()
    with pytest.raises(UsageError, match="revision is for repositories"):
        verify(str(saved), "main")
    with pytest.raises(HubError, match=r"no folder user/digits here.*v9"):
        verify("user/digits", "v9")


def test_verify_names_what_is_not_whole(saved, tmp_path, capsys):
    def broken(name, change):
        root = shutil.copytree(saved, tmp_path / name)
        change(root)
        return root

    def cut(root):
        (root / WEIGHTS).write_bytes((root / WEIGHTS).read_bytes()[:-3])

    def pickled(root):
        torch.save({}, root / "unet" / "diffusion_pytorch_model.bin")
        (root / WEIGHTS).unlink()

    cases = [
        (broken("cut", cut), "unet", 5),
        (broken("cut too", cut) / "unet", "unet", 5),
        (broken("gone", lambda root: shutil.rmtree(root / "scheduler")), "scheduler", 5),
        (broken("pickled", pickled), "latentia convert", 5),
        (broken("evil", lambda root: (root / "unet/config.json").write_text('{"_class_name": ["a", "b"]}')) / "unet",
         "_class_name", 5),
        (saved / WEIGHTS, "is a file", 5),
        (tmp_path / "no", "is not there", 5),
        (saved / "samples", "neither a checkpoint", 5),
    ]  # fmt: skip
    for path, said, code in cases:
        with pytest.raises(SystemExit) as exit:
            main(["verify", str(path)])
        assert exit.value.code == code and said in capsys.readouterr().err, path


def test_verify_is_stricter_than_diffusers(tmp_path):
    """diffusers leaves a missing weight at random and warns; a transformers network that lacks one likewise."""
    from safetensors.torch import load_file, save_file

    diffusers.AutoencoderKL(block_out_channels=(32,)).save_pretrained(tmp_path / "vae")
    path = tmp_path / "vae" / "diffusion_pytorch_model.safetensors"
    weights = load_file(path)
    del weights["decoder.conv_in.bias"]
    save_file(weights, path, metadata={"format": "pt"})
    diffusers.AutoencoderKL.from_pretrained(tmp_path / "vae")
    with pytest.raises(CheckpointError, match=r"1 missing keys, such as decoder\.conv_in\.bias"):
        verify(str(tmp_path / "vae"))
    unet = diffusers.UNet2DModel(
        sample_size=8, in_channels=1, out_channels=1, block_out_channels=(32,), layers_per_block=1,
        down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",),
    )  # fmt: skip
    diffusers.DDPMPipeline(unet=unet, scheduler=diffusers.DDPMScheduler()).save_pretrained(tmp_path / "pipe")
    assert "DDPMPipeline: " in verify(str(tmp_path / "pipe")).text()
    path = tmp_path / "pipe" / WEIGHTS
    weights = load_file(path)
    del weights["conv_in.bias"]
    save_file(weights, path, metadata={"format": "pt"})
    latentia.DiffusionPipeline.from_pretrained(tmp_path / "pipe")
    with pytest.raises(CheckpointError, match=r"pipe.unet .*1 missing keys, such as conv_in\.bias"):
        verify(str(tmp_path / "pipe"))


# Loading by diffusers alone.

ALONE = """
import sys
import diffusers
from huggingface_hub import snapshot_download
folder = snapshot_download("user/ours")
try:
    diffusers.DiffusionPipeline.from_pretrained(folder, custom_pipeline="pipeline")
except ValueError as error:
    assert "trust_remote_code" in str(error), error
else:
    sys.exit("it ran without being trusted")
assert "latentia" not in sys.modules
for folder, name, call in (
    (folder, "UnconditionalDiffusionPipeline", (2,)),
    (snapshot_download("user/theirs"), "DDPMPipeline", ()),
):
    pipe = diffusers.DiffusionPipeline.from_pretrained(folder, custom_pipeline="pipeline", trust_remote_code=True)
    assert type(pipe).__name__ == name, type(pipe)
    assert type(pipe.unet).__module__ == "latentia.models.unet"
    assert len(pipe(*call, num_inference_steps=2).images) == max(1, *call, 1)
"""


def test_diffusers_alone_loads_what_was_pushed_with_code(hub, saved, tmp_path):
    unet = latentia.UNet2D.from_pretrained(saved / "unet")
    diffusers.DDPMPipeline(unet=unet, scheduler=latentia.DDPMScheduler()).save_pretrained(tmp_path / "theirs")
    card(grid=None).save(tmp_path / "theirs" / "README.md")
    (tmp_path / "theirs" / "pipeline.py").write_text("raise SystemExit('never uploaded')")
    for name, root in (("user/ours", saved), ("user/theirs", tmp_path / "theirs")):
        before = names(root)
        push_to_hub(root, name, private=False, license="none", diffusers_code=True)
        tree = hub.find(name, "main")[1]
        assert set(tree) == {*export_files(root), "pipeline.py"} and names(root) == before
        assert b"never uploaded" not in tree["pipeline.py"]
        said = tree["README.md"].decode()
        assert f'snapshot_download("{name}")' in said and "custom_pipeline" in said
    command = [sys.executable, "-W", "ignore", "-c", ALONE]
    done = subprocess.run(command, capture_output=True, text=True, env=environment_at(hub, tmp_path / "home"))
    assert done.returncode == 0, done.stderr


def test_our_loaders_never_run_the_code(hub, saved, tmp_path):
    push_to_hub(saved, "user/code", diffusers_code=True)
    assert "pipeline.py" in hub.find("user/code", "main")[1]
    hub.put("user/code", {"pipeline.py": f"open({str(tmp_path / 'ran')!r}, 'w')".encode()})
    latentia.DiffusionPipeline.from_pretrained("user/code", cache_dir=tmp_path / "c")
    pull("user/code", tmp_path / "new")
    verify("user/code")
    assert not (tmp_path / "ran").exists() and not (tmp_path / "new" / "pipeline.py").exists()
    with pytest.raises(UsageError, match="runs no code"):
        latentia.DiffusionPipeline.from_pretrained("user/code", custom_pipeline="pipeline", trust_remote_code=True)


def test_code_is_uploaded_only_when_it_is_asked_for(hub, saved, tmp_path):
    root = shutil.copytree(saved, tmp_path / "run")
    (root / "pipeline.py").write_text("raise SystemExit('mine')")
    push_to_hub(root, "user/plain")
    assert set(hub.find("user/plain", "main")[1]) == set(export_files(saved))
    assert "custom_pipeline" not in hub.find("user/plain", "main")[1]["README.md"].decode()
