"""train/main.py with a disk that tests command: TEST_DISK says what becomes of what the writer of checkpoints flushes.

block:STEP:FIFO   the checkpoint of that step waits until somebody reads from the FIFO
full:STEP         there is no room for the checkpoint of that step
slow:SECONDS      each file takes up to so long
"""

import errno
import os
import random
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

from train.checkpoint import checkpoint
from train.main import main

KIND, _, REST = os.environ["TEST_DISK"].partition(":")
flush = checkpoint.fsync_path


def commanded(path: Path) -> None:
    step = REST.partition(":")[0]
    mine = path.parent.name.startswith(f".part-{int(step):06d}-") if step.isdigit() else False
    if KIND == "full" and mine:
        raise OSError(errno.ENOSPC, "No space left on device")
    if KIND == "block" and mine:
        Path(REST.partition(":")[2]).write_text("")
    if KIND == "slow" and path.parent.name.startswith(".part-"):
        time.sleep(random.random() * float(REST))
    flush(path)


checkpoint.fsync_path = commanded
sys.exit(main())
