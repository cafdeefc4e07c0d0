"""Read the media of a run before it starts: a broken clip must stop it in the first minute, not in the fifth hour."""

from collections.abc import Sequence

from accelerate import PartialState
from tqdm import tqdm

from migr.clips import Clip
from migr.media import probe
from migr.omni.inputs import OmniInputs


def read_all(inputs: OmniInputs, clips: Sequence[Clip]) -> None:
    """Decode every clip into the cache, each rank its share; without a cache, only see that every file opens.

    Raises:
        MediaError: A clip cannot be used; names the file and the cause.
    """
    state = PartialState()
    share = clips[state.process_index :: state.num_processes]
    hidden = None if state.is_main_process else True  # None: shown on a terminal only
    for clip in tqdm(share, desc="reading clips", unit="clip", leave=False, disable=hidden):
        if inputs.cache_dir is not None:
            inputs.media(clip)
        else:
            probe(clip.path)
    state.wait_for_everyone()
