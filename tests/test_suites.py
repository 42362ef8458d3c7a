"""Tests of run_all.sh: what its suites list, and how their commands are run, stopped and run again.

Most of them put a small program in Python's place, which notes its arguments and trains nothing.
"""

import csv
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import ogbench
import pytest

import drol
from tests.helpers import ROOT, same_weights
from tools import fetch

SCENE = ["scaling", "--only", "scene", "--seeds", "1"]  # seven runs, K = 1 to 64
K = ["1", "2", "4", "8", "16", "32", "64"]


def wait_for(condition, seconds=120):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, condition
        time.sleep(0.05)


def run_all(*args, **variables):
    """Calls run_all.sh, with this Python in place of .venv's, and waits for it."""
    return subprocess.run(
        ["bash", ROOT / "run_all.sh", *map(str, args)],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHON": sys.executable} | variables,
    )


# --------------------------------------------------------------------- what the suites list


def listed(suite, *args):
    result = run_all(suite, "--list", *args)
    assert (result.returncode, result.stderr) == (0, "")
    return result.stdout.splitlines()


def flags_of(line):
    """A listed command's program, and its flags as a dict from their names to their values."""
    python, program, *words = shlex.split(line)
    assert python == sys.executable
    flags = {}
    for word in words:
        if word.startswith("--"):
            name = word.removeprefix("--")
            assert name not in flags
            flags[name] = []
        else:
            flags[name].append(word)
    return program, {name: " ".join(values) for name, values in flags.items()}


def runs_of(*args):
    return [flags_of(line) for line in listed(*args)]


def published_rows():
    with open(ROOT / "testdata" / "published_settings.csv", newline="") as file:
        return list(csv.DictReader(file))


def published_command(row, bc_coef):
    """The command of a row of published_settings.csv, given the bc_coef that is the default."""
    flags = {"env-id": row["full_name"]}
    if row["benchmark"] == "ogbench":
        flags = {"env-id": row["family"], "task": row["task"]}
    if row["method"] == "drol":
        flags["k"] = row["k"]
        if row["bc_coef"] != bc_coef:
            flags["bc-coef"] = row["bc_coef"]
    return f"{row['method']}.py", flags


@pytest.mark.parametrize("suite, count", [("ogbench", 1080), ("d4rl", 392)])
def test_the_suites_are_the_published_runs(suite, count):
    rows = [row for row in published_rows() if row["benchmark"] == suite]
    defaults = {row["full_name"]: row["bc_coef"] for row in rows if row["suite"] == "DROL(16)"}
    published = [published_command(row, defaults[row["full_name"]]) for row in rows]
    runs = runs_of(suite)
    seeds = [int(flags.pop("seed")) for _, flags in runs]
    assert seeds == sorted(seeds)  # seed 0 of everything before seed 1 of anything
    assert len(runs) == count == 8 * len(set(map(str, published)))
    for seed in range(8):
        of_seed = [run for run, its_seed in zip(runs, seeds, strict=True) if its_seed == seed]
        assert sorted(map(str, of_seed)) == sorted(set(map(str, published)))


def test_the_sweeps_are_the_published_ones():
    def pairs(suite):
        runs = runs_of(suite, "--seeds", 1)
        assert all(program == "drol.py" for program, _ in runs)
        assert all(flags.keys() - {"task"} == {"env-id", "seed", "k"} for _, flags in runs)
        return [(flags["env-id"], flags.get("task"), flags["k"]) for _, flags in runs]

    swept = {
        "antmaze-giant": "3",
        "antmaze-large": "1",
        "antsoccer-arena": "4",
        "cube-double": "3",
        "cube-single": "1",
        "humanoidmaze-large": "1",
        "humanoidmaze-medium": "1",
        "puzzle-3x3": "2",
        "puzzle-4x4": "1",
        "scene": "2",
    }
    names = {row["full_name"] for row in published_rows() if row["benchmark"] == "d4rl"}
    swept |= {name: None for name in names if "antmaze" in name or "expert" in name}
    assert len(swept) == 20
    expected = {(env, task, k) for env, task in swept.items() for k in K[:-1]}
    assert sorted(pairs("ksweep"), key=str) == sorted(expected, key=str)
    scaled = {"antmaze-giant": "3", "cube-double": "3", "scene": "2"}
    expected = {(env, task, k) for env, task in scaled.items() for k in K}
    assert sorted(pairs("scaling"), key=str) == sorted(expected, key=str)


