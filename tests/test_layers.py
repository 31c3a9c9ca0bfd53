"""Imports run one way; what each part may import is written down here, after the design."""

import ast
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]

# Part -> the parts of jaxrlhf it may import, its own aside. Config modules and entry points have rules of their own.
_BASE = {"ops", "sharding", "types"}
ALLOWED = {
    "types": set(),
    "ops": {"types"},
    "sharding": {"ops", "types"},
    "kernels": _BASE,
    "losses": {"ops"},
    "optim": {"ops", "types"},
    "metrics": {"types"},
    "trackers": set(),
    "programs": set(),
    "config": {"config_text"},
    "config_checks": set(),
    "config_text": set(),
    "config_docs": {"config"},
    "data": {"types"},
    "models": {"kernels"} | _BASE,
    "generation": {"kernels", "losses"} | _BASE,
    "evaluation": {"kernels", "losses", "generation"} | _BASE,
    "rewards": {"kernels", "losses"} | _BASE,
    "steps": {"kernels", "losses", "generation"} | _BASE,
    "checkpoint": {"models"} | _BASE,
    "report": {"config", "config_text"},
}
# These know everything, and nobody else imports them.
ENTRY_POINTS = {"cli", "command_table", "__main__", "commands", "demo", "trainers"}

# Of numpy.random, what has no global state.
SEEDED = {"default_rng", "Generator", "SeedSequence", "PCG64", "Philox"}

MODULES = {path: ast.parse(path.read_text()) for path in sorted((ROOT / "jaxrlhf").rglob("*.py"))}


def _imports(path):
    """Returns the full names that a module imports, `a.b.c` for `from a.b import c`, wherever in it they stand."""
    names = []
    for node in ast.walk(MODULES[path]):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names += [f"{'.' * node.level}{node.module or ''}.{alias.name}" for alias in node.names]
    return names


def _own_imports(path):
    """Returns the same for jaxrlhf alone, split at dots and without the `jaxrlhf`; configs are open to all."""
    parts = [name.split(".")[1:] for name in _imports(path) if name.startswith("jaxrlhf.")]
    return [own for own in parts if not "".join(own[1:2]).endswith("config") and own[0] != "config_checks"]


def _part(path):
    return path.relative_to(ROOT / "jaxrlhf").parts[0].removesuffix(".py")


def _is_config(path):
    return path.name.endswith("config.py") and _part(path) != "config"


def _is_entry_point(path):
    return _part(path) in ENTRY_POINTS or path.name == "command.py"


def _dotted(path):
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def test_imports_run_one_way():
    judged = [path for path in MODULES if not _is_entry_point(path) and _part(path) != "__init__"]
    turning_back = [
        f"{_dotted(path)} imports {'.'.join(own)}; it may import {sorted(ALLOWED[_part(path)])}"
        for path in judged
        for own in _own_imports(path)
        if own[0] not in ALLOWED[_part(path)] | {_part(path)}
    ]
    assert turning_back == []


def test_nobody_imports_entry_points():
    others = [path for path in MODULES if not _is_entry_point(path)]
    wrong = [
        (_dotted(path), own)
        for path in others
        for own in _own_imports(path)
        if own[0] in ENTRY_POINTS or own[1:2] == ["command"]
    ]
    assert wrong == []


def test_imports_are_absolute():
    assert [(_dotted(path), name) for path in MODULES for name in _imports(path) if name.startswith(".")] == []


def test_config_modules_import_config_modules_their_checks_and_the_standard_library_alone():
    def fine(name):
        own = re.match(r"jaxrlhf\.(\w+\.(\w+_)?config|config_checks)\.", name)
        return own or name.split(".")[0] in sys.stdlib_module_names

    configs = [path for path in MODULES if _is_config(path)]
    assert configs
    assert [(_dotted(path), name) for path in configs for name in _imports(path) if not fine(name)] == []


def test_flax_is_imported_in_models_alone():
    users = {_part(path) for path in MODULES if any(name.split(".")[0] == "flax" for name in _imports(path))}
    assert users <= {"models"}


def test_no_global_random_state():
    wrong = [_dotted(path) for path in MODULES if any(name.split(".")[0] == "random" for name in _imports(path))]
    for path, tree in MODULES.items():
        drawn = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute) and node.attr not in SEEDED]
        drawn = [node for node in drawn if ast.unparse(node.value) in ("np.random", "numpy.random")]
        wrong += [f"{_dotted(path)}:{node.lineno}: {ast.unparse(node)}" for node in drawn]
    assert wrong == []


def _modules_after(statement):
    code = f"{statement}\nimport sys\nprint(*sys.modules)"
    return set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())


def test_losses_need_jax_and_chex_alone():
    assert not {"flax", "optax", "transformers", "datasets", "orbax"} & _modules_after("import jaxrlhf.losses")


def test_command_line_and_configs_need_no_jax():
    configs = [_dotted(path) for path in MODULES if _is_config(path)]
    modules = _modules_after(f"import jaxrlhf.cli, jaxrlhf.config_docs, {', '.join(configs)}")
    assert not {"jax", "numpy", "flax", "transformers"} & modules


def test_package_itself_imports_nothing():
    assert not {"jax", "numpy", "jaxrlhf.types"} & _modules_after("import jaxrlhf")
