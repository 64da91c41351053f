"""Several machines: process groups that find each other by address and port make the very run of one machine."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from running import CPU_ONLY, ENVIRONMENT, PATIENCE, Program, alive, children, fingerprint, program, updates, wait_for
from test_launch import config

from lora_kit.command_line.flags import parse_launch_args, to_argv
from lora_kit.command_line.texts import launch_lines
from lora_kit.launch import LaunchError, launch
from lora_kit.output.lora_file import LORA
from lora_kit.output.metrics import METRICS
from lora_kit.system.meeting import meet
from lora_kit.system.world import free_port


def machine(rank, folder, port, num_processes, address="127.0.0.1", **changes):
    own = ["--num_machines", 2, "--machine_rank", rank, "--num_processes", num_processes]
    own += ["--main_process_ip", address, "--main_process_port", port]
    return [*own, *to_argv(config(folder, **changes))]


def together(machines):
    """The launchers of several machines to their end, at the same time."""
    return [running.end() for running in [Program("lora_kit.launch", *argv) for argv in machines]]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """One machine with two processes, by this kit's launcher."""
    folder = tmp_path_factory.mktemp("alone") / "run"
    done = program("lora_kit.launch", "--num_processes", 2, *to_argv(config(folder)))
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.splitlines()[0] == "the same with"
    return folder, done.stdout


@CPU_ONLY
@pytest.mark.slow
def test_two_machines_of_one_process_train_as_one_machine_of_two(alone, tmp_path):
    folder, port = tmp_path / "run", free_port()
    for done in together([machine(rank, folder, port, 1) for rank in (0, 1)]):
        assert done.returncode == 0, done.stderr[-3000:]
        assert "2 process(es) trained on" in done.stdout
    assert fingerprint(folder / LORA) == fingerprint(alone[0] / LORA)
    assert updates(folder) == updates(alone[0])


@CPU_ONLY
@pytest.mark.slow
def test_two_machines_of_two_processes_are_a_world_of_four(tmp_path):
    folders, port = [tmp_path / "two machines", tmp_path / "one machine"], free_port()
    for done in together([machine(rank, folders[0], port, 2, max_train_steps=2) for rank in (0, 1)]):
        assert done.returncode == 0, done.stderr[-3000:]
    done = program("lora_kit.launch", "--num_processes", 4, *to_argv(config(folders[1], max_train_steps=2)))
    assert done.returncode == 0, done.stderr[-3000:]
    assert [json.loads((one / METRICS).read_text().splitlines()[0])["num_processes"] for one in folders] == [4, 4]
    assert fingerprint(folders[0] / LORA) == fingerprint(folders[1] / LORA)


@CPU_ONLY
@pytest.mark.slow
def test_the_lines_that_are_printed_do_the_same(alone, tmp_path):
    folder, said = alone
    lines = [line.strip() for line in said.splitlines()[1:3]]
    assert [line.split()[0] for line in lines] == ["accelerate", "torchrun"]
    binaries = Path(sys.executable).parent
    for line in lines:
        other = tmp_path / line.split()[0]
        command = line.replace(str(folder), str(other))
        done = subprocess.run(
            command, shell=True, capture_output=True, text=True,
            env=os.environ | ENVIRONMENT | {"PATH": f"{binaries}:{os.environ['PATH']}"}, cwd=Path(__file__).parents[1],
        )  # fmt: skip
        assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr[-3000:]
        assert re.findall(r"^(\d+) updates in .* on (\d) process\(es\)", done.stdout, re.M) == [("5", "2")]  # said once
        assert fingerprint(other / LORA) == fingerprint(folder / LORA)
        assert updates(other) == updates(folder)


@CPU_ONLY
@pytest.mark.slow
def test_an_interrupt_ends_every_process(tmp_path):
    folder = tmp_path / "run"
    argv = ["--num_processes", 2, *to_argv(config(folder, max_train_steps=10_000))]
    running = Program("lora_kit.launch", *argv)
    wait_for(lambda: (folder / METRICS).exists() and updates(folder), running)
    forked = children(running.pid)
    os.killpg(running.pid, signal.SIGINT)
    done = running.end()
    assert done.returncode == 130, done.stderr[-2000:]
    assert len(forked) == 2 and not any(map(alive, forked))


# the machines meet


