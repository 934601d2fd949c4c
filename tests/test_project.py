"""The rules that hold for the whole repository: packaging, floors, pages that must agree."""

import ast
import re
import subprocess
import sys
import tomllib
import zipfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import aotoolkit

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "aotoolkit"
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())

# A part imports the floors below its own. What stands alone at the top of the package is here too.
FLOORS = {
    "errors": 0,
    "atomic": 0,
    "tracing": 1,
    "oracle": 2,
    "data": 2,
    "training": 3,
    "steering": 3,
    "evals": 3,
    "nano": 4,
    "plots": 4,
    "widgets": 5,
    "cli": 6,
    "__main__": 7,
    "__init__": 7,
}


def tracked_files() -> list[Path]:
    listing = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if listing.returncode:
        pytest.skip("not a git checkout, so there is no list of tracked files")
    return [ROOT / name for name in listing.stdout.split("\0") if name and (ROOT / name).is_file()]


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def part_of(path: Path) -> str:
    relative = path.relative_to(PACKAGE)
    return relative.parts[0].removesuffix(".py")


def imported_names(path: Path) -> Iterator[tuple[int, str]]:
    """Line and full dotted name of everything that a module imports, at any depth."""
    package = ["aotoolkit", *path.relative_to(PACKAGE).parent.parts]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) + 1 - node.level] if node.level else []
            stem = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                yield node.lineno, f"{stem}.{alias.name}"


# --- packaging ---------------------------------------------------------------------------------


def requirements() -> list[Requirement]:
    project = PYPROJECT["project"]
    extras = [line for lines in project["optional-dependencies"].values() for line in lines]
    return [Requirement(line) for line in [*project["dependencies"], *extras]]


def constraints() -> dict[str, Requirement]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [Requirement(line) for line in lines if line and not line.startswith("#")]
    assert len({canonicalize_name(pin.name) for pin in pins}) == len(pins), "a package stands twice"
    return {canonicalize_name(pin.name): pin for pin in pins}


def test_constraints_pin_one_version_of_each_dependency_within_its_range():
    pins = constraints()
    for requirement in requirements():
        (pin,) = pins[canonicalize_name(requirement.name)].specifier
        assert pin.operator == "==", pin
        assert requirement.specifier.contains(pin.version), f"{requirement} excludes {pin}"


def test_constraints_name_public_versions_only():
    versions = {name: next(iter(pin.specifier)).version for name, pin in constraints().items()}
    assert versions["torch"] == "2.13.0"
    assert not [name for name, version in versions.items() if Version(version).local]


def test_conda_installs_what_pip_installs():
    text = (ROOT / "environment.yml").read_text()
    extras = set(PYPROJECT["project"]["optional-dependencies"])
    (named,) = re.findall(r"- -e \.\[(.+)\]", text)
    assert set(named.split(",")) == extras


def test_version_stands_in_one_place():
    assert PYPROJECT["project"]["dynamic"] == ["version"]
    citation = (ROOT / "CITATION.cff").read_text()
    assert re.findall(r"^version: (.+)$", citation, re.MULTILINE) == [aotoolkit.__version__]


@pytest.mark.parametrize("statement", ["import aotoolkit", "import aotoolkit.cli"])
def test_importing_costs_no_torch(statement: str):
    heavy = ["torch", "transformers", "nnsight", "peft", "pandas"]
    code = f"import sys; {statement}; print([m for m in {heavy} if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_every_public_name_can_be_imported():
    for name in aotoolkit.__all__:
        assert getattr(aotoolkit, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'Orcale'"):
        _ = aotoolkit.Orcale  # pyright: ignore[reportAttributeAccessIssue]


def test_the_wheel_holds_the_package_and_its_data(tmp_path: Path):
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    wanted = {str(p.relative_to(ROOT)) for p in tracked_files() if p.is_relative_to(PACKAGE)}
    assert wanted
    assert not wanted - names, "tracked, but not in the wheel"
    others = {name.split("/")[0] for name in names} - {"aotoolkit"}
    assert others == {f"aotoolkit-{aotoolkit.__version__}.dist-info"}
    # What the embedded models may weigh, all together.
    assert wheel.stat().st_size < 40e6


# --- pages that must agree ---------------------------------------------------------------------


def make_targets() -> set[str]:
    return set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def test_make_commands_of_the_pages_exist():
    for page in ["README.md", "CONTRIBUTING.md"]:
        used = set(re.findall(r"(?:^|`)make ([a-z]+)", (ROOT / page).read_text(), re.MULTILINE))
        assert used, page
        assert not used - make_targets(), page


def test_links_of_the_pages_lead_somewhere():
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]:
        for link in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
            if "://" not in link:
                assert (page.parent / link).exists(), f"{page.name} links to {link}"


