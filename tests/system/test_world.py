import os
import random
import socket
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from lora_kit.system.state import tf32, undisturbed
from lora_kit.system.world import LAUNCHER_SETS, MPI_SETS, free_port, launched, no_launcher, prove_world, world_size


def test_a_free_port_is_free_and_the_system_gives_it_to_nobody():
    random.seed(1)
    state, ports = random.getstate(), {free_port() for _ in range(20)}
    assert random.getstate() == state and len(ports) > 1
    lowest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    for port in ports:
        assert 1024 < port < lowest
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", port))


@pytest.mark.parametrize(("ranks", "expected"), [([0], 2), ([0, 0], 2), ([0, 2], 2), ([0, 1], 1)])
def test_a_world_that_is_not_the_one_that_was_asked_for(ranks, expected):
    accelerator = SimpleNamespace(process_index=0, device="cpu", gather=lambda own: torch.tensor(ranks))
    with pytest.raises(ValueError, match=rf"asked for {expected} process\(es\), but .* ranks \{ranks!r}"):
        prove_world(accelerator, expected)


def test_a_whole_world_in_any_order():
    assert (
        prove_world(SimpleNamespace(process_index=0, device="cpu", gather=lambda own: torch.tensor([1, 0])), 2) is None
    )


@pytest.mark.parametrize("before", [False, True])
def test_tf32_is_as_it_was_after_a_run(before):
    backend = torch.backends.cuda.matmul
    was = backend.allow_tf32
    try:
        backend.allow_tf32 = before
        with pytest.raises(KeyError), tf32(True):
            assert backend.allow_tf32 is True
            raise KeyError
        assert backend.allow_tf32 is before
        with tf32(False):
            assert backend.allow_tf32 is before
    finally:
        backend.allow_tf32 = was


def test_what_looks_at_a_run_disturbs_nothing():
    model = torch.nn.Linear(1, 1)
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    with undisturbed(model, torch.device("cpu")):
        model.eval()
        torch.rand(7)
    assert model.training and torch.equal(torch.rand(1), expected)


@pytest.fixture
def nobody(monkeypatch):
    """No launcher set anything."""
    for name in (*LAUNCHER_SETS, *MPI_SETS, "TORCHELASTIC_RUN_ID"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(("size", "rank"), [("WORLD_SIZE", "RANK"), ("PMI_SIZE", "PMI_RANK")])
def test_what_a_launcher_would_set_is_set_aside_and_comes_back(size, rank, nobody, monkeypatch, capsys):
    with no_launcher():
        pass
    assert capsys.readouterr().out == ""
    monkeypatch.setenv(rank, "3")
    monkeypatch.setenv(size, "4")
    before = dict(os.environ)
    with no_launcher():
        assert not {rank, size} & os.environ.keys()
    assert dict(os.environ) == before
    said = capsys.readouterr().out
    assert f"{rank} '3'" in said and f"{size} '4'" in said and "in the environment: set aside" in said


def test_a_shell_of_srun_is_no_launcher(nobody, monkeypatch, capsys):
    monkeypatch.setenv("PMI_SIZE", "1")
    with no_launcher():
        assert not launched()
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("size", ["WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE"])
def test_in_a_notebook_variables_alone_are_no_launcher(size, nobody, monkeypatch):
    monkeypatch.delitem(sys.modules, "ipykernel", raising=False)
    assert not launched() and world_size() == 1
    monkeypatch.setenv(size, "4")
    assert launched() and world_size() == 4
    monkeypatch.setitem(sys.modules, "ipykernel", sys)
    assert not launched()
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    assert launched()
