"""Replays what users of such programs reported, and more of each kind, on a clone, old or new.

python -m tests.reported CLONE [PART OF A TITLE]

Prints a line per case: the kind's number and what was given, the exit code, the last line printed.
The cases are in reported.txt, as TITLE :: COMMANDS of bash, called in a folder that has the data,
records and stand-ins made here. A title with {a|b} is of two cases, whose {} stand for a and b.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import h5py
import numpy as np

from tests import fake

ROOT = Path(__file__).resolve().parents[1]
ANT = "Ant_maze_u-maze_noisy_multistart_False_multigoal_False_sparse_fixed.hdf5"
FILES = {"maze": "pointmaze-medium-navigate-v0.npz", "ant": ANT, "own": "arrays.npz"}
SLURM = """#!/bin/bash
export SLURM_ARRAY_TASK_ID=1; bash -c "${@: -1}" >/dev/null 2>&1; bash -c "${@: -1}"
"""  # the first task, and again
PYTHON = """#!/bin/bash
case "$*" in *tools*) exit ;; esac
echo "${CUDA_VISIBLE_DEVICES:-none}" >>"$(dirname "$0")/gpus"; echo "what is wrong"; exit ${CODE:-0}
"""


def change(x, how):
    """An array, changed by one of these names, or of this type."""
    seventh = np.arange(len(x)).reshape(-1, *[1] * (x.ndim - 1)) == 7
    ways = {"nan": np.where(seventh, np.nan, x), "inf": np.where(seventh, np.inf, x)}
    ways |= {"wide": 100 * x, "one": np.ones_like(x), "column": x[:, None]}
    return ways[how] if how in ways else x.astype(how)


def make_data(names):
    """Folders of data: a maze's, made by the collector, and random steps. Names say how changed."""
    collect = ["-m", "tools.collect", "--env-id", "pointmaze-medium", "--episodes", "1"]
    maze = ["--data-dir", os.path.abspath("maze")]
    subprocess.run([sys.executable, *collect, *maze], cwd=ROOT, check=True)
    s, i = np.random.default_rng(0).uniform(-1, 1, (100, 29)), np.arange(100)
    ant = {"observations": s, "actions": s[:, :8], "rewards": i % 2, "terminals": i % 20 == 9}
    ant = {key: np.float32(x) for key, x in (ant | {"timeouts": i % 50 == 49}).items()}
    data = {"maze": dict(np.load(f"maze/{FILES['maze']}")), "ant": ant, "own": fake.made_up_data()}
    for name in ["ant", "own", *names]:
        task, *key_and_how = name.split("-")
        shutil.copytree("maze", name) if task == "maze" else os.mkdir(name)
        arrays, path = dict(data[task]), Path(name, FILES[task])
        if key_and_how:
            key, how = key_and_how
            arrays[key] = change(arrays[key], how)
        if task != "ant":
            np.savez(path, **arrays)
            continue
        with h5py.File(path, "w") as file:
            for key, x in arrays.items():
                file[key] = x


def make_records():
    """Folders of runs of which each has a score."""
    cube, torch = "cube-double-play-singletask-task1-v0", {"torch": "2", "ogbench": "1"}
    runs = {("fql", 0): ("cube-triple-play-singletask-task1-v0", {"algorithm": "fql", "alpha": 30})}
    runs["own", 0] = "my_tasks:MyPoint-v0", {"k": 16, "bc_coef": 3}
    for seed in range(8):
        runs["eight data folders", seed] = cube, {"k": 16, "bc_coef": 3.0, "data_dir": f"/{seed}"}
        versions = torch | {"mujoco": "3.3.7" if seed == 5 else "3.4.0"}
        runs["two versions of mujoco", seed] = cube, {"k": 16, "bc_coef": 3, "versions": versions}
    for (name, seed), (env, config) in runs.items():
        folder = Path(name, env, "run", f"seed{seed}")
        folder.mkdir(parents=True)
        config = {"algorithm": "drol", "env_id": env, "seed": seed, "steps": 9} | config
        (folder / "config.json").write_text(json.dumps(config))
        (folder / "eval.csv").write_text(f"step,score\n9,{50 + seed}\n")


def cases():
    setup, text = Path(__file__).with_suffix(".txt").read_text().split("# cases\n")
    for title, commands in re.findall(r"^(\d.*?) ::(.*\n(?: .*\n)*)", text, re.M):
        before, choice, after = re.fullmatch(r"([^{]*)(?:\{(.*)\})?([^}]*)", title).groups()
        for word in (choice or "").split("|"):
            yield before + word + after, setup + commands.replace("{}", word)


def main(clone, part=""):
    with tempfile.TemporaryDirectory(prefix="reported-") as folder:
        os.chdir(folder)
        os.chmod(folder, 0o755)
        chosen = [case for case in cases() if part in case[0]]
        data = re.findall(r"\b(?:ant|maze|own)-\w+-\w+", "".join(x for _, x in chosen))
        make_data(dict.fromkeys(data))
        make_records()
        change = "\nimport os\nexec(os.environ.get('CHANGE', ''))\n"
        files = {"python": PYTHON, "sbatch": SLURM}
        files["my_tasks.py"] = (ROOT / "tests" / "fake.py").read_text() + change
        for name, text in files.items():
            Path(name).write_text(text)
            Path(name).chmod(0o755)
        env = {"CLONE": clone, "PYTHON": sys.executable, "HOME": folder, "PYTHONPATH": folder}
        options = {"env": os.environ | env, "stdin": -3, "stdout": -1, "stderr": -2}
        for title, commands in chosen:
            result = subprocess.run(["bash", "-c", commands], **options)
            out = result.stdout.decode(errors="replace").replace(folder, "HERE")
            lines = [line.strip(" │╭╮╰╯─") for line in out.splitlines()]
            last = [line for line in lines if line and "full helptext" not in line][-1:] or [""]
            trace = "TRACEBACK, " * ("Traceback" in out)
            print(f"{title:<50} {result.returncode:>3}  {trace}{last[0]:.180}", flush=True)


if __name__ == "__main__":
    main(os.path.realpath(sys.argv[1]), *sys.argv[2:])
