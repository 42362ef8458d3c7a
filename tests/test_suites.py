"""Tests of run_all.sh: what its suites list, and how a list is run, stopped and run again. In most
of them a small program that trains nothing stands in for Python."""

import csv
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import zlib
from pathlib import Path
from types import SimpleNamespace

import ogbench
import pytest

from tests import fake
from tests.helpers import ROOT, SMALL, read, wait_for
from tools import fetch

SCENE = ["scaling", "--envs", "scene:2", "--seeds", "1"]  # seven runs, K = 1 to 64
BASH = ["bash", ROOT / "run_all.sh"]
K = ["1", "2", "4", "8", "16", "32", "64"]


def run_all(*args, **options):
    """Calls run_all.sh, with this Python in the place of .venv's. Returns the finished process."""
    options["env"] = os.environ | {"PYTHON": sys.executable} | options.pop("env", {})
    return subprocess.run([*BASH, *map(str, args)], capture_output=True, text=True, **options)


# --------------------------------------------------------------------- what the suites list
def listed(suite, *args, **options):
    result = run_all(suite, "--list", *args, **options)
    assert (result.returncode, result.stderr) == (0, "")
    return result.stdout.splitlines()


def runs_of(*args):
    """The listed runs: each a program and its flags, {name: value}."""
    words = [shlex.split(line) for line in listed(*args)]
    return [(run[1], dict(zip(run[2::2], run[3::2], strict=True))) for run in words]


LINES = {"ogbench": 1080, "d4rl": 392, "ksweep": 960, "scaling": 168, "all": 2208}
CHECKSUMS = [1840096242, 2312061304, 530281696, 4203594183, 1008673645]


def test_the_lists_stay_the_same_line_by_line():
    """So that whoever goes on with a newer version makes no run twice."""
    for (suite, count), checksum in zip(LINES.items(), CHECKSUMS, strict=True):
        lines = [line.removeprefix(f"{sys.executable} ") for line in listed(suite)]
        text = "".join(f"{line}\n" for line in lines)
        assert (len(lines), zlib.crc32(text.encode())) == (count, checksum)


@pytest.mark.parametrize("suite", ["ogbench", "d4rl"])
def test_the_suites_are_the_published_runs(suite):
    with open(ROOT / "testdata" / "published_settings.csv", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["benchmark"] == suite]
    usual = {row["full_name"]: row["bc_coef"] for row in rows if row["suite"] == "DROL(16)"}
    published = set()
    for row in rows:
        flags = {"--env-id": row["full_name"]}
        if suite == "ogbench":
            flags = {"--env-id": row["family"], "--task": row["task"]}
        if row["method"] == "drol":
            flags["--k"] = row["k"]
            if row["bc_coef"] != usual[row["full_name"]]:
                flags["--bc-coef"] = row["bc_coef"]
        published.add((f"{row['method']}.py", *sorted(flags.items())))
    runs = runs_of(suite)
    assert [flags.pop("--seed") for _, flags in runs] == sorted([*"01234567"] * len(published))
    assert {(program, *sorted(flags.items())) for program, flags in runs} == published


def test_tasks_flags_and_lines_are_chosen(monkeypatch):
    envs, flags = "cube-triple:2 my_tasks:MyPoint-v0", ["--bc-coef", "1", "--data-dir", "a 'b'"]
    of_task = [{"--env-id": "cube-triple", "--task": "2"}, {"--env-id": "my_tasks:MyPoint-v0"}]
    more = {"--bc-coef": "1", "--data-dir": "a 'b'"}
    assert runs_of("drol", "--envs", envs, "--seeds=2", "--", *flags) == [
        ("drol.py", task | {"--seed": seed} | more) for seed in "01" for task in of_task
    ]
    assert {flags["--k"] for _, flags in runs_of("ksweep", "--envs", "cube-triple")} == {*K[:-1]}
    monkeypatch.setenv("HOME", "/home/of mine")
    for option in (["--run-dir=~/my  runs"], ["--run-dir", "~/my  runs"]):
        lines = [line for line in listed("ogbench", *option) if "cube-double" in line]
        assert shlex.split(lines[0])[-2:] == ["--run-dir", "/home/of mine/my  runs"]
    assert listed("run", input="\n".join([*lines, "", lines[0]])) == lines