def test_all_is_the_four_suites_with_equal_runs_once():
    suites = [listed(name, "--seeds", 2) for name in ("ogbench", "d4rl", "ksweep", "scaling")]
    everything = listed("all", "--seeds", 2)
    assert len(everything) == len(set(everything)) < sum(map(len, suites))
    assert set(everything) == set().union(*suites)


def test_local_is_the_sweep_of_k_on_small_networks():
    runs = runs_of("local")
    assert [(flags.pop("seed"), flags.pop("k")) for _, flags in runs] == [
        (seed, k) for seed in ("0", "1") for k in K
    ]
    settings = {"hidden-dims": "128 128 128", "lr": "1e-3", "tau": "0.02", "steps": "40000"}
    for program, flags in runs:
        assert program == "drol.py" and settings.items() <= flags.items()
        assert (flags["env-id"], flags["task"], flags["compile"]) == ("cube-single", "2", "")
        assert (flags["data-dir"], flags["run-dir"]) == ("data", "runs/local")


def test_reproduce_is_at_the_published_settings():
    """Nothing but the length, the data and the folders is set; K = 16 is the paper's DROL(16)."""
    data = {"data-dir": "data/official-size", "run-dir": "runs/reproduce", "seed": "0"}
    ogbench = {"steps": "100000", "eval-interval": "10000"}
    d4rl = {"steps": "30000", "eval-interval": "5000"}
    expected = []
    for flags in (
        {"env-id": "cube-single", "task": "2"} | ogbench,
        {"env-id": "scene", "task": "1"} | ogbench,
        {"env-id": "puzzle-3x3", "task": "1"} | ogbench,
        {"env-id": "door-expert-v1"} | d4rl,
        {"env-id": "pen-expert-v1"} | d4rl,
    ):
        expected.append(("drol.py", {"k": "16"} | flags | data))
        expected.append(("fql.py", flags | data))
    assert runs_of("reproduce") == expected


def test_options_choose_and_extend_the_commands():
    lines = listed("ogbench", "--only", "fql.*cube-single", "--seeds", 2)
    runs = [flags_of(line) for line in lines]
    assert {(program, flags["env-id"]) for program, flags in runs} == {("fql.py", "cube-single")}
    assert [flags["task"] for _, flags in runs] == ["1", "2", "3", "4", "5"] * 2
    run_dir, flags = "my  runs", ["--steps", "10", "--data-dir", "a 'folder'"]
    ends = listed("ogbench", "--only", "--k 16$", "--", *flags)  # of the command as in the list
    assert len(ends) == 8 * 50 and all("--k 16 --" in line for line in ends)
    longer = listed("ogbench", "--only", "fql.*cube-single", "--run-dir", run_dir, "--", *flags)
    words = shlex.split(longer[0])
    assert words == [*shlex.split(lines[0]), "--run-dir", run_dir, *flags]
    assert all("--run-dir mine" in line for line in listed("local", "--run-dir", "mine"))


def test_a_cdpath_leads_nowhere_else(tmp_path):
    (tmp_path / ROOT.name).mkdir()
    command = ["bash", f"{ROOT.name}/run_all.sh", "scaling", "--list"]
    variables = {"PYTHON": sys.executable, "CDPATH": str(tmp_path)}
    result = subprocess.run(
        command, cwd=ROOT.parent, env=os.environ | variables, capture_output=True, text=True
    )
    assert result.stdout.splitlines() == listed("scaling")


@pytest.mark.parametrize(
    "args, word",
    [
        (["ogbench", "--seeds", "0"], "--seeds"),
        (["ogbench", "--jobs", "0"], "--jobs"),
        (["ogbench", "--only", "cubes"], "--only cubes"),
        (["ogbench", "cube-single"], "cube-single"),
        (["d4rl", "--bad"], "--bad"),
        (["d4rl", "--jobs"], "--jobs"),
    ],
)
def test_a_mistake_is_one_sentence(args, word, program):
    result = run_all(*args, PYTHON=program.path)
    assert result.returncode == 1 and result.stdout == ""
    assert result.stderr.startswith("error: ") and word in result.stderr
    assert result.stderr.count("\n") == 1
    assert program.started() == []


