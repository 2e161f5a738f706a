"""What every test gets: one thread, fixed seeds, a cache of its own, and no way out to the network."""

import ipaddress
import multiprocessing
import os
import random
import socket

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from children import ONE_CORE, PRELOAD


def is_local(address) -> bool:
    """Whether a socket address stays on this machine."""
    if not isinstance(address, tuple):
        return True  # a Unix socket
    try:
        return ipaddress.ip_address(address[0].split("%")[0]).is_loopback
    except ValueError:
        return address[0] in ("", "localhost", socket.gethostname())


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def cache_of_the_session(tmp_path_factory):
    """Decoded data sets and weights go where nothing is left of them, and are shared by the tests of a session."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LATENTIA_CACHE", str(tmp_path_factory.mktemp("latentia-cache")))
        yield os.environ["LATENTIA_CACHE"]


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
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOAD)
        context.Process(target=int).start()  # the server takes its environment now, and no test keeps it
    return context


@pytest.fixture
def start(context, tmp_path):
    """Start a child; what is still alive at the end of a test is ended."""
    children = []

    def start(target, *args, env=()):
        log = tmp_path / f"log-{len(children)}.txt"
        env = {**ONE_CORE, "LATENTIA_CACHE": os.environ["LATENTIA_CACHE"], "LATENTIA_FAILPOINT": ""} | dict(env)
        child = context.Process(target=target, args=(str(log), env, *args))
        child.start()
        child.log = log
        children.append(child)
        return child

    yield start
    for child in children:
        if child.is_alive():
            child.kill()
        child.join()
