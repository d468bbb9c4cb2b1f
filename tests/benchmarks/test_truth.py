"""Our client against every behaviour of the scripted server, whose own log is the truth."""

import json
import sys

import pytest
from benchmarks_support import generate, sent

from benchmarks.__main__ import main
from benchmarks.analysis.summary import summarize, tpot
from benchmarks.targets.http import HTTP
from benchmarks.targets.server import ClientOptions, open_session, parse_server
from benchmarks.truth import study
from benchmarks.truth.behaviours import BEHAVIOURS, TOKENS
from benchmarks.truth.figures import TIMES, Figures, median, truth, wrong_counts, wrong_times
from benchmarks.truth.script import MODEL
from benchmarks.truth.server import Entry, serve
from benchmarks.truth.tools import PEERS, Ours, Unmeasured, find_peer
from benchmarks.workload.plan import Load
from benchmarks.workload.requests import Fixed, Workload

REQUESTS = 8


@pytest.fixture
def anyio_backend():
    """Real sockets need asyncio's own clock."""
    return "asyncio"


async def measured(behaviour):
    """Return the log and the records of a closed loop, in which server and client share an event loop."""
    workload = Workload(
        prompt=Fixed(4),
        output=Fixed(TOKENS),
        vocabulary=(1, 200),
        natural=behaviour.lengths is not None,
        timeout=2.0 if behaviour.hangs else None,
    )
    load = Load(concurrency=REQUESTS, staggered=False)
    options = ClientOptions(prompts="chat" if behaviour.chat else "ids")
    async with serve(behaviour) as (url, scripted):
        server = parse_server(url, options)
        async with open_session(server) as session:
            generator = generate(HTTP(session, server, MODEL), load, workload, requests=REQUESTS)
            await generator.run()
            return scripted.log, generator.measured


@pytest.mark.parametrize("behaviour", BEHAVIOURS, ids=lambda behaviour: behaviour.name)
@pytest.mark.anyio
async def test_the_client_counts_what_the_server_did(behaviour):
    log, result = await measured(behaviour)
    summary = summarize(result.records)
    tokens = sum(record.completion_tokens for record in result.records if record.outcome == "ok")
    found = Figures(outcomes=summary.outcomes, tokens=tokens, times={name: getattr(summary, name).at("p50") for name in TIMES})
    true = truth(log)
    assert len(log) == REQUESTS
    assert wrong_counts(true, found) == []
    assert all((found.times[name] is None) == (true.times[name] is None) for name in TIMES)
    for record in result.records:
        if record.request_id and record.outcome == "ok":
            check_times(log[int(record.request_id)], record, result.origin)


def check_times(entry, record, origin):
    """No token is counted before the server wrote it, and the first one before it wrote the last.

    Client and server run in one event loop, so the order holds on a busy machine too.
    """
    written = [time for time, tokens in entry.pieces for _ in range(tokens)]
    read = [origin + time for time, tokens in record.deliveries for _ in range(tokens)]
    assert all(before <= after for before, after in zip(written, read, strict=True))
    # What was written together was read together, and ends one gap.
    assert len(record.gaps()) <= max(0, len(entry.pieces) - 1)
    if len(entry.pieces) > 2:
        assert read[0] < written[-1]


def test_events_that_were_read_together_end_one_gap():
    """Regression: ITL was 0 where several events came in one segment, and TPOT too small."""
    record = sent(0, 0.0, 1.0)
    record.deliveries = [(at, 1) for at in (1.0, 1.0, 2.0, 2.0, 2.0, 2.0, 4.0, 4.0)]
    assert record.gaps() == [(1.0, 2.0, 4), (2.0, 4.0, 2)]
    assert tpot(record) == pytest.approx(0.5)


