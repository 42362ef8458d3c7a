"""Tests of README.md and docs/: links lead somewhere, tables hold the numbers of the files that
they name, code runs, commands are ones that the programs take."""

import csv
import functools
import importlib
import json
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
from scipy import stats

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


def check_released(rows):
    """Each cell: a seed's success rates in the order of the updates."""
    curves = pd.read_csv(ROOT / "results" / "released_code" / "curves.csv")
    curves = curves[curves.metric == "success"].sort_values("step")
    methods = {"DROL(4)": "drol-k4", "FQL": "fql-alpha300"}
    expected = {}
    for (method, code, seed), run in curves.groupby(["method", "code", "seed"]):
        expected[method, code, f"seed {seed}"] = run.value.tolist()
    for row in rows:
        method, code = row.pop("").split(", ")
        for seed, cell in row.items():
            key = methods[method], {"here": "ours"}.get(code, code), seed
            assert [float(x) for x in cell.split()] == expected.pop(key)
    assert not expected


METHODS = {
    "DROL(16)": "drol-k16",
    "FQL": "fql",
    "FQL, released code": "fql-released-code",
    "FQL, released random numbers": "fql-released-random-numbers",
}


def check_reproduction(rows):
    """Of each run its last evaluation, which its record has too, beside the published score."""
    table = pd.read_csv(ROOT / "results" / "reproduction" / "table.csv")
    table = table[table.method.isin(["DROL(16)", "FQL"])]
    expected = table.loc[table.groupby(["task", "method"]).updates.idxmax()]
    assert len(rows) == len(expected)
    for row in rows:
        ours = expected[(expected.task == row["task"]) & (expected.method == row["method"])].iloc[0]
        score, low, high = re.fullmatch(r"(.*) \((.*) to (.*)\)", row["here"]).groups()
        assert agrees(score, ours.score) and agrees(low, ours.low) and agrees(high, ours.high)
        assert row["updates here"] == f"{ours.updates:,}"
        method = METHODS[row["method"]]
        record = f"results/reproduction/records/{row['task']}/{method}/seed{ours.seed}/eval.csv"
        assert agrees(score, find(record, step=str(ours.updates))["score"])
        full = row["task"].replace("-task", "-singletask-task")
        full = full if full.endswith("-v1") else f"{full}-v0"
        path = "testdata/published_per_task.csv"
        if row["published"] == "averages only":
            assert not [x for x in read(path) if (x["task"], x["method"]) == (full, row["method"])]
        else:
            published = find(path, task=full, method=row["method"])
            pattern = r"(.*) ± (.*) \((.*) updates\)"
            mean, spread, updates = re.fullmatch(pattern, row["published"]).groups()
            assert agrees(mean, published["mean"]) and agrees(spread, published["spread"])
            assert updates == ("500,000" if full.endswith("-v1") else "1,000,000")


def check_curves(task, rows):
    """Each cell: a run's evaluation and its interval."""
    folder = "results/reproduction"
    for row in rows:
        updates = row.pop("updates").replace(",", "")
        for method, cell in row.items():
            if not cell:
                continue
            score, _, interval = cell.partition(" (")
            low, high = interval.rstrip(")").split(" to ")
            if method == "public re-run":
                found = find(f"{folder}/public_fql.csv", updates=updates)
            else:
                run = METHODS[method]
                config = ROOT / folder / "records" / task / run / "seed0" / "config.json"
                data = json.loads(config.read_text())["data"]
                values = {"task": task, "method": method, "seed": "0", "updates": updates}
                found = find(f"{folder}/table.csv", data=data["fingerprint"], **values)
            assert agrees(score, found["score"])
            assert agrees(low, found["low"]) and agrees(high, found["high"])


def check_seeds(rows):
    """Each cell: the score after 5,000 updates of a seed on the data of the newest runs."""
    table = pd.read_csv(ROOT / "results" / "reproduction" / "table.csv")
    table = table[(table.task == "door-expert-v1") & (table.updates == 5000)]
    table = table[table.data == table[table.method == "FQL, released code"].data.iloc[0]]
    expected = {(x.method, str(x.seed)): x.score for x in table.itertuples()}
    expected = {key: score for key, score in expected.items() if key[0] != "DROL(16)"}
    for row in rows:
        seed = row.pop("seed")
        for method, cell in row.items():
            assert not cell or agrees(cell, expected.pop((method, seed)))
    assert not expected


def check_settings(rows):
    assert sorted(row["family"] for row in rows) == sorted(drol.PRESETS.keys() & PAPER)
    for row in rows:
        family = row["family"]
        preset, other = drol.PRESETS[family], fql.PRESETS[family]
        discount = f"{preset.discount}"
        if other.discount != preset.discount:
            discount += f" (FQL {other.discount})"
        assert (row["dataset"], row["discount"]) == (preset.dataset, discount)
        assert row["default task"] == str(preset.default_task)
        check_setting(row, family=family, task=row["default task"])
        star = find(SETTINGS, family=family, task="1", suite="DROL*")
        assert row["K*"] == star["k"]
        scores = find("testdata/published_results.csv", group=family)
        for name, column in COLUMNS.items():
            assert agrees(row[name], scores[column])


