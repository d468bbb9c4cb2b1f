"""The program that tests grammars, without xgrammar: its import, and the limits of a test."""

import subprocess
import sys

import pytest

from llmserve.engines.vllm.grammars.sandbox_program import __file__ as program
from llmserve.engines.vllm.grammars.sandbox_program import bounds

SCRIPT = """
import sys
from runpy import run_path
found = run_path(sys.argv[1])["import_alone"]()
print(found.name, sorted({"torch", "transformers"} & sys.modules.keys()))
"""


@pytest.mark.parametrize(
    ("xgrammar", "torch", "printed"),
    [
        (
            "import torch, transformers\nname = 'named'\nclass Mask(torch.Tensor): ...\nint32 = torch.tensor(-1, dtype=torch.int32)",
            None,
            "named []",
        ),
        ("import torch\nname = torch.cuda.is_available()", "class cuda: is_available = lambda: 'real'", "real ['torch']"),
    ],
    ids=["names_its_classes", "needs_it"],
)
def test_xgrammar_is_imported_without_torch_where_it_only_names_its_classes(tmp_path, xgrammar, torch, printed):
    (tmp_path / "xgrammar.py").write_text(xgrammar)
    if torch is not None:
        (tmp_path / "torch.py").write_text(torch)
    words = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n{SCRIPT}", program]
    assert subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip() == printed


@pytest.mark.parametrize(
    ("vocab_size", "threads", "compile_cpu_seconds", "wall_seconds"),
    [(1_000, 1, 3, 5), (49_152, 1, 3, 5), (151_659, 1, 10, 12), (151_659, 4, 10, 5)],
)
def test_a_larger_vocabulary_has_more_time_to_compile(vocab_size, threads, compile_cpu_seconds, wall_seconds):
    limits = bounds(vocab_size, threads)
    assert (limits.compile_cpu_seconds, limits.wall_seconds) == (compile_cpu_seconds, wall_seconds)
