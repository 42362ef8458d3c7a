"""Downloads the datasets that a list of runs needs, one after another, unless they are there.

    bash run_all.sh ogbench --list | python -m tools.fetch

run_all.sh does so before a list's first run, so that no two runs download one file, and no run
starts where the flags of one are wrong.
"""

import http.client
import os
import re
import shlex
import sys
from importlib import import_module
from pathlib import Path

import tyro


def main(commands):
    """commands: lines with `drol.py FLAGS` or `fql.py FLAGS`. Ends with SystemExit where flags are
    wrong or data is not to be had. The data of own tasks is their own affair."""
    os.environ["MUJOCO_GL"] = "disabled"  # nothing is drawn
    wanted = {}
    for line in dict.fromkeys(re.sub(r"--seed[ =]\d+", "", line) for line in commands):
        try:
            _, name, *flags = shlex.split(line)
            program = import_module(Path(name).stem)
        except (ValueError, ImportError) as error:
            sys.exit(f"error: no command of drol.py or fql.py: {line.strip()} ({error})")
        args, _ = program.resolve(tyro.cli(program.Args, args=flags, prog=name))
        if args.data_dir and not os.path.isdir(os.path.expanduser(args.data_dir)):
            sys.exit(f"error: there is no --data-dir {args.data_dir}")
        wanted[args.env_id, args.data_dir] = re.sub("-singletask(-task.)?", "", args.env_id)
    for (env_name, data_dir), dataset in wanted.items():
        if ":" in env_name:
            continue
        benchmark = "ogbench" if dataset != env_name else "d4rl_compat"
        folder = {"dataset_dir": data_dir} if data_dir else {}
        try:
            import_module(benchmark).download_datasets([dataset], **folder)
        except (OSError, http.client.HTTPException, ImportError, ValueError) as error:
            where = data_dir or "its usual folder"
            sys.exit(f"error: no data of {dataset} in {where}: {error!r}; docs/data.md: other ways")


if __name__ == "__main__":
    main(sys.stdin)