def check_setting(row, **keys):
    """The settings that families and D4RL's tasks have in common."""
    one, other = find(SETTINGS, suite="DROL(16)", **keys), find(SETTINGS, suite="FQL", **keys)
    assert float(row["bc_coef"]) == float(one["bc_coef"])
    assert float(row["alpha (FQL)"]) == float(other["alpha"])
    assert row.get("q_agg", one["q_agg"]) == one["q_agg"] == other["q_agg"]


def check_d4rl_settings(rows):
    names = [name for row in rows for name in row["task"].split(", ")]
    assert sorted(names) == sorted(drol.D4RL)
    for row in rows:
        for name in row["task"].split(", "):
            check_setting(row, full_name=name)
            star = find(SETTINGS, full_name=name, suite="DROL*")
            flags = ["--k", star["k"]]
            if float(star["bc_coef"]) != drol.D4RL[name]:
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
    assert [row["task"] for row in rows] == list(dict.fromkeys(x["env_id"] for x in read(path)))
    for row in rows:
        for actions in ("mean", "sampled"):
            measured = find(path, env_id=row["task"], actions=actions)
            score, error = row[f"{actions} actions"].split(" ± ")
            assert agrees(score, measured["score"])
            assert agrees(error, measured["standard_error"])


SETTINGS = "testdata/published_settings.csv"
PAPER = {row["group"] for row in read("testdata/published_results.csv")}
COLUMNS = {"DROL(16)": "DROL16", "DROL*": "DROLstar", "FQL": "FQL"}
TABLES = {  # page, heading, which of its tables, check
    "released code": ("README.md", "Results", 0, check_released),
    "reproduction": ("README.md", "Results", 1, check_reproduction),
    **{
        task: ("results/reproduction/README.md", task, 0, functools.partial(check_curves, task))
        for task in ("cube-single-play-task2", "door-expert-v1", "pen-expert-v1")
    },
    "seeds": ("results/reproduction/README.md", "door-expert-v1", 1, check_seeds),
    "settings": ("README.md", "Settings", 0, check_settings),
    "speed": ("README.md", "Speed", 0, check_speed),
    "settings of D4RL": ("docs/data.md", "Published settings", 0, check_d4rl_settings),
    "scores of D4RL": ("docs/data.md", "Published settings", 1, check_d4rl_scores),
    "experts": ("docs/data.md", "Expert data, made again", 0, check_experts),
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
        with pytest.raises((AssertionError, LookupError, OSError, ValueError)):
            check(rows_of(changed))
            pytest.fail(f"unnoticed: {changed.splitlines()[lines[: match.start()].count(chr(10))]}")


def test_numbers_of_the_toy():
    """The sentences below the animation."""
    text = " ".join((ROOT / "README.md").read_text().split())
    data = find("results/toy/toy.csv", method="data")
    k16 = find("results/toy/toy.csv", method="DROL, K = 16", update="3000")
    flow = find("results/toy/toy.csv", method="FQL", update="3000")
    pattern = r"mean Q ([\d.]+), above the data's ([\d.]+); ([\d.]+) of its samples "
    pattern += r".* with mean Q ([\d.]+) and ([\d.]+) in the support"
    cells = re.search(pattern, text).groups()
    values = (k16["mean_q"], data["mean_q"], k16["in_support"], flow["mean_q"], flow["in_support"])
    assert all(map(agrees, cells, values)), values
    assert float(k16["modes_covered"]) == float(flow["modes_covered"]) == 1


def test_numbers_of_the_frontier():
    """Of the weights whose seeds all cover all modes, the one with most samples in the support."""
    text = " ".join((ROOT / "README.md").read_text().split())
    pattern = r"is ([\d.]+) for DROL \(weight (\d+), mean Q ([\d.]+)\) and ([\d.]+) for FQL "
    cells = re.search(pattern + r"\(weight (\d+), mean Q ([\d.]+)\)", text).groups()
    table = pd.read_csv(ROOT / "results" / "toy" / "frontier.csv")
    for name, (support, weight, q) in (("DROL, K = 16", cells[:3]), ("FQL", cells[3:])):
        rows = table[table.method == name].groupby("weight")
        means = rows[["mean_q", "in_support"]].mean()[rows.modes_covered.min() == 1]
        best = means.in_support.idxmax()
        assert float(weight) == best and (rows.seed.nunique() == 5).all()
        assert agrees(support, means.in_support[best]) and agrees(q, means.mean_q[best])


def test_numbers_of_the_seeds():
    """The sentence on FQL after 5,000 updates, of both codes."""
    text = " ".join((ROOT / "README.md").read_text().split())
    pattern = r"(\d+) ± (\d+) over eight seeds, the released code (\d+) ± (\d+) \(p = ([\d.]+)\)"
    *cells, p, within = re.search(pattern + r"; .* within (\d+) points", text).groups()
    page = (ROOT / "results" / "reproduction" / "README.md").read_text()
    seeds = pd.DataFrame(rows_of(table_lines(page, "door-expert-v1", 1))).apply(pd.to_numeric)
    for i, name in enumerate(("FQL", "FQL, released code")):
        assert seeds[name].count() == 8
        assert agrees(cells[2 * i], seeds[name].mean())
        assert agrees(cells[2 * i + 1], seeds[name].std())
    codes = seeds["FQL"], seeds["FQL, released code"]
    test = stats.permutation_test(codes, lambda x, y: np.mean(x) - np.mean(y), n_resamples=np.inf)
    assert agrees(p, test.pvalue)
    difference = seeds["FQL, released random numbers"] - seeds["FQL, released code"]
    assert difference.count() == 4 and difference.abs().max() <= float(within)


def test_scores_of_the_released_code():
    """The sentence on the released FQL after as many updates as the table's last evaluations."""
    text = " ".join((ROOT / "README.md").read_text().split())
    pattern = r"cube-single (\d+) \(run by others\), door-expert ([\d.]+), pen-expert ([\d.]+) \("
    public, *cells = re.search(pattern, text).groups()
    assert agrees(public, find("results/reproduction/public_fql.csv", updates="100000")["score"])
    for cell, task in zip(cells, ("door-expert-v1", "pen-expert-v1"), strict=True):
        record = f"results/reproduction/records/{task}/fql-released-code/seed0/eval.csv"
        assert agrees(cell, find(record, step="30000")["score"])


def test_scores_of_the_demo():
    text = " ".join((ROOT / "README.md").read_text().split())
    count, low, high = re.search(r"(\w+) such runs .* rate of (\d+) to (\d+) %", text).groups()
    scores = [float(row["score"]) for row in read("results/demo.csv")]
    assert ["Seven", "Eight"].index(count) + 7 == len(scores)
    assert agrees(low, min(scores)) and agrees(high, max(scores))


def test_memory_on_the_device():
    lines = table_lines((ROOT / "docs/data.md").read_text(), "OGBench", 0)
    for row in rows_of(lines):
        floats = 2 * int(row["O"]) + int(row["A"]) + 2  # a reward and a mask
        transitions = 1e6 * int(row["transitions"].removesuffix("M"))
        assert agrees(row["GB on the device"], transitions * floats * 4 / 1e9), row


# -------------------- code and commands


def test_idea_is_the_actor_loss():
    (code,) = code_blocks(ROOT / "README.md", "The idea", "python")
    generator = torch.Generator().manual_seed(0)
    networks = drol.make_networks(3, 2, (16, 16), generator)
    actor, critic = networks["actor"], networks["critic"]
    B, bc_coef = 8, 3.0
    s, a = torch.randn(B, 3, generator=generator), torch.rand(B, 2, generator=generator) * 2 - 1
    latents = drol.sample_latents(B, 4, 2, generator=generator)

    def broadcasting_actor(s, z):
        return actor(s[:, None].expand(-1, z.shape[1], -1) if z.dim() == 3 else s, z)

    names = {"actor": broadcasting_actor, "critic_with_constant_parameters": critic}
    names |= {"s": s, "a": a, "latents": latents, "B": B, "bc_coef": bc_coef}
    exec(code, names)
    batch = {"observations": s, "actions": a}
    loss, metrics = drol.actor_loss(actor, critic, batch, latents, bc_coef, "min", True)
    assert torch.allclose(names["loss"], loss)
    assert torch.allclose(names["bc_loss"], metrics["bc_loss"])


def test_copied_section_runs_with_torch_alone(tmp_path):
    """The README's own commands, in a folder with drol.py and nothing else."""
    page = ROOT / "README.md"
    cut, *_ = code_blocks(page, "Reading and copying", "")
    snippet, _ = code_blocks(page, "Reading and copying", "python")
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
            name = words[1].removesuffix(".py").replace("/", ".")
            module = importlib.import_module(name)
            if not hasattr(module, "Args"):  # takes none
                assert not words[2:], words
                continue
            args = tyro.cli(module.Args, args=words[2:])
            if module in (drol, fql):
                module.resolve(args, set())


def test_numbers_of_runs():
    """The suites' lists are as long as docs/cluster.md says."""
    text = (ROOT / "docs/cluster.md").read_text()
    for row in rows_of(table_lines(text, "Suites", 0)):
        command = ["bash", ROOT / "run_all.sh", row["suite"].strip("`"), "--list"]
        result = subprocess.run(command, capture_output=True, text=True, check=True)
        assert len(result.stdout.splitlines()) == int(row["runs"].replace(",", ""))
    readme = (ROOT / "README.md").read_text()
    for suite, runs in re.findall(r"run_all.sh (\w+) .*# ([\d,]+) runs", readme):
        assert f"| `{suite}` | {runs} |" in text