@CPU_ONLY
@pytest.mark.parametrize(
    ("rank", "error"),
    [
        (0, "machine 1 of 2 hasn't connected to 127.0.0.1:{port} after 2 s: is launch running with machine_rank 1, "),
        (1, "machine 0 of 2 isn't at 127.0.0.1:{port} after 2 s: nothing is listening there (Connection refused): is launch running"),
    ],
)  # fmt: skip
def test_a_machine_that_never_comes_is_named(rank, error, tmp_path):
    port = free_port()
    done = program("lora_kit.launch", "--rdzv_timeout", 2, *machine(rank, tmp_path / "run", port, 1))
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert f"lora_kit.launch: {error.format(port=port)}" in done.stderr
    assert re.search(rf"machine {1 - rank} of 2 .*{port} yet; \d of 2 s$", done.stdout, re.M)
    assert not (tmp_path / "run").exists()


@CPU_ONLY
@pytest.mark.slow
@pytest.mark.parametrize("early", [0, pytest.param(1, marks=pytest.mark.long)])
def test_a_machine_may_come_late(early, alone, tmp_path):
    folder, port, ranks = tmp_path / "run", free_port(), (early, 1 - early)
    lines = [["--rdzv_timeout", 20, *machine(rank, folder, port, 1)] for rank in ranks]
    first = Program("lora_kit.launch", *lines[0])
    wait_for(lambda: " yet; " in first.said(), first)
    for done in (program("lora_kit.launch", *lines[1]), first.end()):
        assert done.returncode == 0, done.stderr[-3000:]
    assert fingerprint(folder / LORA) == fingerprint(alone[0] / LORA)


@CPU_ONLY
@pytest.mark.parametrize("rank", [0, 1])
def test_an_interrupt_ends_the_wait_at_once(rank, tmp_path):
    running = Program(
        "lora_kit.launch", "--rdzv_timeout", 4 * PATIENCE, *machine(rank, tmp_path / "run", 1 + free_port(), 2)
    )
    wait_for(lambda: " yet; " in running.said(), running)
    os.killpg(running.pid, signal.SIGINT)
    done = running.end()
    assert (done.returncode, done.stderr) == (
        130, "lora_kit.launch: interrupted while waiting for the other machines; nothing was started\n",
    )  # fmt: skip


@CPU_ONLY
def test_a_machine_of_another_run_is_sent_away(tmp_path):
    folder, port = tmp_path / "run", free_port()
    first = Program("lora_kit.launch", "--rdzv_timeout", 20, *machine(0, folder, port, 1))
    for argv, words in (
        (machine(1, folder, port, 2), "num_processes is 2 there and 1 here"),
        (["--num_machines", 3, *machine(2, folder, port, 1)[2:]], "machine_rank 2 is not one of those still expected, [1]; num_machines"),
    ):  # fmt: skip
        done = program("lora_kit.launch", *argv)
        assert done.returncode == 1
        assert f"lora_kit.launch: the first machine sends this one away: {words}" in done.stderr
        assert f"warning: a machine was sent away: {words}" in first.said()
    with socket.create_connection(("127.0.0.1", port)) as stranger:  # one that looks for open ports
        stranger.sendall(b"GET / HTTP/1.1\r\n\r\n")
        assert stranger.recv(1) == b""
    os.killpg(first.pid, signal.SIGINT)
    assert first.end().returncode == 130


def test_three_machines_know_of_each_other(capsys):
    """The second hears from the first that the third hasn't come, and that it is not going to."""
    port, seen = free_port(), {}

    def come(rank, limit):
        try:
            with meet("localhost", port, 3, rank, 2, limit) as others:
                others.tell(forked=True) if rank == 0 else others.hear("forked", 1000)
                seen[rank] = "met"
        except LaunchError as error:
            seen[rank] = str(error)

    def all_of(limits):
        threads = [threading.Thread(target=come, args=one) for one in limits.items()]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return seen

    assert all_of({0: 2, 1: 1000})[1].startswith(
        f"machine 2 of 3 hasn't connected to localhost:{port} after 2 s: is launch running"
    )
    assert "machine 2 of 3 hasn't connected" in capsys.readouterr().out
    assert all_of({0: 1000, 1: 1000, 2: 1000}) == {0: "met", 1: "met", 2: "met"}


# two network namespaces: two machines as far as the network goes


def ip(*words):
    return subprocess.run(["ip", *words], capture_output=True, text=True)


