import pytest

from lora_kit.command_line.launchers import Launch, option_of, read_launcher


@pytest.mark.parametrize(
    ("line", "processes"),
    [
        ("", 1),
        ("python3 -u", 1),
        ("nohup nice -n 10 python", 1),  # nice's -n
        ("conda run -n 3 accelerate launch --num_processes 2", 2),
        ("python -m accelerate.commands.launch --num_processes=4", 4),
        (r".\venv\Scripts\accelerate.exe launch --num-processes 4", 4),
        ("accelerate launch --cpu", 1),
        ("accelerate launch --cpu --num_processes 4 --mpirun_hostfile hosts", 4),
        ("accelerate launch --gpu_ids 0,1 --num_processes 4", 4),
        ("accelerate launch --multi_gpu --num_processes 4 --num_machines 2", 4),
        ("torchrun --nproc 4", 4),
        ("torchrun --nproc-per-node 4 --nnode=2", 8),
        ("/opt/bin/torchrun", 1),
        ("python -m torch.distributed.launch --nproc_per_node=4", 4),
        ("deepspeed --num_gpus=4", 4),
        ("deepspeed --num_gpus 4 --num_nodes 2", 8),
        ("deepspeed --include localhost:0,1,3", 3),
        ("deepspeed --include=a:0,1@b:0", 3),
        ("mpirun -np 4 python", 4),
        ("mpirun -n 4 nice -n 10 python", 4),
        ("mpiexec -n 4 python", 4),
        ("mpiexec.exe -n4 python", 4),
        ("horovodrun -np 4 python", 4),
        ("srun -n 4 python", 4),
        ("srun -n4 python", 4),
        ("srun --ntasks=4 --ntasks-per-node=2 python", 4),
        ("srun --ntasks-per-node=4 -N 2 python", 8),
        ("srun -n 2 accelerate launch --num_processes 8", 8),  # srun starts two launchers of four each
        ("mpirun -np 2 torchrun --nnodes 2 --nproc_per_node 4", 8),
        ("own_launcher --nproc_per_node 4 --nnodes 2", 8),
    ],
)
def test_processes(line, processes):
    assert read_launcher(line.split()) == Launch(processes)


@pytest.mark.parametrize(
    ("line", "gpus", "processes", "said"),
    [
        (
            "accelerate launch --multi_gpu",
            None,
            2,
            "--multi_gpu without --num_processes starts one process for each GPU",
        ),
        ("accelerate launch --multi-gpu", "0,1,5", 3, "of the 3 in CUDA_VISIBLE_DEVICES: read as 3"),
        ("accelerate launch --use_fsdp", None, 2, "--use_fsdp without --num_processes"),
        ("accelerate launch --use_megatron_lm", None, 2, "--use_megatron_lm without --num_processes"),
        (
            "accelerate launch --tpu",
            None,
            2,
            "--tpu without --num_processes starts one process for each core, and how many",
        ),
        (
            "accelerate launch",
            None,
            1,
            "accelerate launch without --num_processes starts one process for each GPU: read as 1",
        ),
        ("accelerate launch --gpu_ids all", None, 1, "accelerate launch without --num_processes"),
        ("accelerate launch --gpu_ids=0,1,3", "0", 3, "one process for each GPU, of the 3 in --gpu_ids: read as 3"),
        (
            "accelerate launch --cpu --num_processes 4",
            None,
            1,
            "--cpu starts one process, whatever --num_processes 4 says",
        ),
        ("accelerate launch", "0,1", 2, "accelerate launch without --num_processes starts one process for each GPU"),
        ("env CUDA_VISIBLE_DEVICES=2,3 accelerate launch", None, 2, "of the 2 in CUDA_VISIBLE_DEVICES"),
        ("accelerate launch --config_file=four.yaml", "0,1", 1, "--config_file 'four.yaml' is not read"),
        ("accelerate launch --config_file f --num_processes 4", None, 4, "--config_file 'f' is not read"),
        ("torchrun --nproc_per_node=gpu --nnodes 2", None, 4, "--nproc_per_node gpu starts one process for each GPU"),
        ("deepspeed", "", 2, "deepspeed without --num_gpus starts one process for each GPU"),
        ("mpirun python", None, 2, "mpirun without -np takes the number of processes from the machine: read as 2"),
        ("srun python", None, 1, "srun without --ntasks takes the number of processes from its job: read as 1"),
    ],
)
def test_a_number_that_is_left_out_is_said(line, gpus, processes, said):
    launch = read_launcher(line.split(), gpus)
    assert launch.num_processes == processes
    assert [said in sentence for sentence in launch.sentences] == [True]


@pytest.mark.parametrize("gpus", ["", "0", "GPU-0a1b"])
def test_one_gpu_needs_no_sentence(gpus):
    assert read_launcher(["accelerate", "launch"], gpus) == Launch(1)
    assert read_launcher(["accelerate", "launch", "--gpu_ids", gpus or "0"]) == Launch(1)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("accelerate launch --num_process 4", "unknown '--num_process', did you mean --num_processes?"),  # it refuses that too
        ("mpirun -np many", "-np 'many' is not a whole number of at least 1"),
        ("torchrun --nproc_per_node 0", "--nproc_per_node 0 is not a whole number"),
        ("deepspeed --num_gpus", "--num_gpus '' is not a whole number"),
        ("torchrun --nnodes 1:4", "--nnodes '1:4' is not a whole number"),
    ],
)  # fmt: skip
def test_a_number_that_is_none_is_refused(line, said):
    with pytest.raises(ValueError) as caught:
        read_launcher(line.split())
    assert said in str(caught.value)


def test_the_value_of_an_option():
    assert option_of([], "--a") is None
    assert option_of("--a 1 --a-b=2 -n3 --end".split(), "--a_b") == "2"
    assert option_of("-n3 --end".split(), "--number", "-n") == "3"
    assert option_of(["--end"], "--end") == ""
    assert option_of(["--nproc", "4"], "--nproc_per_node") is None