def test_run_all_is_found_and_read_however_it_is_called(tmp_path):
    link, decoy = tmp_path / "link.sh", tmp_path / ROOT.name
    link.symlink_to(ROOT / "run_all.sh")
    decoy.mkdir()
    for command in (["bash", link], ["sh", f"{ROOT.name}/run_all.sh"]):
        environment = os.environ | {"PYTHON": sys.executable, "CDPATH": str(tmp_path)}
        where = {"cwd": ROOT.parent, "env": environment}
        lines = subprocess.check_output([*command, "scaling", "--list"], text=True, **where)
        assert lines.splitlines() == listed("scaling")


def test_a_mistake_is_one_sentence(program):
    mistakes = "drol; run; ogbench --seeds 0; ogbench --jobs none; ogbench cube-single; d4rl --gpus"
    mistakes += "; scaling --run-dir ~nobody-here/x; scaling --run-dir /dev/null/x"
    for mistake in (mistakes + "; ogbench --seed 3; run -- --compile").split(";"):
        args = mistake.split()
        result = run_all(*args, env=program.environment, input="")
        assert result.returncode == 1 and result.stdout == ""
        assert result.stderr.startswith("error: ") and args[:2][-1] in result.stderr
        assert result.stderr.count("\n") == 1 and program.noted("started") == []


# --------------------------------------------------------------------- the data of a list
def test_the_datasets_of_a_list_are_downloaded_once_and_kept(tmp_path, monkeypatch):
    server, mine, asked = tmp_path / "server", tmp_path / "my data", []
    monkeypatch.setattr(ogbench.utils, "DATASET_URL", server.as_uri())
    d4rl = SimpleNamespace(download_datasets=lambda names, dataset_dir: asked.extend(names))
    monkeypatch.setitem(sys.modules, "d4rl_compat", d4rl)
    flags = ["--seeds", 2, "--", "--data-dir", mine]
    commands = listed("ogbench", "--envs", "scene:1 scene:2 antmaze-large pen-human-v1", *flags)
    commands += listed("drol", "--envs", fake.NAME, *flags, "--bc-coef", 1)  # has its own data
    with pytest.raises(SystemExit, match="^error: .*my data"):
        fetch.main(commands)  # a folder that was given is not made
    with pytest.raises(SystemExit, match="^error: no command .* hello"):
        fetch.main(["hello"])
    server.mkdir()
    mine.mkdir()
    names = ["scene-play-v0.npz", "scene-play-v0-val.npz"]
    names += ["antmaze-large-navigate-v0.npz", "antmaze-large-navigate-v0-val.npz"]
    for name in names:
        (server / name).write_text("new")
    (mine / names[0]).write_text("old")
    fetch.main(commands)
    assert sorted(path.name for path in mine.iterdir()) == sorted(names)
    assert [(mine / name).read_text() for name in names] == ["old", "new", "new", "new"]
    assert asked == ["pen-human-v1"]
    shutil.rmtree(server)
    fetch.main(commands)  # needs no server
    (mine / names[0]).unlink()
    with pytest.raises(SystemExit, match=r"^error: no data of scene-play-v0 .*\.md[^\n]*$"):
        fetch.main(commands)


# --------------------------------------------------------------------- how a list is run
PROGRAM = """#!/bin/bash
# Stands in for Python: notes its starts and stops, and runs as long as there is a file "hold".
cd "$(dirname "$0")"
case $* in
    "-m tools.fetch") cat >fetched; exit "$(cat fetch_fails)" ;;
    "-m tools.figures"*) echo "the scores: $*"; exit ;;
esac
trap 'echo "stopped $$" >>events; exit 130' TERM
echo "started $$ ${CUDA_VISIBLE_DEVICES:--} ${OMP_NUM_THREADS:--} $*" >>events
while [ -e hold ]; do sleep 0.05; done
if [[ "$* " == *"$(cat failing) "* ]]; then
    echo "something is wrong"
    exit 3
fi
"""