@pytest.fixture
def namespaces():
    """Two network namespaces, joined by a cable: 10.90.0.1 and 10.90.0.2."""
    if shutil.which("ip") is None or os.geteuid() != 0 or ip("netns", "add", "lora-kit-0").returncode:
        pytest.skip("this machine allows no network namespaces")
    try:
        steps = [("netns", "add", "lora-kit-1"), ("link", "add", "lk0", "type", "veth", "peer", "name", "lk1")]
        for rank in (0, 1):
            name = f"lora-kit-{rank}"
            steps += [("link", "set", f"lk{rank}", "netns", name)]
            inside = ("netns", "exec", name, "ip")
            steps += [(*inside, "addr", "add", f"10.90.0.{rank + 1}/24", "dev", f"lk{rank}")]
            steps += [(*inside, "link", "set", f"lk{rank}", "up"), (*inside, "link", "set", "lo", "up")]
        for step in steps:
            done = ip(*step)
            if done.returncode:
                pytest.skip(f"this machine allows no network namespaces: {done.stderr.strip()}")
        yield ["lora-kit-0", "lora-kit-1"]
    finally:
        for rank in (0, 1):
            ip("netns", "del", f"lora-kit-{rank}")


@CPU_ONLY
@pytest.mark.slow
def test_two_network_namespaces_train_as_one_machine(namespaces, alone, tmp_path):
    folder, machines = tmp_path / "run", []
    for rank, name in enumerate(namespaces):
        command = ["ip", "netns", "exec", name, sys.executable, "-m", "lora_kit.launch"]
        command += map(str, machine(rank, folder, 29500, 1, "10.90.0.1"))
        own = ENVIRONMENT | {"GLOO_SOCKET_IFNAME": f"lk{rank}"}
        machines.append(subprocess.Popen(command, env=os.environ | own, stderr=subprocess.PIPE, text=True))
    try:
        said = [one.communicate(timeout=PATIENCE)[1] for one in machines]
    finally:
        for one in machines:
            one.kill()
    assert [one.returncode for one in machines] == [0, 0], "".join(said)[-3000:]
    assert fingerprint(folder / LORA) == fingerprint(alone[0] / LORA)


# without any process


def test_lines_of_several_machines(tmp_path):
    lines = launch_lines(config(tmp_path), 4, 2, 1, "10.0.0.1", 29501)
    assert lines["accelerate"].startswith(
        "accelerate launch --multi_gpu --num_processes 8 --num_machines 2 --machine_rank 1 --main_process_ip 10.0.0.1 "
        "--main_process_port 29501 -m lora_kit.training --style outlined"
    )
    assert lines["torchrun"].startswith(
        "torchrun --nproc_per_node 4 --nnodes 2 --node_rank 1 --master_addr 10.0.0.1 --master_port 29501 -m lora_kit.training"
    )
    assert launch_lines(config(tmp_path), 1)["accelerate"].startswith("accelerate launch --num_processes 1 -m ")


@pytest.mark.parametrize(
    "options, words",
    [
        (dict(num_machines=0), "num_machines 0 is not a whole number of at least 1"),
        (dict(num_machines=2, machine_rank=2, port=29500), "machine_rank 2 must be less than num_machines 2"),
        (dict(machine_rank=-1), "machine_rank -1 is not a whole number of at least 0"),
        (dict(num_machines=2), "port None: several machines need one"),
        (dict(port=0), "port 0 is not a port from 1 to 65535; 0 would make the launcher hang"),
        (dict(port=70000), "port 70000 is not a port"),
        (dict(port="29500"), "port '29500' is not a port"),
    ],
)
def test_a_world_that_can_t_be_is_refused(options, words, tmp_path):
    with pytest.raises(LaunchError) as error:
        launch(config(tmp_path / "run"), 2, **options)
    assert words in str(error.value)
    assert not (tmp_path / "run").exists()


def test_the_launcher_s_own_flags_and_the_run_s(tmp_path):
    options, made = parse_launch_args(["--num_processes", "3", *to_argv(config(tmp_path))])
    assert (options.num_processes, options.num_machines, made) == (3, 1, config(tmp_path))
    with pytest.raises(SystemExit):
        parse_launch_args(["--num_process", "3", *to_argv(config(tmp_path))])


def test_print_only_starts_nothing(tmp_path):
    done = program("lora_kit.launch", "--print_only", *to_argv(config(tmp_path / "run")))
    assert done.returncode == 0 and done.stdout.count("-m lora_kit.training") == 2
    assert not (tmp_path / "run").exists()
