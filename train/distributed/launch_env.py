"""Who this process is among the others, from what its launcher says in the environment. The first that applies:

    torchrun, Ray Train, by hand   RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR, MASTER_PORT
    mpirun of Open MPI             OMPI_COMM_WORLD_RANK, ...; MASTER_ADDR and MASTER_PORT passed on with -x
    srun                           SLURM_PROCID, ...; MASTER_ADDR and MASTER_PORT where they are set, else the first
                                   node of the step, and a port made of the job's and the step's number

Shells of salloc and sbatch have SLURM's variables too, but are no step of several tasks: there it is one process.
SLURM_LAUNCH_NODE_IPADDR is not used: it is where srun was typed, often a login node, and rank 0 is not there.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

from train.config import TrainError

RESERVED_STEPS = 0xFFFFFFF0  # slurm.h: numbers from here on are batch scripts, interactive shells and the like
FIRST_PORT, PORTS = 12_000, 20_000  # below 32768, where systems begin to hand out ports of their own
LOCAL_RANK_VARIABLES = ("LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_RANK", "SLURM_LOCALID")
ENV_INIT = "env://"  # torch reads the variables itself


@dataclass(frozen=True)
class ProcessInfo:
    """This process among `world_size`: its rank, its rank on its machine, and where the processes find each other."""

    rank: int
    world_size: int
    local_rank: int
    threads: int  # for computing on the CPU: this process's share of the machine
    init_method: str  # of torch.distributed.init_process_group


def process_info(variables: Mapping[str, str]) -> ProcessInfo | None:
    """Read who this process is; None when no launcher started it. Raises TrainError for variables that are half set."""
    if "RANK" in variables:
        return _torchrun(variables)
    if _number(variables, "OMPI_COMM_WORLD_SIZE", 1) > 1:
        return _open_mpi(variables)
    step = _number(variables, "SLURM_STEP_ID", RESERVED_STEPS)
    tasks = _number(variables, "SLURM_STEP_NUM_TASKS", _number(variables, "SLURM_NTASKS", 1))
    if step < RESERVED_STEPS and tasks > 1:
        return _slurm(variables, step, tasks)
    if _number(variables, "WORLD_SIZE", 1) > 1:
        raise TrainError(
            f"WORLD_SIZE={variables['WORLD_SIZE']} is set, and no RANK\n"
            "start this with torchrun, srun or mpirun, or unset WORLD_SIZE to train with one process"
        )
    return None


def _torchrun(variables: Mapping[str, str]) -> ProcessInfo:
    rank = _number(variables, "RANK")
    world_size = _number(variables, "WORLD_SIZE")
    local_rank = _number(variables, "LOCAL_RANK", None if world_size > 1 else 0)
    if world_size > 1:
        _text(variables, "MASTER_ADDR")
        _number(variables, "MASTER_PORT")
    threads = _threads(_number(variables, "LOCAL_WORLD_SIZE", world_size))
    return _checked("RANK", ProcessInfo(rank, world_size, local_rank, threads, ENV_INIT))


def _open_mpi(variables: Mapping[str, str]) -> ProcessInfo:
    names = ("RANK", "SIZE", "LOCAL_RANK", "LOCAL_SIZE")
    rank, world_size, local_rank, local_size = (_number(variables, f"OMPI_COMM_WORLD_{name}") for name in names)
    init_method = _tcp_address(_text(variables, "MASTER_ADDR"), _number(variables, "MASTER_PORT"))
    info = ProcessInfo(rank, world_size, local_rank, _threads(local_size), init_method)
    return _checked("OMPI_COMM_WORLD_RANK", info)


def _slurm(variables: Mapping[str, str], step: int, tasks: int) -> ProcessInfo:
    rank, local_rank = _number(variables, "SLURM_PROCID"), _number(variables, "SLURM_LOCALID")
    port = FIRST_PORT + (_number(variables, "SLURM_JOB_ID") + step) % PORTS
    host = variables.get("MASTER_ADDR") or first_host(_text(variables, "SLURM_STEP_NODELIST"))
    init_method = _tcp_address(host, _number(variables, "MASTER_PORT", port))
    threads = _number(variables, "SLURM_CPUS_PER_TASK", 1)  # SLURM's own default
    return _checked("SLURM_PROCID", ProcessInfo(rank, tasks, local_rank, threads, init_method))


def first_host(nodes: str) -> str:
    """The first of SLURM's list of nodes: "node[003-010,12],other7" -> node003, "r[1-2]n[01-04]" -> r1n01.

    Raises TrainError when that is no such list.
    """
    first = re.match(r"(?:[^\[\],]|\[[^\[\]]*\])+(?=,|$)", nodes)
    host = re.sub(r"\[(\d+)[^\[\]]*\]", r"\1", first[0]) if first else ""
    if not re.fullmatch(r"[\w.-]+", host):
        raise TrainError(f"SLURM_STEP_NODELIST={nodes!r}: not a list of nodes; set MASTER_ADDR to the first one's name")
    return host


def cores() -> int:
    """Processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _threads(processes: int) -> int:
    return max(1, cores() // max(1, processes))


def _number(variables: Mapping[str, str], name: str, default: int | None = None) -> int:
    text = variables.get(name, "") if default is not None else _text(variables, name)
    if not text and default is not None:
        return default
    if not text.isdecimal():
        raise TrainError(f"{name}={text!r}: must be a number; the launcher of several processes sets it")
    return int(text)


def _text(variables: Mapping[str, str], name: str) -> str:
    if not variables.get(name):
        launcher = {"O": "mpirun", "S": "srun"}.get(name[0], "torchrun or srun; mpirun wants -x MASTER_ADDR")
        raise TrainError(
            f"{name} is not set, and others that say this is one of several processes are\n"
            f"start them with {launcher}, or unset the others to train with one process"
        )
    return variables[name]


def _tcp_address(host: str, port: int) -> str:
    return f"tcp://[{host}]:{port}" if ":" in host else f"tcp://{host}:{port}"


def _checked(name: str, info: ProcessInfo) -> ProcessInfo:
    if info.rank >= info.world_size:
        raise TrainError(f"{name}={info.rank}, of {info.world_size} processes: it must be below their number")
    return info