# --------------------------------------------------------------------- the data of a list


@pytest.fixture
def server(monkeypatch, tmp_path):
    """A folder that stands for OGBench's server."""
    folder = tmp_path / "server"
    folder.mkdir()
    monkeypatch.setattr(ogbench.utils, "DATASET_URL", folder.as_uri())
    return folder


def test_the_datasets_of_a_list_are_downloaded_once_and_kept(server, tmp_path):
    mine = tmp_path / "my data"
    commands = listed("ogbench", "--only", "scene|cube-single", "--", "--data-dir", mine)
    names = ["cube-single-play-v0.npz", "scene-play-v0.npz"]
    names = sorted(names + [name.replace(".npz", "-val.npz") for name in names])
    for name in names:
        (server / name).write_text(f"new {name}")
    mine.mkdir()
    (mine / names[0]).write_text("old")
    fetch.main(commands)
    assert sorted(path.name for path in mine.iterdir()) == names
    assert (mine / names[0]).read_text() == "old"
    assert all((mine / name).read_text() == f"new {name}" for name in names[1:])
    for name in names:
        (server / name).unlink()
    fetch.main(commands)  # needs no server


def test_a_download_that_fails_is_one_sentence(server, tmp_path):
    with pytest.raises(SystemExit) as caught:
        fetch.main(listed("ksweep", "--only", "scene", "--", "--data-dir", tmp_path / "mine"))
    message = caught.value.code
    assert message.startswith("error: no data for scene in ") and "\n" not in message
    assert str(tmp_path / "mine") in message and "docs/data.md" in message


