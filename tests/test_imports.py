"""Who may import whom: the floors of the house, and what a command may load before it must."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "mlxchat"
MODULES = sorted(PACKAGE.rglob("*.py"))

# Imports point down or stay in their folder.
FLOORS = {
    "__init__": 0,
    "errors": 0,
    "paths": 0,
    "settings": 0,
    "model": 1,
    "engine": 2,
    "chat": 3,
    "bench": 3,
    "lens": 2,
    "cli": 4,
    "__main__": 5,
}
# Where a library may be named at all, as folders or files below the package.
ALLOWED = {
    "click": ("cli/",),
    "prompt_toolkit": ("cli/",),
    "rich": ("cli/",),
    # bench/peer_process.py is mlx-lm under measurement, in a process of its own.
    "mlx": ("engine/", "model/", "lens/", "bench/peer_process.py"),
    "mlx_lm": (
        "model/zoo.py",
        "model/zoo_loading.py",
        "model/zoo_float32.py",
        "model/zoo_batch.py",
        "model/loader.py",
        "model/tokenizer_files.py",
        "bench/peer_process.py",
    ),
    "transformers": ("model/loader.py", "model/tokenizer_files.py"),
    "torch": (),
    "llguidance": ("engine/grammar.py", "engine/constraint.py"),
}
NEVER_AT_IMPORT = {"mlx_lm", "transformers", "llguidance"}
HEAVY = (
    "mlx",
    "mlx_lm",
    "transformers",
    "tokenizers",
    "jinja2",
    "huggingface_hub",
    "rich",
    "prompt_toolkit",
    "numpy",
    "asyncio",
    "sqlite3",
    "llguidance",
)


def imported(node: ast.AST, module: Path) -> list[str]:
    """Returns the dotted names that an import statement names."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        base = node.module or ""
        if node.level:
            parts = ("mlxchat", *module.relative_to(PACKAGE).parts)[: -node.level]
            base = ".".join([*parts, base]).rstrip(".")
        return [base, *(f"{base}.{alias.name}" for alias in node.names)]
    return []


def all_imports(module: Path) -> list[str]:
    tree = ast.parse(module.read_text())
    return [name for node in ast.walk(tree) for name in imported(node, module)]


def import_time_imports(module: Path) -> list[str]:
    """Returns what is imported when the module is, leaving out functions and TYPE_CHECKING."""
    names, todo = [], list(ast.parse(module.read_text()).body)
    while todo:
        node = todo.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            todo += node.orelse
            continue
        names += imported(node, module)
        todo += ast.iter_child_nodes(node)
    return names


def floor_of(dotted: str) -> tuple[int, str]:
    """Returns the floor of a dotted name and its folder; the modules of floor 0 share one."""
    part = [*dotted.split("."), "__init__"][1]
    floor = FLOORS.get(part, 0)
    return floor, part if floor else ""


def relative(module: Path) -> str:
    return module.relative_to(PACKAGE).as_posix()


@pytest.mark.parametrize("module", MODULES, ids=relative)
def test_imports_point_down(module):
    """A module imports from its own folder and the floors below only."""
    own_floor, own_part = floor_of(
        "mlxchat." + relative(module).removesuffix(".py").replace("/", ".")
    )
    for name in all_imports(module):
        if name.split(".")[0] == "mlxchat":
            floor, part = floor_of(name)
            assert floor < own_floor or part == own_part, name


@pytest.mark.parametrize("module", MODULES, ids=relative)
def test_libraries_live_where_they_belong(module):
    """Click lives in cli/, MLX in engine/, model/ and lens/, mlx-lm in a few files."""
    for name in all_imports(module):
        places = ALLOWED.get(name.split(".")[0])
        assert places is None or relative(module).startswith(places), name


@pytest.mark.parametrize("module", MODULES, ids=relative)
def test_mlx_lm_is_never_imported_with_a_module(module):
    """mlx-lm and transformers take a second to import; these are met inside functions only."""
    assert not NEVER_AT_IMPORT & {name.split(".")[0] for name in import_time_imports(module)}


