"""README.md and docs/: links lead somewhere, code runs, commands are those of the programs."""

import importlib
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import tyro

import drol
import fql

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "results").rglob("README.md"))]
PAGES += sorted((ROOT / "docs").glob("*.md"))
every_page = pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
CODE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def anchors(path):
    """The anchors that GitHub makes of a page's headings."""
    headings = re.findall(r"^#+ (.*)$", CODE.sub("", path.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@every_page
def test_links_lead_to_files_and_headings(page):
    for link in re.findall(r"\]\(([^)]+)\)", CODE.sub("", page.read_text())):
        if link.startswith("http"):
            continue
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@every_page
def test_commands_are_taken(page):
    """Modules and scripts are there, and the programs parse and resolve their flags."""
    text = page.read_text().replace("\\\n", " ")
    commands = [line for _, block in CODE.findall(text) for line in block.splitlines()]
    commands += re.findall(r"`(python [^`]*|bash [^`]*)`", text)
    for command in filter(re.compile("(python|bash) ").match, commands):
        words = shlex.split(command, comments=True)
        if words[:2] == ["python", "-m"] and words[2] != "pytest":
            assert importlib.util.find_spec(words[2]), command
        elif words[:1] == ["bash"]:
            assert (ROOT / words[1]).exists(), command
        elif words[:1] == ["python"] and words[1] in ("drol.py", "fql.py"):
            program = {"drol.py": drol, "fql.py": fql}[words[1]]
            if "--help" not in words:
                program.resolve(tyro.cli(program.Args, args=words[2:]))


def test_the_copied_section_runs_with_torch_alone(tmp_path):
    blocks = [code for _, code in CODE.findall((ROOT / "README.md").read_text())]
    (copy,) = [code for code in blocks if "> routing.py" in code]
    copy = copy.replace("drol.py", f'"{ROOT}/drol.py"')
    subprocess.run(copy, shell=True, check=True, cwd=tmp_path, executable="/bin/bash")
    (example,) = [code for code in blocks if "from routing import" in code]
    (tmp_path / "example.py").write_text(example)
    words = [sys.executable, "example.py"]
    found = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True)
    assert "'bc_loss'" in found.stdout, found.stderr
