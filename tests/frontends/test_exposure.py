"""Known vulnerabilities, reachable addresses, and the values that requests may set in vLLM."""

import ast
import importlib.metadata
import pathlib
import re
import tomllib

import pytest

from frontends.access.exposure import VLLM_FLOOR, advisories, advisories_for, below_floor, check_reach, is_loopback
from llmserve import ConfigurationError
from llmserve.engines.vllm import params

ROOT = pathlib.Path(__file__).parent.parent.parent
# Values that a request may set in vLLM. Check a new name against known attacks: see
# advisories.toml.
ALLOWED = {
    "allowed_token_ids",
    "bad_words",
    "detokenize",
    "frequency_penalty",
    "ignore_eos",
    "include_stop_str_in_output",
    "logit_bias",
    "logprobs",
    "max_tokens",
    "min_p",
    "min_tokens",
    "output_kind",
    "presence_penalty",
    "prompt_logprobs",
    "repetition_penalty",
    "seed",
    "skip_clone",
    "skip_special_tokens",
    "stop",
    "stop_token_ids",
    "structured_outputs",
    "temperature",
    "top_k",
    "top_p",
}


def test_the_table_in_the_policy_has_each_advisory():
    found = advisories()
    assert len({one.id for one in found}) == len(found) >= 10
    policy = (ROOT / "SECURITY.md").read_text()
    for one in found:
        assert one.here in ("guarded", "absent", "open", "unknown")
        assert f"| {one.id}" in policy
        assert one.by in policy


@pytest.mark.parametrize("package", sorted({one.package for one in advisories()} - {"vllm"}))
def test_installed_and_allowed_versions_have_no_advisory(package):
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    (least,) = re.findall(rf"{package}>=([\d.]+)", " ".join(wanted))
    for version in (importlib.metadata.version(package), least):
        assert advisories_for(package, version) == []


@pytest.mark.parametrize(
    ("version", "first", "count"),
    [
        ("0.20.2", "GHSA-v97p-wpxp-px84", 17),
        ("0.25.1", "CVE-2026-73559", 14),
        ("0.28.0", "GHSA-v5gm-qgmv-gc6c", 11),
        ("0.31.0rc1", "CVE-2026-115911", 5),
        ("0.32.0", "GHSA-5r3c-5x4v-8gjh", 3),
        ("0.33.0", "CVE-2026-105775", 2),
    ],
)
def test_a_version_has_the_advisories_introduced_before_it_and_fixed_after_it(version, first, count):
    found = advisories_for("vllm", version)
    assert len(found) == count
    assert found[0].id == first


def test_the_floor_is_the_first_version_from_which_on_none_is_open():
    opened = [one for one in advisories() if one.package == "vllm" and one.here == "open"]
    assert not any(one.is_in(VLLM_FLOOR) for one in opened)
    assert VLLM_FLOOR in {one.fixed for one in opened}
    assert below_floor("0.31.0")
    assert not below_floor("0.32.0rc1+cpu")


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", True),
        ("::1", True),
        ("localhost", True),
        ("127.8.8.8", True),
        ("0.0.0.0", False),
        ("::", False),
        ("10.0.0.1", False),
        ("example.org", False),
    ],
)
def test_loopback_hosts_are_those_that_no_other_machine_can_reach(host, expected):
    assert is_loopback(host) is expected


def test_listening_for_other_machines_needs_authentication_or_an_option():
    with pytest.raises(ConfigurationError, match=r"--host 0\.0\.0\.0 is reachable from other machines.*--insecure"):
        check_reach("--host", ["127.0.0.1", "0.0.0.0"], None, insecure=False)
    with pytest.raises(ConfigurationError, match=r"vLLM 0\.25\.1 has known vulnerabilities \(CVE-2026-73559.*use vLLM 0\.32"):
        check_reach("--listen", ["10.0.0.1"], "0.25.1", insecure=False, authenticated=True)
    check_reach("--listen", ["10.0.0.1"], "0.32.0", insecure=False, authenticated=True)
    check_reach("--host", ["0.0.0.0"], "0.25.1", insecure=True)
    check_reach("--host", ["127.0.0.1"], "0.25.1", insecure=False)
    check_reach("--listen", [], None, insecure=False)


def test_requests_set_only_reviewed_values_in_vllm():
    """Read the arguments of each `SamplingParams(...)` in the source, including those of a dict."""
    calls = 0
    for path in (ROOT / "llmserve").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if not (isinstance(node, ast.Call) and getattr(node.func, "id", getattr(node.func, "attr", "")) == "SamplingParams"):
                continue
            calls += 1
            assert not node.args
            named = {keyword.arg for keyword in node.keywords if keyword.arg is not None}
            assert named <= ALLOWED, named - ALLOWED
    assert calls == 2
    assert set(params.CHOSEN) <= ALLOWED
