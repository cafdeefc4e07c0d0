"""`accelerate launch` with one way out: a mistake ends in its one line and status 2, on any number of processes.

    python -m migr.launch --config_file configs/accelerate/zero2.yaml --num_processes 8 stages/sft.py --config my.yaml

Takes what `accelerate launch` takes and starts the same processes. That one puts a traceback of its own behind whatever
the script has said, and ends with status 1 (accelerate 1.15); this one ends with the script's own status.
"""

import logging
import subprocess
import sys

from migr.errors import as_input_error, exit_on_input_error


def main() -> None:
    """Start the processes and wait for them.

    Raises:
        InputError: What accelerate itself says of its arguments, its configuration file or this machine.
    """
    from accelerate.commands.launch import launch_command, launch_command_parser
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    logging.getLogger("torch.distributed.elastic.multiprocessing.api").setLevel(logging.CRITICAL)  # which process, how
    status = 0
    with as_input_error("accelerate launch"):
        try:
            launch_command(launch_command_parser().parse_args())
        except ChildFailedError as error:
            status = error.get_first_failure()[1].exitcode
        except subprocess.CalledProcessError as error:
            status = error.returncode
        except (SignalException, KeyboardInterrupt):  # Ctrl-C: the stage has said so
            status = 130
    sys.exit(status if status >= 0 else 128 - status)  # as a shell counts signals


if __name__ == "__main__":
    with exit_on_input_error():
        main()