def test_a_suite_without_a_network_says_so_before_its_first_run(tmp_path):
    """D4RL's data, whose server is not reached through this proxy."""
    pytest.importorskip("tools.d4rl_compat")
    only = ["d4rl", "--only", "pen-human", "--run-dir", tmp_path / "runs"]
    proxy = {"http_proxy": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9"}
    result = run_all(*only, "--", "--data-dir", tmp_path / "data", **proxy)
    assert result.returncode == 1 and "exit code" not in result.stdout
    assert result.stderr.startswith("error: no data for pen-human-v1"), result.stderr
    assert result.stderr.count("\n") == 1


# --------------------------------------------------------------------- how they are run


PROGRAM = """#!/bin/bash
# stands in for Python: notes its start and its end, and runs for as long as there is a file "hold"
cd "$(dirname "$0")"
case $1 in
    -c) echo "tried to compile" >>events; exec "${COMPILES:-true}" "$@" ;;
    tools/fetch.py) cat >fetched; exec "${FETCHES:-true}" ;;
esac
trap 'echo "stopped $$" >>events; exit 130' TERM
echo "started $$ ${CUDA_VISIBLE_DEVICES:--} ${OMP_NUM_THREADS:--} $*" >>events
while [ -e hold ]; do sleep 0.05; done
if [ -e failing ] && [[ "$* " == *"$(cat failing) "* ]]; then
    echo "something is wrong"
    exit 3
fi
echo "ended $$" >>events
"""


class Program:
    """The program, in a folder whose name has a blank, and what it has noted."""

    def __init__(self, folder):
        self.folder = folder
        self.path = str(folder / "python")
        self.hold = folder / "hold"
        self.failing = folder / "failing"
        folder.mkdir()
        Path(self.path).write_text(PROGRAM)
        Path(self.path).chmod(0o755)

    def events(self):
        path = self.folder / "events"
        return path.read_text().splitlines() if path.exists() else []

    def started(self):
        """[pid, GPU, threads, arguments] of every start."""
        events = [event.split(" ", 4) for event in self.events()]
        return [event[1:] for event in events if event[0] == "started"]

    def arguments(self):
        return [arguments for *_, arguments in self.started()]

    def fetched(self):
        """The commands whose data was asked for last."""
        lines = (self.folder / "fetched").read_text().splitlines()
        return [" ".join(shlex.split(line)[1:]) for line in lines]

    def k(self):
        words = [arguments.split() for arguments in self.arguments()]
        return [line[line.index("--k") + 1] for line in words]


@pytest.fixture
def program(tmp_path):
    return Program(tmp_path / "a program")


def start(program, *args, **variables):
    """Starts run_all.sh in a session of its own, with Ctrl-C as a terminal would have it."""
    return subprocess.Popen(
        ["env", "--default-signal=INT", "bash", ROOT / "run_all.sh", *map(str, args)],
        env=os.environ | {"PYTHON": program.path} | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def alive(pid):
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1]
    except OSError:
        return False


def kill_session(session, number, spared=None):
    """Sends a signal to all processes of a session but one."""
    for path in Path("/proc").glob("[0-9]*"):
        pid = int(path.name)
        try:
            if os.getsid(pid) == session and pid != spared:
                os.kill(pid, number)
        except ProcessLookupError:  # it has ended meanwhile
            continue


def test_a_failing_run_is_listed_with_its_log_and_only_it_runs_again(program, tmp_path):
    command = [*SCENE, "--jobs", 2, "--run-dir", tmp_path / "my runs"]
    program.failing.write_text("--k 4")
    result = run_all(*command, PYTHON=program.path)
    assert result.returncode == 1 and result.stderr == ""
    assert sorted(program.k(), key=int) == K  # it does not stop the rest
    (last,) = [line for line in result.stdout.splitlines() if line.startswith("failed: ")]
    assert result.stdout.splitlines()[-1] == last and " --k 4 " in last
    assert "something is wrong" in Path(last.split("log: ")[1]).read_text()
    assert len(list((tmp_path / "my runs" / "logs").glob("*.log"))) == 7

    program.failing.unlink()
    assert run_all(*command, PYTHON=program.path).returncode == 0
    assert program.k()[7:] == ["4"]  # what has succeeded is left out
    again = run_all(*command, PYTHON=program.path)
    assert again.returncode == 0 and len(program.started()) == 8
    done = (tmp_path / "my runs" / "done.txt").read_text().splitlines()
    assert sorted(done) == sorted(
        line.replace(shlex.quote(sys.executable), program.path.replace(" ", "\\ "))
        for line in listed(*command)
    )


@pytest.mark.parametrize("cores", [1, len(os.sched_getaffinity(0))])
def test_runs_are_spread_over_the_gpus_and_the_cores(program, tmp_path, cores):
    """Of the cores only those count that the process may use, as after taskset."""
    program.hold.touch()
    environment = {key: os.environ[key] for key in os.environ if key != "OMP_NUM_THREADS"}
    chosen = ",".join(map(str, sorted(os.sched_getaffinity(0))[:cores]))
    command = ["taskset", "-c", chosen, "bash", ROOT / "run_all.sh", *SCENE, "--gpus", "3 5"]
    suite = subprocess.Popen(
        [*command, "--run-dir", tmp_path / "runs"],
        env=environment | {"PYTHON": program.path},
        stdout=subprocess.DEVNULL,
    )
    wait_for(lambda: len(program.started()) == 2)  # one run per GPU
    assert {gpu for _, gpu, *_ in program.started()} == {"3", "5"}
    program.hold.unlink()
    assert suite.wait(timeout=60) == 0
    assert len(program.started()) == 7
    assert {gpu for _, gpu, *_ in program.started()} == {"3", "5"}
    threads = (cores + 1) // 2
    assert {threads_of for _, _, threads_of, _ in program.started()} == {str(threads)}


@pytest.mark.parametrize("how", ["Ctrl-C", "SIGTERM", "SIGTERM to all"])
def test_a_stopped_suite_waits_for_its_runs_and_goes_on_when_called_again(program, tmp_path, how):
    command = [*SCENE, "--jobs", "3", "--run-dir", tmp_path / "runs"]
    program.hold.touch()
    suite = start(program, *command)
    wait_for(lambda: len(program.started()) == 3)
    os.kill(int(program.started()[0][0]), signal.SIGKILL)  # one that dies by itself stops nothing
    wait_for(lambda: len(program.started()) == 4)
    if how == "Ctrl-C":
        os.killpg(suite.pid, signal.SIGINT)
    elif how == "SIGTERM":
        suite.send_signal(signal.SIGTERM)
    else:
        kill_session(suite.pid, signal.SIGTERM)  # as a batch system does
    out, _ = suite.communicate(timeout=60)
    assert suite.returncode == 130 and out.count("exit code 137") == 1, out
    assert out.count("exit code 130") == 3, out  # it has waited for them
    assert out.splitlines()[-1].startswith("stopped")
    pids = [pid for pid, *_ in program.started()]
    assert len(pids) == 4 and not any(map(alive, pids))
    stopped = [event for event in program.events() if event.startswith("stopped")]
    assert sorted(stopped) == sorted(f"stopped {pid}" for pid in pids[1:])
    assert (tmp_path / "runs" / "done.txt").read_text() == ""

    program.hold.unlink()
    assert run_all(*command, PYTHON=program.path).returncode == 0
    assert sorted(program.k()[4:], key=int) == K


def test_suites_collect_the_data_that_their_runs_need(program, tmp_path):
    """Also with a variable in the environment that has the name of one of the script's."""
    options = ["--run-dir", tmp_path, "--seeds", 1, "--only", "k 4 "]
    assert run_all("local", *options, PYTHON=program.path, seed="5", data="x").returncode == 0
    collected, run = program.arguments()
    flags = "--env-id cube-single --episodes 100 --data-dir data"
    assert collected == f"tools/collect.py {flags}"
    assert run.startswith("drol.py") and program.fetched() == [run]

    options = ["--run-dir", tmp_path, "--only", "puzzle|door"]
    assert run_all("reproduce", *options, PYTHON=program.path).returncode == 0
    collected, *runs = program.arguments()[2:]
    flags = "--env-id puzzle-3x3 --episodes 1000 --data-dir data/official-size"
    assert collected == f"tools/collect.py {flags}"
    assert [line.split()[0] for line in runs] == ["drol.py", "fql.py"] * 2
    assert program.fetched() == runs  # the door's data cannot be collected without a policy

    flags = ["--", "--data-dir", tmp_path / "mine"]  # holds what the user wants
    assert run_all("reproduce", *options, *flags, PYTHON=program.path).returncode == 0
    assert program.arguments()[7:] == program.fetched()


def test_a_suite_whose_data_cannot_be_had_does_not_start(program, tmp_path):
    program.failing.write_text("data/official-size")
    result = run_all("reproduce", "--only", "scene", "--run-dir", tmp_path, PYTHON=program.path)
    assert result.returncode != 0 and len(program.started()) == 1
    result = run_all(*SCENE, "--run-dir", tmp_path, PYTHON=program.path, FETCHES="false")
    assert result.returncode != 0 and len(program.started()) == 1


def test_without_a_compiler_demo_and_local_run_uncompiled(program, tmp_path):
    for command in (["demo"], ["local", "--only", "k 4 ", "--seeds", 1, "--run-dir", tmp_path]):
        result = run_all(*command, PYTHON=program.path)
        assert (result.returncode, result.stderr) == (0, "")
        assert program.arguments()[-1].split().count("--compile") == 1
        before = len(program.events())
        result = run_all(*command, PYTHON=program.path, COMPILES="false")
        assert result.returncode == 0 and result.stderr.count("\n") == 1
        assert result.stderr.startswith("--compile does not work here")
        tried, collected, _, run, _ = program.events()[before:]  # it is tried first
        assert tried == "tried to compile" and "tools/collect.py" in collected
        assert "drol.py" in run and "--compile" not in run


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="g++ is not installed")
def test_compiling_is_tried_for_real(program):
    for compiler, works in (("g++", True), ("/bin/false", False)):
        variables = {"PYTHON": program.path, "COMPILES": sys.executable, "CXX": compiler}
        assert run_all("demo", **variables).returncode == 0
        assert ("--compile" in program.arguments()[-1].split()) == works


