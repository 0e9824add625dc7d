"""What the store's tests run in other processes, which get killed or run out of disk."""

import os
import resource

import numpy as np

from encoders.checkpoints.store import CheckpointStore
from encoders.errors import StorageError


def state_at(step):
    """About 3 MB that only this step has."""
    rng = np.random.default_rng(step)
    return {
        "params": {f"kernel_{i}": rng.standard_normal((256, 512), np.float32) for i in range(5)},
        "step": np.int64(step),
    }


def save_for_ever(directory, progress):
    """Goes on from the newest checkpoint, noting in a file what has been finished."""
    log = os.open(progress, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    store = CheckpointStore(directory, keep_last=2)
    step = store.latest() or 0
    os.write(log, f"{step}\n".encode())
    while True:
        step += 1
        store.save(step, state_at(step), {"step": step})
        os.write(log, f"{step - 1}\n".encode())  # save waits for the one before


def fill_the_disk(directory, messages):
    """Saves one step, then another with files limited to 200 kB, then, without, a third."""
    with CheckpointStore(directory, keep_last=3) as store:
        store.save(1, state_at(1), {"step": 1}, wait=True)
        unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, unlimited[1]))
        store.save(2, state_at(2), {})
        try:
            store.wait()
        except StorageError as error:
            messages.put(str(error))
        resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
        messages.put(store.steps())
        messages.put(sorted(os.listdir(directory)))
        store.save(3, state_at(3), {"step": 3}, wait=True)
