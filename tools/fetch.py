"""Downloads the datasets that a list of runs needs, one after another, unless they are there.

    bash run_all.sh ogbench --list | python tools/fetch.py

run_all.sh does this before a suite's first run, so that no two runs download one file.
"""

import argparse
import http.client
import os
import shlex
import sys
from importlib import import_module
from pathlib import Path

os.environ["MUJOCO_GL"] = "disabled"  # nothing is drawn
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # where drol.py is

from drol import PUBLISHED  # noqa: E402


def main(commands):
    """commands: run_all.sh's, one per item. Ends with SystemExit where a download fails."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--env-id")
    parser.add_argument("--data-dir")
    runs = [parser.parse_known_args(shlex.split(line))[0] for line in commands]
    for env_id, data_dir in dict.fromkeys((run.env_id, run.data_dir) for run in runs):
        kind = PUBLISHED[env_id][0]  # of OGBench's datasets
        dataset = f"{env_id}-{kind}-v0" if kind else env_id
        folder = {"dataset_dir": data_dir} if data_dir else {}
        try:
            benchmark = import_module("ogbench" if kind else "tools.d4rl_compat")
            benchmark.download_datasets([dataset], **folder)
        except (OSError, http.client.HTTPException, ImportError) as error:
            sys.exit(
                f"error: no data for {env_id} in {data_dir or 'its usual folder'}: {error}; "
                "docs/data.md names the files, a mirror and a way to make data"
            )


if __name__ == "__main__":
    main(sys.stdin)