@pytest.mark.parametrize(
    "command, words",
    [
        ("demo", ["tools/collect.py", "drol.py"]),
        ("smoke", ["tools/collect.py", "drol.py"]),
        ("test", ["-m pytest"]),
        ("runtime", ["tools/bench.py"]),
        ("figures", ["tools/figures.py"]),
    ],
)
def test_further_words_are_handed_to_the_program(program, command, words):
    result = run_all(command, "--some", "flag", PYTHON=program.path)
    assert result.returncode == 0
    assert len(program.started()) == len(words)
    for arguments, word in zip(program.arguments(), words, strict=True):
        assert arguments.startswith(word)
    assert "--some flag" in program.arguments()[-1]


def test_the_smoke_test_trains_anew_each_time_and_the_demo_goes_on(program):
    for command, anew in (("smoke", True), ("demo", False)):
        assert run_all(command, PYTHON=program.path).returncode == 0
        words = program.arguments()[-1].split()
        assert words[0] == "drol.py" and drol.tyro.cli(drol.Args, args=words[1:]).overwrite == anew


# --------------------------------------------------------------------- on Slurm


@pytest.fixture
def sbatch(program, tmp_path):
    """An sbatch that only writes down its arguments, one per line."""
    folder = tmp_path / "bin"
    folder.mkdir()
    script = folder / "sbatch"
    script.write_text(f'#!/bin/bash\nprintf "%s\\n" "$@" >{shlex.quote(str(tmp_path / "args"))}\n')
    script.chmod(0o755)

    def submit(*args):
        path = f"{folder}:{os.environ['PATH']}"
        result = run_all(*args, "--run-dir", tmp_path / "runs", PYTHON=program.path, PATH=path)
        assert result.returncode == 0, result.stderr
        return (tmp_path / "args").read_text().splitlines()

    return submit


