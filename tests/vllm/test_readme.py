"""The README's embedded example runs unchanged, as a separate program."""

import os
import pathlib
import re
import subprocess
import sys

README = pathlib.Path(__file__).parents[2] / "README.md"


def test_the_embedded_example_runs(tmp_path):
    examples = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)
    (embedded,) = [example for example in examples if "EngineManager.open" in example]
    (tmp_path / "example.py").write_text(embedded)
    command, environment = [sys.executable, "example.py"], {**os.environ, "PYTHONPATH": str(README.parent)}
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert result.returncode == 0, result.stderr[-2000:]
    assert "Paris" in result.stdout