# A program that writes its results where its options say, as each of the peers does.
STUB = """#!{python}
import pathlib, sys
options = dict(zip(sys.argv, sys.argv[1:]))
path = pathlib.Path(options.get("--artifact-dir", "."), "profile_export_aiperf.json") if "profile" in sys.argv else pathlib.Path("out.json")
print("the last line")
path.write_text({results!r}) if {results!r} else sys.exit(3)
"""
GUIDELLM = {
    "request_totals": {"successful": 2, "errored": 1, "incomplete": 1},
    "output_token_count": {"successful": {"count": 2, "total_sum": 32.0}},
    "time_to_first_token_ms": {"successful": {"count": 2, "median": 61.0}},
    "inter_token_latency_ms": {"successful": {"count": 0, "median": 0.0}},
    "request_latency": {"successful": {"count": 2, "median": 0.3}},
}
RESULTS = {
    "guidellm": {"benchmarks": [{"metrics": GUIDELLM}]},
    "aiperf": {
        "request_count": {"avg": 2.0},
        "error_request_count": {"avg": 2.0},
        "total_output_tokens": {"avg": 32.0},
        "time_to_first_token": {"p50": 61.0},
        "request_latency": {"p50": 300.0},
    },
    "vllm": {
        "completed": 2,
        "failed": 2,
        "total_output_tokens": 32,
        "median_ttft_ms": 61.0,
        "median_itl_ms": 20.0,
        "median_tpot_ms": 0.0,
        "median_e2el_ms": 300.0,
    },
}


def install(folder, name, results):
    """Return a peer whose program is a stub; vLLM's is run by the interpreter beside it."""
    for program in (folder / name, folder / "python"):
        program.write_text(STUB.format(python=sys.executable, results=results))
        program.chmod(0o755)
    return find_peer(name, folder / name, "tokenizer")


@pytest.mark.anyio
@pytest.mark.parametrize("name", PEERS)
async def test_a_peer_s_figures_are_read_from_its_file(name, tmp_path):
    peer = install(tmp_path, name, json.dumps(RESULTS[name]))
    found = await peer.measure("http://127.0.0.1:9", BEHAVIOURS[0], tmp_path)
    assert found.outcomes == {"ok": 2, "failed": 2}
    assert found.tokens == 32
    assert {"itl": 0.02} | found.times == pytest.approx({"ttft": 0.061, "itl": 0.02, "tpot": None, "e2e": 0.3})


@pytest.mark.anyio
@pytest.mark.parametrize("name", PEERS)
async def test_a_peer_that_fails_is_quoted(name, tmp_path):
    with pytest.raises(Unmeasured, match="exit code 3: the last line"):
        await install(tmp_path, name, "").measure("http://127.0.0.1:9", BEHAVIOURS[0], tmp_path)


def entries():
    plain = Entry(10.0, "ok", [(10.5, 1), (10.6, 1), (11.2, 3)])
    return [plain, Entry(11.0, "ok", [(11.3, 2)]), Entry(12.0, "ok", []), Entry(13.0, "truncated", [(19.0, 1)])]


def test_the_truth_is_that_of_complete_answers():
    found = truth(entries())
    assert found.outcomes == {"ok": 3, "truncated": 1}
    assert found.tokens == 7
    # The gaps for each token are 0.1 once and 0.2 three times; four tokens came in 0.7 s.
    assert found.times == pytest.approx({"ttft": 0.3, "itl": 0.2, "tpot": 0.175, "e2e": 0.3})
    assert median([]) is None


@pytest.mark.parametrize(
    ("outcomes", "tokens", "times", "counts", "clauses"),
    [
        ({"ok": 3, "truncated": 1}, 7, {"ttft": 0.302}, [], []),
        ({"ok": 3, "failed": 1}, 7, {"tpot": None}, [], ["TPOT none instead of 175.0 ms"]),
        ({"ok": 3, "error": 1}, 7, {"itl": 0.204}, ["3 ok, 1 error instead of 3 ok, 1 truncated"], ["ITL 204.0 instead of 200.0 ms"]),
        ({"ok": 3, "failed": 0}, 7, {}, ["3 ok instead of 3 ok, 1 truncated"], []),
        ({"ok": 3, "truncated": 1}, 0, {}, ["0 tokens instead of 7"], []),
    ],
)
def test_wrong_figures_are_named_with_the_truth(outcomes, tokens, times, counts, clauses):
    true, found = truth(entries()), Figures(outcomes=outcomes, tokens=tokens, times=times)
    assert wrong_counts(true, found) == counts
    assert wrong_times(true, found) == clauses


