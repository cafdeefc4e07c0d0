"""Read the media of a run before it starts: a broken clip must stop it in the first minute, not in the fifth hour."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from accelerate import PartialState
from tqdm import tqdm

from migr.clips.manifest import Clip
from migr.clips.media import probe
from migr.machine import cores
from migr.omni.inputs import OmniInputs


def read_all(inputs: OmniInputs, clips: Sequence[Clip]) -> None:
    """Decode every clip into the cache, each rank its share; without a cache, only see that every file opens.

    In threads: decoders and hashes let go of the interpreter. Nothing decoded is kept in memory.

    Raises:
        MediaError: A clip cannot be used; names the file and the cause.
    """
    state = PartialState()
    share = clips[state.process_index :: state.num_processes]
    hidden = None if state.is_main_process else True  # None: shown on a terminal only

    def read(clip: Clip) -> None:
        if inputs.cache_dir is not None:
            inputs.media(clip)
        else:
            probe(clip.path)

    ranks_here = int(os.environ.get("LOCAL_WORLD_SIZE", state.num_processes))
    pool = ThreadPoolExecutor(max(1, min(16, cores() // ranks_here)))
    try:
        list(tqdm(pool.map(read, share), "reading clips", len(share), unit="clip", leave=False, disable=hidden))
    finally:
        pool.shutdown(cancel_futures=True)  # the first broken clip stops the rest
    state.wait_for_everyone()
