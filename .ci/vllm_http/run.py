"""Run the unmodified tests of vLLM's HTTP server against ours.

    python .ci/vllm_http/run.py SDIST [argument of pytest ...]

SDIST is the source archive of vLLM, such as vllm-0.33.0.tar.gz. The tests need pytest-asyncio,
tblib and orjson in addition to the environment `next`. vLLM's tests start a server through the
class `RemoteOpenAIServer` of their `tests/utils.py`. `server.py` beside this file replaces that
module, so each server is an application of ours under the model's name. The
applications of one kind of model share one engine with a model of ours, because the models of the
tests would have to be downloaded.
docs/compatibility.md has the results.
"""

import os
import pathlib
import shutil
import subprocess
import sys
import tarfile
import tempfile

HERE = pathlib.Path(__file__).parent
# Modules that call a server of text generation, or of vectors of texts. The others call other
# routes and models (speech, images, GPUs).
MODULES = (
    "openai/chat_completion/test_chat.py",
    "openai/chat_completion/test_chat_completion.py",
    "openai/chat_completion/test_chat_echo.py",
    "openai/chat_completion/test_chat_logit_bias_validation.py",
    "openai/chat_completion/test_completion_with_function_calling.py",
    "openai/chat_completion/test_enable_force_include_usage.py",
    "openai/chat_completion/test_include_reasoning.py",
    "openai/chat_completion/test_logprob_token_ids.py",
    "openai/chat_completion/test_root_path.py",
    "openai/chat_completion/test_thinking_token_budget.py",
    "openai/chat_completion/test_batched_chat_completions.py",
    "openai/chat_completion/test_chat_completion_with_prompt_embeds.py",
    "openai/completion/test_completion.py",
    "openai/completion/test_completion_with_prompt_embeds.py",
    "openai/completion/test_prompt_validation.py",
    "openai/completion/test_token_in_token_out.py",
    "scale_out/token_in_token_out/test_serving_tokens.py",
    "openai/test_chunked_prompt.py",
    "openai/test_return_token_ids.py",
    "openai/test_return_tokens_as_ids.py",
    "openai/models/test_models.py",
    "openai/decisions/test_decisions_e2e.py",
    "openai/responses/test_simple.py",
    "anthropic/test_messages.py",
    "generate/structured_decisions/test_structured_decisions_e2e.py",
    "generate/generative_scoring/test_generative_scoring_e2e.py",
    "serve/dev/rpc/test_collective_rpc.py",
    "serve/instrumentator/test_basic.py",
    "serve/instrumentator/test_metrics.py",
    "serve/instrumentator/test_orca_metrics.py",
    "serve/instrumentator/test_uds.py",
    "serve/lora/test_lora_adapters.py",
    "serve/tokenize/test_tokenization.py",
    "pooling/embed/test_online.py",
    "pooling/scoring/test_bi_encoder_online.py",
    "pooling/scoring/test_cross_encoder_online.py",
    "pooling/classify/test_online.py",
)


def extract(archive: str, folder: pathlib.Path) -> pathlib.Path:
    """Unpack vLLM's tests, with our modules instead of those that start vLLM's server."""
    with tarfile.open(archive) as sources:
        tests = [member for member in sources if "/tests/" in member.name and not member.name.count("/tests/") > 1]
        sources.extractall(folder, tests, filter="data")
    (root,) = folder.iterdir()
    shutil.copy(HERE / "server.py", root / "tests/utils.py")
    shutil.copy(HERE / "plugin.py", root / "tests/conftest.py")
    return root


def main(archive: str, *arguments: str) -> int:
    with tempfile.TemporaryDirectory() as folder:
        root = extract(archive, pathlib.Path(folder))
        environment = {**os.environ, "LLMSERVE_TESTS_HOST": str(HERE / "host.py"), "HF_HUB_OFFLINE": "1"}
        environment["PYTHONPATH"] = os.pathsep.join([str(HERE.parent.parent), environment.get("PYTHONPATH", "")])
        modules = [str(root / "tests/entrypoints" / name) for name in MODULES]
        options = ["--rootdir", str(root), "-c", os.devnull, "-o", "asyncio_mode=auto", "-W", "ignore", "--continue-on-collection-errors"]
        # pytest parses the sources of a traceback, and fails where one of transformers' is nested
        # too deeply.
        options += ["--tb", "native"]
        options += [word for name in ("cacheprovider", "randomly", "anyio") for word in ("-p", f"no:{name}")]
        command = [sys.executable, "-m", "pytest", *options, *modules, *arguments]
        return subprocess.run(command, cwd=root, env=environment, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
