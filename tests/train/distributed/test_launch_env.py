"""Who a process is: the variables of torchrun, srun and mpirun."""

from __future__ import annotations

import os
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rounding import LOSS
from trainer_harness import Forked, ended, losses, sets

from train.config import TrainError
from train.distributed.launch_env import ProcessInfo, cores, first_host, process_info
from train.distributed.runtime import ALLOCATOR_SETTINGS, join_processes
from train.main import run

TORCHRUN = {
    "RANK": "3",
    "WORLD_SIZE": "4",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "2",
    "MASTER_ADDR": "a",
    "MASTER_PORT": "1",
}
SRUN = {
    "SLURM_JOB_ID": "71234",
    "SLURM_STEP_ID": "2",
    "SLURM_NTASKS": "8",
    "SLURM_STEP_NUM_TASKS": "8",
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
    "SLURM_STEP_NODELIST": "gpu[007-008,12]",
    "SLURM_LAUNCH_NODE_IPADDR": "10.0.0.1",
}
MPIRUN = {
    "OMPI_COMM_WORLD_RANK": "1",
    "OMPI_COMM_WORLD_SIZE": "2",
    "OMPI_COMM_WORLD_LOCAL_RANK": "0",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "1",
    "MASTER_ADDR": "head",
    "MASTER_PORT": "4000",
}