class Program:
    """The program, in a folder whose name has a blank, and what it has noted."""

    def __init__(self, folder):
        self.folder, self.runs, self.hold = folder, folder / "my runs", folder / "hold"
        self.environment = {"PYTHON": f"{folder}/python", "PATH": f"{folder}:{os.environ['PATH']}"}
        folder.mkdir()
        for name, text in (("python", PROGRAM), ("failing", "none"), ("fetch_fails", "0")):
            self.write(name, text)

    def write(self, name, text):
        (self.folder / name).write_text(text)
        (self.folder / name).chmod(0o755)

    def noted(self, what):
        """What follows this word in its notes: [pid, GPU, threads, arguments] of every start."""
        path = self.folder / "events"
        events = path.read_text().splitlines() if path.exists() else []
        return [event.split(" ", 4)[1:] for event in events if event.startswith(what)]

    def k(self):
        return [line.split("--k ")[1].split()[0] for *_, line in self.noted("started")]

    def scene(self, *args):
        """Runs the seven runs of SCENE."""
        return run_all(*SCENE, "--run-dir", self.runs, *args, env=self.environment)

    def start_scene(self, *args):
        """Starts them in a session of their own, and waits for the first two."""
        self.hold.touch()
        options = {"env": os.environ | self.environment, "start_new_session": True}
        suite = subprocess.Popen([*BASH, *SCENE, "--run-dir", self.runs, *args], **options)
        wait_for(lambda: len(self.noted("started")) == 2)
        return suite


@pytest.fixture
def program(tmp_path):
    return Program(tmp_path / "a program")


@pytest.fixture(params=["GNU parallel", "one after another"])
def engine(request, program):
    """The two ways to run a list on one machine. The second is for machines without the first."""
    if request.param == "one after another":
        program.write("parallel", "#!/bin/sh\necho 'not GNU' >&2; exit 1\n")
    elif subprocess.run(["parallel", "--minversion", "1"], capture_output=True).returncode:
        pytest.skip("GNU parallel is not installed: apt-get install parallel")
    return request.param


def test_a_failing_run_is_shown_with_its_last_line_and_alone_runs_again(engine, program):
    program.write("fetch_fails", "1")
    assert program.scene().returncode == 1 and program.noted("started") == []  # without data
    program.write("fetch_fails", "0")
    program.write("failing", "--k 4")
    result = program.scene("--jobs", 2)
    assert result.returncode == 1 and "error: " in result.stderr
    assert sorted(program.k(), key=int) == K  # it does not stop the rest
    lines = result.stdout.splitlines()
    (failed,) = [i for i, line in enumerate(lines) if "something is wrong" in line]
    assert "exit code 3" in lines[failed] and " --k 4 " in lines[failed - 1]
    assert lines[-1].startswith("the scores: ") and str(program.runs) in lines[-1]
    done = (program.runs / "done.txt").read_text().splitlines()
    commands = listed(*SCENE, "--run-dir", program.runs, env=program.environment)
    assert sorted(done) == sorted(line for line in commands if " --k 4 " not in line)
    assert len(list((program.runs / "logs").glob("*.log"))) == 7

    program.write("failing", "none")
    lines = {"input": "\n".join(commands), "env": program.environment}
    assert run_all("run", "--run-dir", program.runs, **lines).returncode == 0
    assert program.k()[7:] == ["4"]  # what has succeeded is left out
    assert len((program.folder / "fetched").read_text().splitlines()) == 1
    assert "nothing is left" in program.scene().stdout and len(program.k()) == 8