def run_task(script, number):
    """Runs what an array's task of this number runs."""
    environment = os.environ | {"SLURM_ARRAY_TASK_ID": str(number)}
    return subprocess.run(["bash", "-c", script], env=environment, capture_output=True, text=True)


def test_every_line_of_a_long_list_is_run_by_exactly_one_task(program, tmp_path):
    (tmp_path / "logs").mkdir()
    (tmp_path / "done.txt").touch()
    file = tmp_path / "logs" / "suite.list"
    lines = [f"drol.py --env-id scene --k {k}" for k in range(1, 24)]
    quoted = program.path.replace(" ", "\\ ")
    file.write_text("".join(f"{quoted} {line}\n" for line in lines))
    of_task = []
    for number in range(1, 6):
        before = len(program.started())
        result = run_task(f"bash {ROOT / 'run_all.sh'} task {file} 5", number)
        assert result.returncode == 0, result.stderr
        of_task.append(program.arguments()[before:])
    assert sorted(sum(of_task, [])) == sorted(lines)
    assert sorted(map(len, of_task)) == [4, 4, 5, 5, 5]


def test_a_list_longer_than_slurms_limit_is_one_array_of_1000_tasks(program, sbatch, tmp_path):
    args = sbatch("all", "--slurm", "--partition=gpu --time=24:00:00")
    assert {"--partition=gpu", "--time=24:00:00", "--array=1-1000", "--requeue"} <= set(args)
    assert program.started() == [] and len(program.fetched()) == 2208  # only data is fetched here
    script = args[args.index("--wrap") + 1]
    everything = [line.split(" ", 1)[1] for line in listed("all", "--run-dir", tmp_path / "runs")]
    assert len(everything) == 2208
    for number, count in ((1, 3), (208, 3), (209, 2), (1000, 2)):
        before = len(program.started())
        assert run_task(script, number).returncode == 0
        assert program.arguments()[before:] == everything[number - 1 :: 1000]
        assert len(program.started()) - before == count


def test_a_task_runs_what_is_left_and_says_what_failed(program, sbatch, tmp_path):
    args = sbatch(*SCENE, "--slurm", "")
    assert "--array=1-7" in args
    script = args[args.index("--wrap") + 1]
    program.failing.write_text("--k 2")
    assert [run_task(script, number).returncode for number in (1, 2, 3)] == [0, 1, 0]
    program.failing.unlink()
    assert run_task(script, 1).returncode == run_task(script, 2).returncode == 0
    assert program.k() == ["1", "2", "4", "2"]  # started again, task 1 has nothing left to do
    args = sbatch(*SCENE, "--slurm", "--array=1-9")
    assert [word for word in args if "--array" in word][-1] == "--array=1-4"


