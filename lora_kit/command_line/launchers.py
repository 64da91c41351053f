"""How many processes the words before a program start: those of accelerate, torchrun, deepspeed, mpirun or srun."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PureWindowsPath

from lora_kit.command_line.reading import UNSAID_PROCESSES
from lora_kit.system.checks import shown, whole_number

ACCELERATE = ("accelerate", "accelerate-launch", "accelerate.commands.launch")
TORCHRUN = ("torchrun", "torch.distributed.run", "torch.distributed.launch")
MPI = ("mpirun", "mpiexec", "orterun", "horovodrun")
# flags of accelerate that ask for more than one process
SEVERAL = ("--multi_gpu", "--use_deepspeed", "--use_fsdp", "--use_megatron_lm", "--tpu")


@dataclass(frozen=True)
class Launch:
    """What a launcher starts: processes over all machines, the precision that it sets, and what is to be known of it."""

    num_processes: int = 1
    mixed_precision: str | None = None
    sentences: tuple[str, ...] = ()


def read_launcher(words: Sequence[str], gpus: str | None = None) -> Launch:
    """The processes that the words before a program start.

    gpus: CUDA_VISIBLE_DEVICES. A launcher within another counts alone: srun starts it once for each machine.

    >>> read_launcher(["mpirun", "-np", "4", "python"]).num_processes
    4
    """
    for word in words:
        name, equals, value = word.partition("=")
        gpus = value if equals and name == "CUDA_VISIBLE_DEVICES" else gpus
    names = [PureWindowsPath(word).name.removesuffix(".exe") for word in words]
    for known in (ACCELERATE + TORCHRUN + ("deepspeed",), (*MPI, "srun")):
        index = next((index for index in reversed(range(len(words))) if names[index] in known), None)
        if index is not None:
            return _launch(names[index], words[index + 1 :], gpus)
    total = 1
    for option in ("--num_processes", "--nproc_per_node", "--nnodes"):
        total *= _count(words, option) or 1
    return Launch(total, option_of(words, "--mixed_precision"))


def _launch(name, words, gpus):
    if name in ACCELERATE:
        return _accelerate(words, gpus)
    if name in TORCHRUN:
        asked, sentences = option_of(words, "--nproc_per_node", shortest="--np"), ()
        if asked in ("gpu", "auto"):
            processes, sentence = _one_for_each_gpu(f"--nproc_per_node {asked}", gpus)
            sentences = (sentence,)
        else:
            processes = _count(words, "--nproc_per_node", shortest="--np") or 1
        return Launch(processes * (_count(words, "--nnodes", shortest="--nn") or 1), sentences=sentences)
    if name == "deepspeed":
        machines = _count(words, "--num_nodes") or 1
        processes, include = _count(words, "--num_gpus"), option_of(words, "--include", "-i")
        if processes is None and include:
            return Launch(sum(host.count(",") + 1 for host in include.split("@")))
        if processes is None:
            processes, sentence = _one_for_each_gpu("deepspeed without --num_gpus", gpus)
            return Launch(processes * machines, sentences=(sentence,))
        return Launch(processes * machines)
    if name == "srun":
        processes, each = _count(words, "--ntasks", "-n"), _count(words, "--ntasks_per_node")
        if processes is None and each is None:
            return Launch(sentences=("srun without --ntasks takes the number of processes from its job: read as 1",))
        return Launch(processes or each * (_count(words, "--nodes", "-N") or 1))
    processes = _count(words, "-np", "-n", "--np", "-c")
    if processes is None:
        sentence = f"{name} without -np takes the number of processes from the machine: read as {UNSAID_PROCESSES}"
        return Launch(UNSAID_PROCESSES, sentences=(sentence,))
    return Launch(processes)


def _accelerate(words, gpus):
    processes, sentences = _count(words, "--num_processes"), []
    cut_short = next((word for word in words if word.startswith(("--num_p", "--num-p"))), None)
    if processes is None and cut_short:
        raise ValueError(f"unknown {shown(cut_short)}, did you mean --num_processes?")
    several = next((flag for flag in SEVERAL if option_of(words, flag) is not None), None)
    config_file = option_of(words, "--config_file")
    if config_file is not None:
        sentences.append(
            f"--config_file {shown(config_file)} is not read: what it says of processes and precision is to be set here"
        )
    ids, alone = option_of(words, "--gpu_ids"), option_of(words, "--cpu") is not None
    gpus, listing = (gpus, "CUDA_VISIBLE_DEVICES") if ids in (None, "all") else (ids, "--gpu_ids")
    if processes is None and (several or (not config_file and not alone and _listed(gpus) > 1)):
        processes, sentence = _one_for_each_gpu(
            f"{several or 'accelerate launch'} without --num_processes", gpus, listing
        )
        sentences.append(sentence.replace("each GPU", "each core") if several == "--tpu" else sentence)
    elif processes is None and not config_file and not alone and gpus is None:
        sentences.append("accelerate launch without --num_processes starts one process for each GPU: read as 1")
    elif alone and (processes or 1) > 1 and option_of(words, "--mpirun_hostfile") is None:
        sentences.append(f"--cpu starts one process, whatever --num_processes {processes} says: read as 1")
        processes = 1
    return Launch(processes or 1, option_of(words, "--mixed_precision"), tuple(sentences))


def _listed(gpus):
    return sum(bool(gpu.strip()) for gpu in (gpus or "").split(","))


def _one_for_each_gpu(what, gpus, listing="CUDA_VISIBLE_DEVICES"):
    """(processes, the sentence on them) of a launch that leaves the number to the machine. listing: what lists the GPUs."""
    listed = _listed(gpus)
    known = f"of the {listed} in {listing}" if listed else "and how many there are isn't known here"
    processes = listed or UNSAID_PROCESSES
    return processes, f"{what} starts one process for each GPU, {known}: read as {processes}"


def option_of(words: Sequence[str], *names: str, shortest: str = "") -> str | None:
    """The value of a launcher's option, given as two words or as one ("--nnodes=2", "-n2"); None where it isn't there.

    names: what it is called. shortest: what argparse takes for it at least, where the launcher lets flags be cut short.
    """
    known = [name.replace("-", "_") for name in names]
    for word, following in zip(words, [*words, ""][1:], strict=True):
        flag, equals, value = word.partition("=")
        flag = flag.replace("-", "_")
        cut_short = shortest and flag.startswith(shortest.replace("-", "_")) and known[0].startswith(flag)
        if flag in known or cut_short:
            return value if equals else following
        if flag[:2] in known and flag[2:].isdecimal():
            return flag[2:]
    return None


def _count(words, *names, shortest=""):
    value = option_of(words, *names, shortest=shortest)
    if value is None:
        return None
    return whole_number(names[0], int(value) if value.isdecimal() and len(value) < 400 else value)
