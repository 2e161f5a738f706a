"""What every test gets: one thread, fixed seeds, a cache of its own, and no way out to the network."""

import gc
import ipaddress
import multiprocessing
import os
import random
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from children import ONE_CORE, ended, example, small_chunks
from families import Family
from filelock import FileLock


def is_local(address) -> bool:
    """Whether a socket address stays on this machine."""
    if not isinstance(address, tuple):
        return True  # a Unix socket
    try:
        return ipaddress.ip_address(address[0].split("%")[0]).is_loopback
    except ValueError:
        return address[0] in ("", "localhost", socket.gethostname())


@pytest.hookimpl(tryfirst=True)  # before pytest leaves out what is marked
def pytest_collection_modifyitems(items):
    """Variants of kinds of training are tested by night."""
    for item in items:
        given = getattr(item, "callspec", None)
        if given is not None and any(getattr(value, "at_night", False) is True for value in given.params.values()):
            item.add_marker(pytest.mark.nightly)


def pytest_collection_finish():
    """What was imported and collected stays: the garbage collector need not search it again and again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def chunks():
    """Small ones; what is patched can be undone."""
    with pytest.MonkeyPatch.context() as patch:
        small_chunks(patch)
        yield patch


@pytest.fixture
def real_chunks(chunks):
    """Chunks as large as users have them."""
    chunks.undo()
    yield
    small_chunks(chunks)


@pytest.fixture(scope="session")
def common_folder(tmp_path_factory):
    """A folder of the test run, the same for all processes of pytest-xdist."""
    folder = tmp_path_factory.getbasetemp()
    folder = (folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder) / "common"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(autouse=True, scope="session")
def cache_of_the_session(common_folder):
    """Decoded data sets and weights go where nothing is left of them, and are shared by the tests of a session."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LATENTIA_CACHE", str(common_folder / "latentia-cache"))
        yield os.environ["LATENTIA_CACHE"]


@pytest.fixture(scope="session")
def make_once(common_folder):
    """`make_once(name, make)`: a folder that `make(folder)` fills, once for all processes of the test run."""

    def make_once(name: str, make: Callable[[Path], object]) -> Path:
        folder = common_folder / name
        with FileLock(f"{folder}.lock"):
            if not (folder / ".whole").exists():
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir(parents=True)
                make(folder)
                (folder / ".whole").touch()
        return folder

    return make_once


@pytest.fixture(autouse=True, scope="session")
def no_network():
    """A test that would reach beyond this machine fails at once instead of passing where there is a network."""

    def guarded(real):
        def connect(self, address):
            if not is_local(address):
                raise RuntimeError(f"a test tried to connect to {address}; tests stay on this machine.")
            return real(self, address)

        return connect

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", guarded(socket.socket.connect))
        patch.setattr(socket.socket, "connect_ex", guarded(socket.socket.connect_ex))
        yield


@pytest.fixture(autouse=True)
def fixed_seeds():
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def fresh_accelerate():
    """accelerate keeps its state in the process; a test that made an Accelerator leaves none to the next."""
    yield
    AcceleratorState._reset_state(True)
    GradientState._reset_state()


@pytest.fixture(scope="session")
def context():
    """What makes processes: a server that has imported everything."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in ONE_CORE.items():
            patch.setenv(name, value)
        path = [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]  # which may name another copy of latentia
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, path)))
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["preload"])
        context.Process(target=int).start()  # the server takes its environment now, and no test keeps it
    return context


@pytest.fixture(scope="session")
def starter(context):
    """`starter(log, target, *args)`: start a child that runs `target(log, env, *args)` and says everything into log."""

    def start(log: Path, target: Callable, *args, env=()):
        env = {**ONE_CORE, "LATENTIA_CACHE": os.environ["LATENTIA_CACHE"], "LATENTIA_FAILPOINT": ""} | dict(env)
        child = context.Process(target=target, args=(str(log), env, *args))
        child.start()
        child.log = log
        return child

    return start


@pytest.fixture
def start(starter, tmp_path):
    """Start a child; what is still alive at the end of a test is ended."""
    children = []

    def start(target, *args, env=()):
        children.append(starter(tmp_path / f"log-{len(children)}.txt", target, *args, env=env))
        return children[-1]

    yield start
    for child in children:
        if child.is_alive():
            child.kill()
        child.join()


@pytest.fixture(scope="session")
def parts(make_once):
    """A saved pipeline that holds a small autoencoder, and beside it a small text encoder and a diffusion pipeline."""
    from tiny_pipelines import unet

    from latentia import VQVAE, DDIMScheduler, UnconditionalDiffusionPipeline, VQVAEPipeline
    from latentia.models.clip import clip_towers, train_tokenizer

    def make(folder: Path) -> None:
        torch.manual_seed(0)
        vqvae = VQVAE(sample_size=8, in_channels=1, block_out_channels=(4,), codebook_size=6)
        VQVAEPipeline(vqvae).save_pretrained(folder)
        teacher = UnconditionalDiffusionPipeline(unet(1, classes=10), DDIMScheduler(), unconditional=True)
        teacher.save_pretrained(folder / "teacher")
        tokenizer = train_tokenizer(["a red heart"], 300, 8)
        tokenizer.save_pretrained(folder / "tokenizer")
        clip_towers(tokenizer, 8, width=32, text_layers=1, image_layers=1)[0].save_pretrained(folder / "text_encoder")

    return make_once("parts", make)


@pytest.fixture(scope="session")
def trained(make_once, starter, parts):
    """`trained(family, *flags)`: the folder of an undisturbed run, made once for all tests."""

    def trained(family: Family, *flags: str) -> Path:
        def make(folder: Path) -> None:
            argv = family.command(folder / "run", parts, *flags)
            code, text = ended(starter(folder / "log.txt", example, family.script, argv))
            assert code == 0, text

        return make_once("-".join([family.name, *flags]).replace("/", "-"), make) / "run"

    return trained