def test_a_task_that_is_started_again_waits_for_its_first_attempt(program, sbatch):
    """Slurm can start a task again before what is left of the first attempt has ended."""
    args = sbatch(*SCENE, "--slurm", "")
    script = args[args.index("--wrap") + 1]
    environment = os.environ | {"SLURM_ARRAY_TASK_ID": "1"}
    program.hold.touch()
    first = subprocess.Popen(["bash", "-c", script], env=environment, start_new_session=True)
    wait_for(lambda: len(program.started()) == 1)
    run = int(program.started()[0][0])
    log = os.readlink(f"/proc/{run}/fd/1")
    kill_session(first.pid, signal.SIGKILL, spared=run)
    first.wait()
    assert alive(run)

    second = subprocess.Popen(["bash", "-c", script], env=environment)

    def waits():
        for path in Path("/proc").glob("[0-9]*"):
            try:
                if (path / "comm").read_text() == "flock\n" and os.readlink(path / "fd/1") == log:
                    return True
            except OSError:  # it has ended meanwhile
                continue
        return False

    wait_for(waits)
    program.hold.unlink()
    assert second.wait(timeout=60) == 0
    assert [event.split()[0] for event in program.events()] == ["started", "ended"] * 2
    assert program.k() == ["1", "1"]


@pytest.fixture
def slurm():
    """A Slurm of one node. A function that starts a program with this Slurm."""
    path = f"{os.environ['PATH']}:/usr/sbin:/sbin"
    programs = ("slurmctld", "slurmd", "sbatch", "munged")
    if not all(shutil.which(name, path=path) for name in programs):
        pytest.skip("Slurm is not installed: apt-get install slurmctld slurmd slurm-client munge")
    folder = Path(tempfile.mkdtemp(dir="/tmp"))
    folder.chmod(0o755)  # munge insists on it
    node = ["bash", ROOT / "tests" / "slurm_node.sh"]
    try:
        started = subprocess.run([*node, "start", folder], capture_output=True, text=True)
        if started.returncode:
            pytest.skip(f"Slurm is installed and does not start here: {started.stderr}")
        variables = {"SLURM_CONF": str(folder / "client.conf"), "PYTHON": sys.executable}
        yield lambda *words: subprocess.Popen(
            list(map(str, words)), env=os.environ | variables, stdout=subprocess.PIPE, text=True
        )
    finally:
        subprocess.run([*node, "stop", folder], check=True)
        shutil.rmtree(folder)


@pytest.mark.slow
def test_runs_on_slurm_survive_a_node_failure(slurm, cube_dir, tmp_path):
    """DROL and FQL as a job array whose node fails: they end as runs without Slurm do."""
    flags = f"""--data-dir {cube_dir} --steps 3000 --log-interval 3000 --checkpoint-interval 50
        --hidden-dims 16 16 --batch-size 32 --eval-interval 3000 --eval-envs 2 --eval-episodes 2
        --device cpu""".split()
    only = ["ogbench", "--only", "cube-single --task 1 ", "--seeds", 1]
    array, local = tmp_path / "array", tmp_path / "local"
    submitted = slurm(
        *["bash", ROOT / "run_all.sh", *only, "--slurm", "--wait", "--run-dir", array, "--", *flags]
    )
    wait_for(lambda: len(list(array.glob("*/*/*/checkpoint.pt"))) == 2)
    node = os.uname().nodename.split(".")[0]
    failure = ["scontrol", "update", f"nodename={node}", "state=down", "reason=test"]
    assert slurm(*failure).wait(timeout=60) == 0
    assert (array / "done.txt").read_text() == ""
    out, _ = submitted.communicate(timeout=600)
    assert submitted.returncode == 0 and "Submitted batch job" in out
    jobs, _ = slurm("scontrol", "show", "job").communicate(timeout=60)
    assert "Restarts=1" in jobs
    assert len((array / "done.txt").read_text().splitlines()) == 2
    logs = [path.read_text() for path in (array / "logs").glob("*.log")]
    assert len(logs) == 2 and all("resumed at update" in log for log in logs)

    again = run_all(*only, "--run-dir", array, "--", *flags)
    assert again.returncode == 0 and "exit code" not in again.stdout  # nothing is left to do
    assert run_all(*only, "--run-dir", local, "--jobs", 2, "--", *flags).returncode == 0
    checkpoints = list(local.glob("*/*/*/checkpoint.pt"))
    assert len(checkpoints) == 2
    for theirs in checkpoints:
        ours = array / theirs.relative_to(local)
        assert same_weights(ours.parent, theirs.parent)
        evaluations = [path.with_name("eval.csv").read_bytes() for path in (ours, theirs)]
        assert evaluations[0] == evaluations[1]