def loaded_by(code: str, *arguments: str) -> set[str]:
    """Runs code that prints a JSON list of heavy modules as its last line."""
    prelude = f"import sys, json\nheavy = lambda: [m for m in {HEAVY!r} if m in sys.modules]\n"
    done = subprocess.run(
        [sys.executable, "-c", prelude + code, *arguments],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        cwd=PACKAGE.parent,
        timeout=60,
        check=True,
    )
    return set(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize("arguments", [["--help"], ["chat", "--help"], ["--version"], ["nonsense"]])
def test_help_is_light(arguments):
    """Help and usage errors load neither MLX nor any other heavy library."""
    code = """
from mlxchat.cli.main import cli
try:
    cli(sys.argv[1:])
except SystemExit:
    print()
    print(json.dumps(heavy()))
"""
    assert loaded_by(code, *arguments) == set()


def test_the_session_is_light():
    """The session's module can be imported by the main thread: nothing heavy comes with it."""
    assert loaded_by("import mlxchat.chat.session\nprint(json.dumps(heavy()))") == set()


AT_OPEN = """
import os
from mlxchat.cli import options
def reached(*_, **__):
    print()
    print(json.dumps([*heavy(), *(m for m in sys.modules if m == 'mlxchat.chat.session')]))
    sys.stdout.flush()
    os._exit(0)
options.Request.open = reached
from mlxchat.cli.main import cli
"""


def test_generate_reaches_the_session_light():
    """`generate` has loaded nothing heavy when it opens the session."""
    assert loaded_by(AT_OPEN + "cli(['generate', 'hi'])") == set()


def test_chat_draws_its_prompt_first():
    """The REPL draws its prompt with prompt-toolkit alone, before the session is imported."""
    code = """
from mlxchat.cli.repl import Repl
Repl._begin = reached  # called after the first drawing
from prompt_toolkit.application import create_app_session
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output import DummyOutput
sys.stdin.isatty = sys.stdout.isatty = lambda: True
with create_pipe_input() as pipe, create_app_session(pipe, DummyOutput()):
    cli(['chat'])
"""
    assert loaded_by(AT_OPEN + code) <= {"prompt_toolkit", "asyncio"}


def test_the_prompt_needs_no_floor_below():
    """Until the prompt is drawn nothing of chat, engine, model, bench and lens is imported.

    Nor are other commands than `chat`, the slash commands, the keys: each takes a part of the time
    to the prompt.
    """
    code = """
BELOW = tuple(f'mlxchat.{name}.' for name in ('chat', 'engine', 'model', 'bench', 'lens'))
NAMES = 'generate embed models history inspect cache bench timings config doctor'.split()
NAMES += 'slash completion keys answer_keys lines live wrap turn drafts attachments'.split()
OTHERS = {f'mlxchat.cli.{name}' for name in NAMES}
heavy = lambda: [m for m in sys.modules if m.startswith(BELOW) or m in OTHERS]
from mlxchat.cli.repl import Repl
Repl._begin = reached
from prompt_toolkit.application import create_app_session
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output import DummyOutput
sys.stdin.isatty = sys.stdout.isatty = lambda: True
with create_pipe_input() as pipe, create_app_session(pipe, DummyOutput()):
    cli(['chat'])
"""
    assert loaded_by(AT_OPEN + code) == set()


def test_a_whole_answer_needs_no_big_library():
    """An answer of the built-in model is given without mlx-lm, transformers, Hub client or Rich."""
    code = """
from mlxchat.cli.main import cli
try:
    cli(['generate', 'hello', '--max-tokens', '1'])
except SystemExit as leave:
    assert not leave.code
    print()
    print(json.dumps(heavy()))
"""
    assert loaded_by(code) <= {"mlx", "tokenizers", "jinja2", "asyncio", "sqlite3"}
