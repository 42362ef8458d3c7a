"""Tests of README.md and docs/: links lead somewhere, tables hold the numbers of the files that
they name, code runs, commands are ones that the programs take."""

import csv
import functools
import importlib
import re
import shlex
import statistics
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import tyro

import drol
import fql

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "results").rglob("README.md"))]
PAGES += sorted((ROOT / "docs").glob("*.md"))
every_page = pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
CODE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


# -------------------- reading Markdown


def without_code(text):
    return CODE.sub("", text)


def anchors(path):
    """The anchors that GitHub makes of a page's headings."""
    headings = re.findall(r"^#+ (.*)$", without_code(path.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def code_blocks(page, heading, language):
    """The code blocks of a language below a heading."""
    section = re.split(rf"^#+ {heading}$", page.read_text(), maxsplit=1, flags=re.MULTILINE)[1]
    section = re.split(r"^#+ [A-Z]", section, maxsplit=1, flags=re.MULTILINE)[0]
    return [code for name, code in CODE.findall(section) if name == language]


def table_lines(text, heading, number):
    """The lines of a heading's table: which of them it is, from 0."""
    section = re.split(rf"^#+ {heading}$", without_code(text), maxsplit=1, flags=re.MULTILINE)[1]
    section = re.split(r"^#", section, maxsplit=1, flags=re.MULTILINE)[0]
    return re.findall(r"(?:^\|.*\n)+", section, re.MULTILINE)[number]


def cells(line):
    return [cell.strip().replace("\\", "") for cell in line.strip().strip("|").split("|")]


def rows_of(lines):
    """A table's rows, as dicts from the heads of its columns to its cells."""
    head, _, *rows = lines.splitlines()
    return [dict(zip(cells(head), cells(row), strict=True)) for row in rows]


@functools.cache
def read(path):
    """The rows of a CSV file below ROOT."""
    with open(ROOT / path, newline="") as file:
        return list(csv.DictReader(file))


def find(path, **values):
    """The only row of a CSV file with these values."""
    (row,) = [row for row in read(path) if values.items() <= row.items()]
    return row


def agrees(cell, value):
    """Whether a printed number is the value, rounded to the places that are printed."""
    number = cell.replace(",", "")
    places = len(number.partition(".")[2])
    return abs(float(number) - float(value)) <= 0.5 * 10**-places + 1e-9


# -------------------- links


@every_page
def test_links_lead_to_files_and_headings(page):
    links = re.findall(r"\]\(([^)\s]+)\)", without_code(page.read_text()))
    wrong = []
    for link in links:
        if link.startswith("https://"):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            wrong.append(link)
    assert not wrong


# -------------------- numbers


def scores(task, method, updates):
    """Of each seed's record, the mean of the last three evaluations up to a number of updates."""
    found = []
    for path in (ROOT / "results/reproduction/records" / task / method).glob("seed*/eval.csv"):
        table = pd.read_csv(path)
        table = table[table.step <= updates]
        if table.step.max() == updates:
            found.append(table.score[-3:].mean())
    return found


def check_results(rows):
    """Means over the seeds that have this number of updates, beside the published score."""
    weights = {"DROL(16)": "drol-k16-bc_coef{:g}", "FQL": "fql-alpha{:g}"}
    for row in rows:
        name, _, updates = row["task and updates"].partition(", ")
        program = drol if row["method"] == "DROL(16)" else fql
        family, _, number = name.partition("-task")
        args = program.Args(env_id=family, task=int(number) if number else None)
        env_name, _ = program.resolve(args)
        weight = args.bc_coef if program is drol else args.alpha
        folder = weights[row["method"]].format(weight)
        released = folder.replace("fql-", "fql-released-").replace("drol-", "drol-released-")
        for column, method in (("here (seeds)", folder), ("released code (seeds)", released)):
            expected = scores(env_name, method, int(updates.replace(",", "")))
            assert bool(row[column]) == bool(expected), (row, expected)
            if expected:
                score, seeds = re.fullmatch(r"(.*) \((\d+)\)", row[column]).groups()
                assert agrees(score, np.mean(expected)) and int(seeds) == len(expected)
        path = "testdata/published_per_task.csv"
        published = [x for x in read(path) if (x["task"], x["method"]) == (env_name, row["method"])]
        assert bool(row["published"]) == bool(published)
        assert not published or agrees(row["published"], published[0]["mean"])


def check_published(rows):
    """The papers' scores, and what they were made with."""
    assert {row["family"] for row in rows} == drol.PUBLISHED.keys() & PAPER
    for row in rows:
        check_setting(row, family=row["family"], task="1")
        star = find(SETTINGS, family=row["family"], task="1", suite="DROL*")
        assert row["K of DROL*"] == star["k"]
        published = find("testdata/published_results.csv", group=row["family"])
        assert all(agrees(row[name], published[column]) for name, column in COLUMNS.items())


def check_settings(rows):
    assert {row["family"] for row in rows} == drol.PUBLISHED.keys() & PAPER
    for row in rows:
        ours, theirs = drol.PUBLISHED[row["family"]], fql.PUBLISHED[row["family"]]
        discount = f"{ours[2]}" + (f" (FQL {theirs[2]})" if theirs[2] != ours[2] else "")
        expected = {"dataset": ours[0], "default task": f"{ours[1]}", "discount": discount}
        assert expected.items() <= row.items()
        check_setting(row, family=row["family"], task=row["default task"])
        star = find(SETTINGS, family=row["family"], task="1", suite="DROL*")
        assert row["DROL*"] == f"`--k {star['k']}`"


def check_setting(row, **keys):
    """The settings that families and D4RL's tasks have in common."""
    one, other = find(SETTINGS, suite="DROL(16)", **keys), find(SETTINGS, suite="FQL", **keys)
    assert float(row["bc_coef"]) == float(one["bc_coef"])
    assert float(row["alpha (FQL)"]) == float(other["alpha"])
    assert row.get("q_agg", one["q_agg"]) == one["q_agg"] == other["q_agg"]


def check_d4rl_settings(rows):
    names = [name for row in rows for name in row["task"].split(", ")]
    assert sorted(names) == sorted(x for x, row in drol.PUBLISHED.items() if not row[0])
    for row in rows:
        for name in row["task"].split(", "):
            check_setting(row, full_name=name)
            star = find(SETTINGS, full_name=name, suite="DROL*")
            flags = ["--k", star["k"]]
            if float(star["bc_coef"]) != drol.PUBLISHED[name][-1]:
                flags += ["--bc-coef", star["bc_coef"]]
            assert row["DROL*"].strip("`").split() == flags


def check_d4rl_scores(rows):
    for row, group in zip(rows, ("d4rl-antmaze", "d4rl-adroit"), strict=True):
        scores = find("testdata/published_results.csv", group=group)
        label = row.pop("")
        assert label == f"{group[5:].replace('adroit', 'Adroit')}, {scores['tasks']} tasks"
        assert all(agrees(row[name], scores[column]) for name, column in COLUMNS.items())


def check_speed(rows):
    """Medians over rounds, beside the ratios of each round. A row for every method."""
    path = "results/runtime/released_code.csv"
    assert [row[""] for row in rows] == list(dict.fromkeys(x["method"] for x in read(path)))
    for row in rows:
        rounds = [x for x in read(path) if x["method"] == row[""]]
        ours, theirs = ([float(x[k]) for x in rounds] for k in ("update_ms", "released_ms"))
        factors = [b / a for a, b in zip(ours, theirs, strict=True)]
        assert agrees(row["ms per update"], statistics.median(ours))
        assert agrees(row["released code, ms"], statistics.median(theirs))
        ratio = statistics.median(float(x["ratio"]) for x in rounds)
        assert agrees(row["ratio to the floor"], ratio)
        cell = row["times as fast, by round"].split(", ")
        assert len(cell) == len(factors) and all(map(agrees, cell, factors)), factors


def check_toy(rows):
    """Means over seeds at the weight of the picture."""
    table = pd.read_csv(ROOT / "results/toy/toy.csv")
    table = table[table.weight.isna() | (table.weight == 30)]
    assert [row[""] for row in rows] == ["data", "DROL, K = 1", "DROL, K = 16", "FQL"]
    for row in rows:
        runs = table[table.method == row[""]]
        assert len(runs) == (1 if row[""] == "data" else 5)
        assert agrees(row["mean Q"], runs.mean_q.mean())
        assert agrees(row["share in the support"], runs.in_support.mean())
        assert set(runs.modes_covered) == {int(row["modes covered"])}


def check_ksweep(rows):
    for row in rows:
        method = f"drol-k{row['K']}-bc_coef10"
        folder = "results/local/records/cube-single-play-singletask-task2-v0"
        found = []
        for seed in (0, 1):
            path = ROOT / folder / method / f"seed{seed}" / "eval.csv"
            assert path.exists() == bool(row[f"seed {seed}"])
            if path.exists():
                found.append(pd.read_csv(path).score[-3:].mean())
                assert agrees(row[f"seed {seed}"], found[-1])
        assert agrees(row["mean"], np.mean(found))


def check_random(rows):
    path = "results/d4rl_random.csv"
    assert [row["task"] for row in rows] == [x["env_id"] for x in read(path)]
    for row in rows:
        measured = find(path, env_id=row["task"])
        for name in ("episodes", "score", "standard error"):
            assert agrees(row[name], measured[name.replace(" ", "_")])


def check_experts(rows):
    """Each cell: the mean normalised return and its standard error."""
    path = "results/experts/experts.csv"
    names = [f"{row['task']}-expert-v1" for row in rows]
    assert names == list(dict.fromkeys(x["env_id"] for x in read(path)))
    for name, row in zip(names, rows, strict=True):
        for actions in ("mean", "sampled"):
            measured = find(path, env_id=name, actions=actions)
            score, error = row[f"{actions} actions"].split(" ± ")
            assert agrees(score, measured["score"])
            assert agrees(error, measured["standard_error"])


SETTINGS = "testdata/published_settings.csv"
PAPER = {row["group"] for row in read("testdata/published_results.csv")}
COLUMNS = {"DROL(16)": "DROL16", "DROL*": "DROLstar", "FQL": "FQL"}
TABLES = {  # page, heading, which of its tables, check
    "results": ("README.md", "Results", 0, check_results),
    "published scores": ("README.md", "As a baseline for a paper", 0, check_published),
    "settings": ("docs/settings.md", "OGBench", 0, check_settings),
    "settings of D4RL": ("docs/settings.md", "D4RL", 0, check_d4rl_settings),
    "scores of D4RL": ("docs/data.md", "D4RL", 1, check_d4rl_scores),
    "experts": ("results/experts/README.md", "Is D4RL.*", 0, check_experts),
    "speed": ("docs/speed.md", "On a CPU", 0, check_speed),
    "toy": ("results/toy/README.md", "What does routing.*", 0, check_toy),
    "sweep of K": ("results/local/README.md", "What does K.*", 0, check_ksweep),
    "random actions": ("docs/data.md", "How near it is to MuJoCo 2.1", 0, check_random),
}
every_table = pytest.mark.parametrize("name", TABLES)


@every_table
def test_numbers_are_those_of_the_files(name):
    page, heading, number, check = TABLES[name]
    check(rows_of(table_lines((ROOT / page).read_text(), heading, number)))


@every_table
def test_a_changed_number_is_noticed(name):
    page, heading, number, check = TABLES[name]
    lines = table_lines((ROOT / page).read_text(), heading, number)
    for match in re.finditer(r"\d(?!\d)", lines):  # the last digit of every number
        other = str((int(match[0]) + 1) % 10)
        changed = lines[: match.start()] + other + lines[match.end() :]
        with pytest.raises((AssertionError, LookupError, OSError, ValueError, SystemExit)):
            check(rows_of(changed))
            pytest.fail(f"unnoticed: {changed.splitlines()[lines[: match.start()].count(chr(10))]}")


def test_numbers_beside_the_released_code():
    """Each cell: a seed's success rates in the order of the updates."""
    curves = pd.read_csv(ROOT / "results" / "released_code" / "curves.csv")
    curves = curves[curves.metric == "success"].sort_values("step")
    methods = {"DROL(4)": "drol-k4", "FQL": "fql-alpha300"}
    codes = {"released JAX": "released", "this code": "ours"}
    lines = (ROOT / "results/released_code/README.md").read_text().splitlines()
    for line in lines:
        if not line.startswith(("| DROL(4)", "| FQL")):
            continue
        method, code, *seeds, mean = cells(line)
        runs = curves[(curves.method == methods[method]) & (curves.code == codes[code])]
        expected = [run.value.tolist() for _, run in runs.groupby("seed")]
        assert [[float(x) for x in cell.split()] for cell in seeds] == expected
        assert agrees(mean, np.mean([run[-3:] for run in expected]))


def test_memory_on_the_device():
    lines = table_lines((ROOT / "docs/data.md").read_text(), "OGBench", 0)
    for row in rows_of(lines):
        floats = 2 * int(row["O"]) + int(row["A"]) + 2  # a reward and a mask
        transitions = 1e6 * int(row["transitions"].removesuffix("M"))
        assert agrees(row["GB on the device"], transitions * floats * 4 / 1e9), row


# -------------------- code and commands


def test_the_method_in_short_is_the_actor_loss():
    (code,) = code_blocks(ROOT / "README.md", "The method", "python")
    generator = torch.Generator().manual_seed(0)
    networks = drol.make_networks(3, 2, (16, 16), generator)
    actor, critic = networks["actor"], networks["critic"]
    B, bc_coef = 8, 3.0
    s, a = torch.randn(B, 3, generator=generator), torch.rand(B, 2, generator=generator) * 2 - 1
    latents = drol.sample_latents(B, 4, 2, generator=generator)

    def broadcasting_actor(s, z):
        return actor(s[:, None].expand(-1, z.shape[1], -1) if z.dim() == 3 else s, z)

    names = {"actor": broadcasting_actor, "critic_with_constant_parameters": critic}
    names |= {"s": s, "a": a, "z": latents, "B": B, "bc_coef": bc_coef}
    exec(code, names)
    batch = {"observations": s, "actions": a}
    loss, metrics = drol.actor_loss(actor, critic, batch, latents, bc_coef)
    assert torch.allclose(names["loss"], loss)
    assert torch.allclose(names["bc_loss"], metrics["bc_loss"])


def test_copied_section_runs_with_torch_alone(tmp_path):
    """The README's own commands, in a folder with drol.py and nothing else."""
    page = ROOT / "README.md"
    cut, *_ = code_blocks(page, "In your own code", "")
    snippet, _ = code_blocks(page, "In your own code", "python")
    (tmp_path / "drol.py").write_text((ROOT / "drol.py").read_text())
    subprocess.run(["bash", "-ec", cut], cwd=tmp_path, check=True)
    (tmp_path / "drol.py").unlink()
    (tmp_path / "snippet.py").write_text(snippet)
    check = """
import runpy, sys
names = runpy.run_path("snippet.py")
assert all(p.grad.abs().sum() > 0 for p in names["actor"].parameters())
assert all(p.grad is None for p in names["critic"].parameters())
assert names["metrics"]["bc_loss"] > 0
assert not {"drol", "ogbench", "gymnasium", "tyro", "pandas", "tensorboard"} & sys.modules.keys()
"""
    result = subprocess.run(
        [sys.executable, "-c", check], cwd=tmp_path, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr


def commands(page):
    """The commands of code blocks without a language, and those between backticks."""
    text = page.read_text()
    blocks = "".join(code for language, code in CODE.findall(text) if not language)
    lines = blocks.replace("\\\n", " ").splitlines()
    lines += [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", without_code(text))]
    return [shlex.split(line, comments=True) for line in lines if "sed -n" not in line]


@pytest.fixture(scope="module")
def usage():
    """What run_all.sh prints of itself."""
    result = subprocess.run(["bash", ROOT / "run_all.sh"], capture_output=True, text=True)
    return result.stdout


@every_page
def test_commands_are_taken(page, usage):
    """Each program's flags are parsed, and environments looked up; nothing is run."""
    for words in commands(page):
        while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):
            words = words[1:]
        if words[:2] == ["bash", "run_all.sh"] and words[2:]:
            assert re.search(rf"^ +(bash run_all.sh )?{words[2]}\b", usage, re.MULTILINE), words
            for word in words[3 : words.index("--") if "--" in words else None]:
                if re.fullmatch("--[a-z-]+", word) and words[2] not in ("test", "figures"):
                    assert f" {word} " in usage, words
        elif words[:1] == ["python"] and words[1].endswith(".py") and "--help" not in words:
            if words[1].endswith("released_code.py"):
                pytest.importorskip("jax")
            name = words[1].removesuffix(".py").replace("/", ".")
            module = importlib.import_module(name)
            if not hasattr(module, "Args"):  # takes none
                assert not words[2:], words
                continue
            args = tyro.cli(getattr(module, "BenchArgs", module.Args), args=words[2:])
            if module in (drol, fql):
                module.resolve(args)


def test_quoted_errors_are_those_of_the_programs():
    page = " ".join((ROOT / "docs" / "troubleshooting.md").read_text().split())
    quoted = re.findall(r"\*\*error: (.+?)(?: \.\.\.)?\*\*", page)
    assert len(quoted) == 3
    for text in quoted:
        assert f"error: {text}" in (ROOT / "drol.py").read_text(), text


def test_numbers_of_runs():
    """The suites' lists are as long as docs/cluster.md says."""
    text = (ROOT / "docs/cluster.md").read_text()
    for row in rows_of(table_lines(text, "Suites", 0)):
        command = ["bash", ROOT / "run_all.sh", row["suite"].strip("`"), "--list"]
        result = subprocess.run(command, capture_output=True, text=True, check=True)
        assert len(result.stdout.splitlines()) == int(row["runs"].replace(",", ""))
    readme = (ROOT / "README.md").read_text()
    for suite, runs in re.findall(r"`(\w+)` has ([\d,]+) runs,", readme):
        assert f"| `{suite}` | {runs} |" in text
    assert "`d4rl` 392" in readme and "| `d4rl` | 392 |" in text


def test_csv_files_have_rows_of_one_length():
    paths = list((ROOT / "results").rglob("*.csv"))
    assert len(paths) > 20
    for path in paths:
        with path.open(newline="") as file:
            assert len({len(row) for row in csv.reader(file)}) == 1, path
    assert all(float(row["seconds"]) > 0 for row in read("results/times.csv"))