def test_slack_is_for_ttft_and_e2e():
    true, found = truth(entries()), truth(entries())
    found.times = {name: value + 0.02 for name, value in found.times.items()}
    assert [clause.split()[0] for clause in wrong_times(true, found, slack=0.02)] == ["ITL", "TPOT"]


class Told:
    """A tool that reports given times, one run after another, after it has made the server's log."""

    name = "told"

    def __init__(self, *ttfts):
        self.ttfts = list(ttfts)

    async def measure(self, url, behaviour, folder):
        if not self.ttfts:
            raise Unmeasured("does not end")
        return Figures(outcomes={}, tokens=0, times={"ttft": self.ttfts.pop(0)})


@pytest.mark.parametrize(
    ("ttfts", "attempts", "wrong"),
    [
        ((0.101,), 1, []),
        ((0.110, 0.101), 2, []),
        ((0.110, 0.110), 2, ["TTFT 110.0 instead of 100.0 ms"]),
        ((0.200, 0.101), 1, ["TTFT 200.0 instead of 100.0 ms"]),
        ((), 1, ["does not end"]),
    ],
)
@pytest.mark.anyio
async def test_small_differences_of_times_are_measured_again(ttfts, attempts, wrong, monkeypatch):
    # The tool sends nothing, so the server has no log.
    monkeypatch.setattr(study, "truth", lambda log: Figures(outcomes={}, tokens=0, times={"ttft": 0.1}))
    cell = await study.measure_cell(BEHAVIOURS[0], Told(*ttfts))
    assert (cell.attempts, cell.wrong()) == (attempts, wrong)


@pytest.mark.anyio
async def test_results_are_resumed_and_written_as_a_page():
    plain, other = BEHAVIOURS[:2]
    found = study.begin({"llmserve": "1", "told": "2"})
    figures = Figures(outcomes={"ok": 16}, tokens=256, times={})
    found.cells.append(study.Cell(behaviour=plain.name, tool="told", attempts=1, true=figures, measured=figures))
    reported = []
    await study.measure(found, [plain, other], [Told()], reported.append, jobs=2)
    assert [cell.behaviour for cell in reported] == [other.name]
    text = study.page(found, [plain, other])
    assert "| told | 2 | 1 of 2 |" in text
    assert f"| `{plain.name}` | {plain.does} | - | ok |" in text
    assert f"| `{other.name}` | {other.does} | - | does not end |" in text


def test_the_study_runs_our_client_as_a_program_and_judges_it(tmp_path, call):
    out, page = tmp_path / "truth.json", tmp_path / "truth.md"
    arguments = ["truth", "--no-peers", "--rows", "refused-429,truncated", "--out", str(out), "--page", str(page)]
    result = call(main, *arguments)
    # The times depend on the machine, the counts do not.
    assert "instead of 8 ok" not in result.stderr
    assert result.stderr.count(f", {Ours().name}: ") == 2
    assert result.returncode == int("instead of" in result.stderr)
    assert "| `truncated` |" in page.read_text()
    resumed = call(main, *arguments, "--resume")
    assert resumed.returncode == result.returncode
    assert resumed.stderr == ""


@pytest.mark.parametrize(
    ("arguments", "words"),
    [(["--rows", "plain,nothing"], "nothing"), (["--peer", "guidellm"], "guidellm"), (["--peer", "other=/bin/sh"], "other")],
)
def test_wrong_arguments_are_named(arguments, words, call):
    result = call(main, "truth", *arguments)
    assert result.returncode == 2
    assert words in result.stderr.splitlines()[-1]
