"""The documentation: its examples run, it builds, its links lead somewhere, its errors are the code's."""

import ast
import importlib.util
import pathlib
import re
import subprocess
import sys

import diffusers
import pytest
from unets import build

ROOT = pathlib.Path(__file__).resolve().parents[1]
DOCS = sorted((ROOT / "docs").glob("*.md"))
PAGES = [ROOT / "README.md", *DOCS]
# Where nothing is for a user: training the embedded model, and the mirror of the operations.
INTERNAL = ("demo/train.py", "demo/data.py", "reference.py")


def examples(page):
    """(first line, code) of each block of Python."""
    blocks, lines = [], page.read_text("utf-8").split("\n")
    for start, line in enumerate(lines):
        if line == "```python":
            end = lines.index("```", start)
            blocks.append((start + 2, "\n".join(lines[start + 1 : end])))
    return blocks


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """The models that the examples find in the folder they run in."""
    for name in ("ddpm", "path/to/a/ddpm"):
        build("attention").save_pretrained(tmp_path / name)
        diffusers.DDIMScheduler().save_pretrained(tmp_path / name)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def text_folders(folders):
    """Also a pipeline with text."""
    pipelines = pytest.importorskip("pipelines", reason="no transformers: text pipelines not built")
    pipelines.build("Stable Diffusion 1").save_pretrained("sd15")


def run_examples(page):
    """One after the other, as a reader would."""
    namespace, blocks = {}, examples(page)
    for line, code in blocks:
        if page.stem == "README":  # its blocks are alternatives, each from the float model
            namespace["unet"] = diffusers.UNet2DModel.from_pretrained("ddpm")
        exec(compile("\n" * (line - 1) + code, str(page), "exec"), namespace)
    assert blocks


@pytest.mark.parametrize(
    "name", ["README", "docs/quickstart", "docs/concepts", "docs/saving", "docs/add-a-kernel"]
)
def test_examples_run(name, folders):
    run_examples(ROOT / f"{name}.md")


def test_recipes_run(text_folders):
    run_examples(ROOT / "docs" / "recipes.md")


def test_links_lead_somewhere():
    for page in [*PAGES, ROOT / "CONTRIBUTING.md"]:
        for target in re.findall(r"\]\(([^)#\s]+)", page.read_text("utf-8")):
            assert target.startswith("http") or (page.parent / target).exists(), (page.name, target)


def test_links_of_the_site_stay_in_it():
    for page in DOCS:
        assert "](../" not in page.read_text("utf-8"), f"{page.name}: the site has only docs/"
    assert "](docs/" not in (ROOT / "CHANGELOG.md").read_text("utf-8")


def test_every_page_is_in_the_contents():
    contents = (ROOT / "docs" / "index.md").read_text("utf-8").split("\n")
    missing = [page.stem for page in DOCS if page.stem != "index" and page.stem not in contents]
    assert missing == []


def test_everything_public_is_in_the_interface():
    import tfq

    text = (ROOT / "docs" / "api.md").read_text("utf-8")
    for name in set(tfq.__all__) - {"__version__", "nn", "ops", "reference"}:
        assert re.search(rf":: (tfq\.)?{name}\n", text), name
    for name in tfq.ops.__all__:
        assert f":: tfq.ops.{name}\n" in text, name


@pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("sphinx", "myst_parser", "furo")),
    reason="no sphinx, myst-parser or furo: pip install '.[docs]'",
)
def test_site_builds_without_a_warning(tmp_path):
    command = [sys.executable, "-m", "sphinx", "-W", "-q", ROOT / "docs", tmp_path / "site"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "site" / "api.html").read_text("utf-8")
    assert "num_inference_steps" in page and 'id="tfq.convert"' in page


def message_of(node):
    """The text of an exception's argument with … for what is filled in; None if it has none of its own."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if not isinstance(node, ast.JoinedStr):
        return None
    parts = [
        part.value if isinstance(part, ast.Constant) else "…"
        for part in node.values
    ]  # fmt: skip
    return re.sub("…(\\s*…)+", "…", "".join(parts))


def raised():
    """Messages that the package raises."""
    messages = set()
    for path in sorted((ROOT / "tfq").rglob("*.py")):
        if str(path.relative_to(ROOT / "tfq")) in INTERNAL:
            continue
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and node.exc.args:
                messages.add(message_of(node.exc.args[0]))
    return messages - {None, "…"}


def listed():
    """Messages in the tables of docs/errors.md."""
    text = (ROOT / "docs" / "errors.md").read_text("utf-8")
    # A message with a backtick in it stands between two of them.
    rows = re.findall(r"^\| (`+) ?(.+?) ?\1 \| (.*) \|$", text, re.MULTILINE)
    assert all(remedy.strip() for _, _, remedy in rows)
    messages = [message for _, message, _ in rows]
    assert len(set(messages)) == len(messages)
    return set(messages)


def test_errors_are_those_of_the_code():
    assert listed() - raised() == set(), "listed, but no longer raised"
    assert raised() - listed() == set(), "raised, but not listed in docs/errors.md"