@pytest.mark.parametrize("engine", ["GNU parallel"], indirect=True)
def test_runs_are_spread_over_the_gpus_and_the_cores(engine, program, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    suite = program.start_scene("--gpus", "3,5")  # one run per GPU
    assert {gpu for _, gpu, *_ in program.noted("started")} == {"3", "5"}
    program.hold.unlink()
    assert suite.wait(timeout=60) == 0 and sorted(program.k(), key=int) == K
    threads = str((len(os.sched_getaffinity(0)) + 1) // 2)
    used = {(gpu, count) for _, gpu, count, _ in program.noted("started")}
    assert used == {("3", threads), ("5", threads)}


@pytest.mark.parametrize("engine", ["GNU parallel"], indirect=True)
@pytest.mark.parametrize("how", ["Ctrl-C", "kill -9 of all"])
def test_a_stopped_suite_goes_on_when_called_again(engine, program, how):
    suite = program.start_scene("--jobs", "2")
    if how == "Ctrl-C":
        os.killpg(suite.pid, signal.SIGINT)
    else:
        subprocess.run(["pkill", "-KILL", "--session", str(suite.pid)], check=True)
    assert suite.wait(timeout=60) != 0
    assert len(program.noted("stopped")) == (2 if how == "Ctrl-C" else 0)
    program.hold.unlink()
    assert (program.runs / "done.txt").read_text() == ""
    assert program.scene("--jobs", "2").returncode == 0
    assert sorted(program.k()[2:], key=int) == K


@pytest.mark.slow
def test_smoke_collects_trains_and_evaluates(tmp_path):
    result = run_all("smoke", "--run-dir", tmp_path, "--steps", 200, "--device", "cpu")
    assert result.returncode == 0, result.stderr
    (evaluations,) = tmp_path.glob("cube-single-*/smoke-*/seed0/eval.csv")
    assert [row["step"] for row in read(evaluations)] == ["200"]


# --------------------------------------------------------------------- on Slurm
def test_a_list_longer_than_slurms_limit_is_one_array_of_1000_tasks(program):
    program.write("sbatch", f"#!/bin/bash\nprintf '%s\\0' \"$@\" >'{program.folder}/args'\n")
    options = ["--slurm", "--partition=gpu --time=24:00:00", "--run-dir", program.runs]
    assert run_all("all", *options, env=program.environment).returncode == 0
    args = (program.folder / "args").read_text().split("\0")
    assert {"--partition=gpu", "--time=24:00:00", "--array=1-1000", "--requeue"} <= {*args}
    script = args[args.index("--wrap") + 1]
    everything = listed("all", "--run-dir", program.runs, env=program.environment)
    expected = []
    for task in (1, 208, 209, 1000):
        environment = os.environ | program.environment | {"SLURM_ARRAY_TASK_ID": str(task)}
        subprocess.run(["bash", "-c", script], cwd=ROOT, env=environment, check=True)
        expected += everything[task - 1 :: 1000]
    assert (program.runs / "done.txt").read_text().splitlines() == expected and len(expected) == 10


@pytest.fixture
def slurm():
    """A Slurm of one node: a function that calls a program with it and returns what it prints."""
    folder = Path(tempfile.mkdtemp(dir="/tmp"))
    folder.chmod(0o755)  # munge insists on it
    node = ["bash", ROOT / "tests" / "slurm_node.sh"]
    environment = os.environ | {"SLURM_CONF": str(folder / "client.conf"), "PYTHON": sys.executable}
    options = {"env": environment, "text": True, "timeout": 600}
    try:
        started = subprocess.run([*node, "start", folder], capture_output=True, text=True)
        if started.returncode:
            pytest.skip(f"there is no Slurm here: {started.stderr}")
        yield lambda *command: subprocess.check_output([*map(str, command)], **options)
    finally:
        subprocess.run([*node, "stop", folder], check=True)
        shutil.rmtree(folder)


@pytest.mark.slow
def test_an_array_on_slurm_trains_and_a_task_that_starts_again_has_nothing_left(slurm, tmp_path):
    envs, flags = ["--envs", fake.NAME, "--seeds", "2"], ["--bc-coef", "1", *SMALL]
    slurm(*BASH, "drol", *envs, "--run-dir", tmp_path, "--slurm", "--wait", "--", *flags)
    assert len((tmp_path / "done.txt").read_text().splitlines()) == 2
    assert len(list(tmp_path.glob("*/*/seed*/eval.csv"))) == 2
    (out,) = (tmp_path / "logs").glob("slurm-*_1.out")
    assert "nothing is left" not in out.read_text()
    slurm("scontrol", "requeue", out.stem.removeprefix("slurm-"))
    wait_for(lambda: "nothing is left" in out.read_text(), seconds=120)
    assert "Restarts=1" in slurm("scontrol", "show", "job")