def test_the_python_of_the_readme_runs(capsys: pytest.CaptureFixture[str]):
    blocks = re.findall(r"```python\n(.+?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    offline = [block for block in blocks if "nano.load()" in block]
    assert len(offline) == 1
    exec(compile(offline[0], "README.md", "exec"), {})
    assert "the truth:" in capsys.readouterr().out


def error_classes() -> set[str]:
    tree = ast.parse((PACKAGE / "errors.py").read_text())
    return {node.name for node in tree.body if isinstance(node, ast.ClassDef)}


def test_every_error_has_its_entry():
    entries = re.findall(r"^## `?(\w+)`?$", (ROOT / "docs" / "errors.md").read_text(), re.MULTILINE)
    assert sorted(entries) == sorted(error_classes())


def test_every_error_is_used_somewhere():
    used = {
        node.id
        for path in modules()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Name)
    }
    assert not error_classes() - used


# --- the house ---------------------------------------------------------------------------------


def test_every_part_has_a_floor():
    unknown = {part_of(path) for path in modules()} - set(FLOORS)
    assert not unknown, "give these a floor in tests/test_project.py, and say why in the commit"


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_parts_import_only_the_floors_below(path: Path):
    part = part_of(path)
    for line, name in imported_names(path):
        package, _, rest = name.partition(".")
        other = rest.split(".")[0]
        if package != "aotoolkit" or other == part or other not in FLOORS:
            continue  # elsewhere, itself, or a plain name such as aotoolkit.__version__
        assert FLOORS[other] < FLOORS[part], f"line {line}: {part} must not know {other}"


def test_only_tracing_imports_nnsight():
    users = {
        part_of(p) for p in modules() for _, n in imported_names(p) if n.split(".")[0] == "nnsight"
    }
    assert users == {"tracing"}


def test_floors_are_seen_in_every_form_of_import(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The two tests above can fail."""
    monkeypatch.setattr(sys.modules[__name__], "PACKAGE", tmp_path)
    path = tmp_path / "tracing" / "model.py"
    path.parent.mkdir()
    path.write_text(
        "import aotoolkit.nano as n\nfrom aotoolkit import oracle\nfrom ..data import x\n"
        "from . import blocks\ndef f():\n    from aotoolkit.cli import app\n"
    )
    assert {name for _, name in imported_names(path)} == {
        "aotoolkit.nano",
        "aotoolkit.oracle",
        "aotoolkit.data.x",
        "aotoolkit.tracing.blocks",
        "aotoolkit.cli.app",
    }


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_rules_that_do_not_bend(path: Path):
    unsafe = {"pickle", "dill", "joblib", "cloudpickle", "shelve"}
    assert not unsafe & {name.split(".")[0] for _, name in imported_names(path)}
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ExceptHandler):
            assert node.type is not None, f"line {node.lineno}: a bare except hides every error"
        if isinstance(node, ast.Call):
            assert ast.unparse(node.func) not in {"torch.load", "torch.save"}, f"line {node.lineno}"
            remote = [k for k in node.keywords if k.arg == "trust_remote_code"]
            assert not [k for k in remote if ast.unparse(k.value) == "True"], f"line {node.lineno}"


def test_each_test_file_has_a_name_of_its_own():
    """pytest imports them by name alone: of two with one name a whole run refuses the second."""
    names = Counter(path.name for path in (ROOT / "tests").rglob("test_*.py"))
    assert [name for name, count in names.items() if count > 1] == []


def test_no_path_of_one_machine_is_tracked():
    pattern = re.compile(r"(?<![\w.\-/])/(?:work|tmp|farm|root|home)/")
    found = []
    for path in tracked_files():
        if path.suffix in {".safetensors", ".png"} or path == Path(__file__):
            continue
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            if pattern.search(line):
                found.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()[:80]}")
    assert not found


@pytest.mark.parametrize("check", [("check",), ("format", "--check")], ids=" ".join)
def test_ruff_finds_nothing(check):
    result = subprocess.run(
        [sys.executable, "-m", "ruff", *check, "."], cwd=ROOT, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stdout + result.stderr