def test_each_launcher_is_understood():
    assert process_info({"HOME": "/"}) is None
    assert process_info(TORCHRUN) == ProcessInfo(3, 4, 1, max(1, cores() // 2), "env://")
    assert process_info({"RANK": "0", "WORLD_SIZE": "1"}) == ProcessInfo(0, 1, 0, cores(), "env://")
    port = 12_000 + (71234 + 2) % 20_000
    assert process_info(SRUN) == ProcessInfo(5, 8, 1, 1, f"tcp://gpu007:{port}")
    assert process_info({**SRUN, "SLURM_CPUS_PER_TASK": "6"}).threads == 6
    assert process_info({**SRUN, "MASTER_ADDR": "fd00::1", "MASTER_PORT": "99"}).init_method == "tcp://[fd00::1]:99"
    assert process_info(MPIRUN) == ProcessInfo(1, 2, 0, cores(), "tcp://head:4000")
    # whoever started the process itself speaks: mpirun and torchrun run inside steps of srun
    assert process_info({**SRUN, **MPIRUN}) == process_info(MPIRUN)
    assert process_info({**SRUN, **MPIRUN, **TORCHRUN}) == process_info(TORCHRUN)
    # a script that sets WORLD_SIZE for its own use, and srun
    assert process_info({**SRUN, "WORLD_SIZE": "8"}) == process_info(SRUN)


@pytest.mark.parametrize(
    "change",
    [
        {"SLURM_STEP_ID": ""},  # sbatch's shell
        {"SLURM_STEP_ID": str(0xFFFFFFFB)},  # and as some versions have it
        {"SLURM_STEP_ID": str(0xFFFFFFFA), "SLURM_STEP_NUM_TASKS": "1"},  # salloc's interactive step
        {"SLURM_STEP_NUM_TASKS": "1"},  # srun -n1
    ],
)
def test_shells_inside_an_allocation_are_one_process(change):
    assert process_info({**SRUN, **change}) is None


@pytest.mark.parametrize("whole", [TORCHRUN, SRUN, MPIRUN])
def test_half_set_variables_are_one_clear_error(whole):
    spare = {"LOCAL_WORLD_SIZE", "SLURM_NTASKS", "SLURM_STEP_NUM_TASKS", "SLURM_LAUNCH_NODE_IPADDR"}
    switches = {"RANK", "SLURM_STEP_ID", "OMPI_COMM_WORLD_SIZE"}  # without them another launcher's are looked for
    for name in whole.keys() - spare - switches:
        rest = {k: v for k, v in whole.items() if k != name}
        with pytest.raises(TrainError, match=rf"^{name} is not set.*\nstart them with .*unset the others") as error:
            process_info(rest)
        assert str(error.value).count("\n") == 1
    for name in [n for n in whole if n.endswith(("RANK", "ID", "PORT", "SIZE", "TASKS"))]:
        with pytest.raises(TrainError, match=f"^{name}='x': must be a number"):
            process_info({**whole, name: "x"})
    with pytest.raises(TrainError, match=r"of [248] processes: it must be below"):
        process_info(
            {**whole, "RANK" if "RANK" in whole else next(n for n in whole if n[-4:] in ("RANK", "OCID")): "8"}
        )
    with pytest.raises(TrainError, match=r"WORLD_SIZE=2 is set, and no RANK"):
        process_info({"WORLD_SIZE": "2", "MASTER_ADDR": "a"})


NAME = st.from_regex(r"[a-z][a-z0-9-]{0,5}[a-z]", fullmatch=True)


@st.composite
def part(draw):
    """A part of a node's name as SLURM writes it, and the first of what it stands for."""
    if draw(st.booleans()):
        text = draw(NAME)
        return text, text
    width = draw(st.integers(1, 4))
    numbers = sorted(draw(st.lists(st.integers(0, 10**width - 1), min_size=1, max_size=5, unique=True)))
    runs = [f"{n:0{width}d}" + (f"-{n + 1:0{width}d}" if draw(st.booleans()) else "") for n in numbers]
    return f"[{','.join(runs)}]", f"{numbers[0]:0{width}d}"


@pytest.mark.slow
@settings(max_examples=60)
@given(st.lists(st.tuples(NAME, st.lists(part(), max_size=3)), min_size=1, max_size=4))
def test_the_first_of_a_list_of_nodes(hosts):
    text = ",".join(name + "".join(compressed for compressed, _ in parts) for name, parts in hosts)
    name, parts = hosts[0]
    assert first_host(text) == name + "".join(first for _, first in parts)


def test_what_is_no_list_of_nodes():
    assert first_host("node[003-010,12],other7") == "node003" and first_host("r[1-2]n[01-04]") == "r1n01"
    assert first_host("a.b-c.example.org") == "a.b-c.example.org"
    for wrong in ("", ",", "[", "node[", "node[a-b]", "a b", "node]1"):
        with pytest.raises(TrainError, match="MASTER_ADDR"):
            first_host(wrong)


@pytest.mark.slow
def test_two_tasks_of_srun_train_together(pretrain, launch, tmp_path):
    step = {**SRUN, "SLURM_NTASKS": "2", "SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_NODELIST": "127.0.0.1"}
    step["SLURM_JOB_ID"] = str(random.randrange(10**6))  # the port is made of it
    folder = tmp_path / "r"
    each = [{**step, "SLURM_PROCID": r, "SLURM_LOCALID": r} for r in "01"]
    said = ended([launch(pretrain, sets(out=str(folder)), variables=variables, how=Forked) for variables in each])
    assert "2 processes on cpu" in said[0] and said[1] == ""
    run(pretrain, sets(out=str(tmp_path / "alone")))
    mine, theirs = losses(folder), losses(tmp_path / "alone")
    assert mine.keys() == theirs.keys() and max(abs(mine[s] - theirs[s]) for s in mine) < LOSS


@pytest.mark.parametrize("own", [None, *sorted(ALLOCATOR_SETTINGS)])
def test_segments_of_a_gpu_grow_unless_a_user_says_otherwise(own, monkeypatch):
    for name in ALLOCATOR_SETTINGS:
        monkeypatch.setenv(name, "")  # so that it is put back
        monkeypatch.delenv(name)
    if own:
        monkeypatch.setenv(own, "backend:native")
    with join_processes():
        found = {name: os.environ[name] for name in ALLOCATOR_SETTINGS & os.environ.keys()}
    assert found == ({own: "backend:native"} if own else {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"})
