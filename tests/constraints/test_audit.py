"""No text of the corpus is ever run: Python's own audit events say what compiling and evaluating all of it does."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SCRIPT = """
import ast, sys
from pathlib import Path

import numpy as np

from grape.constraints import compile_condition, compile_cost, load_constraints
from grape.constraints.answers import parse_answer
from grape.errors import ConstraintError
from tests.constraints.corpus import NAMES, cases, three_rows, write_file

seen, armed, folder = {}, False, Path(sys.argv[1])

def hook(event, arguments):
    global armed
    if not armed or event == "builtins.id":  # numpy asks for an object's identity, which reaches nothing
        return
    armed = False  # the hook's own look at its caller is no event
    if event == "compile":
        caller = sys._getframe(1)  # ast.parse compiles to a tree, never to code
        if caller.f_code is ast.parse.__code__ and caller.f_locals["flags"] & ast.PyCF_ONLY_AST:
            event = "compile to a tree"
    seen[event] = seen.get(event, 0) + 1
    armed = True

def attempt(function, *arguments, **keywords):
    global armed
    armed = True
    try:
        function(*arguments, **keywords)
    except ConstraintError:
        pass
    finally:
        armed = False

table = three_rows()
expressions, answers, files, accepted = map(cases, ("expressions", "answers", "files", "accepted_answers"))
attempt(compile_cost("1 +" " 1").evaluate, table)  # what numpy and the parser load at first use is loaded
paths = [write_file(folder, case).rename(folder / f"{i}.{case['suffix']}") for i, case in enumerate(files)]
for suffix in ("json", "yaml"):
    (folder / f"a.{suffix}").write_text('{"instruction": "a", "stages": [{"name": "a", "done_when": "goal(0)"}]}')
    load_constraints(folder / f"a.{suffix}")
sys.addaudithook(hook)

for case in expressions:
    for compiler in (compile_cost, compile_condition):
        attempt(lambda: compiler(case["text"]).evaluate(table))
for case in answers + accepted:
    attempt(parse_answer, case["text"], instruction="a", keypoint_names=NAMES, num_goals=1, source="by hand")
quiet = dict(seen)
for path in paths:
    attempt(load_constraints, path)
assert set(quiet) == {"compile to a tree"} and quiet["compile to a tree"] > 1000, quiet
assert set(seen) == {"compile to a tree", "open"}, seen
assert seen["open"] == len(paths), seen  # the constraint files themselves

# the hook does see what it is there for
for source in ("eval('1')", "open('/dev/null').close()", "compile('1', '', 'eval')", "__import__('this_is_nowhere')"):
    before = dict(seen)
    armed = True
    try:
        eval(source)
    except ImportError:
        pass
    armed = False
    assert seen.get("exec", 0) > before.get("exec", 0) and seen["compile"] > before.get("compile", 0)
assert {"exec", "compile", "open", "import"} <= set(seen)
print("audited", quiet["compile to a tree"])
"""


def test_nothing_but_a_syntax_tree_is_ever_made_of_hostile_text(repository: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path)], cwd=repository, capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.startswith("audited ")
