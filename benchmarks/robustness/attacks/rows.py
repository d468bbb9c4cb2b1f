"""The table: what is played, and what it must leave as it is. A new attack is a new entry."""

import attrs

from benchmarks.robustness.attacks import inputs
from benchmarks.robustness.attacks.attackers import Attack, Post, SlowReader, Unfinished
from benchmarks.robustness.canary import Wire

MIB = 2**20
COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"


@attrs.frozen(kw_only=True)
class Bounds:
    """What breaks a row besides a failure of the canary. Seconds and bytes; None: not bounded.

    `rise` is of the canary's worst latency over the worse of before and of the control; `times` is of its worst before, in place of
    that. `grown` is of the server's resident size afterwards, `held` at most meanwhile, both over before. `answered` is the longest that
    the attackers may wait for an answer.
    """

    rise: float | None = 0.1
    times: float | None = None
    grown: int = 64 * MIB
    held: int | None = None
    answered: float | None = None


@attrs.frozen(kw_only=True)
class Row:
    """One attack. `attackers` at once, where the attack needs a number of its own. `server` are arguments of the server that the command
    starts; `unread` gives it a pipe for its standard output that is never read. With `controlled` the attack's control is played first.
    `wrong` are answers that break the row."""

    number: str
    name: str
    attack: Attack
    attackers: int | None = None
    wire: Wire = "http"
    server: tuple[str, ...] = ()
    unread: bool = False
    controlled: bool = True
    real_engine: bool = False
    wrong: frozenset[str] = frozenset()
    bounds: Bounds = Bounds()

    @property
    def own_server(self) -> bool:
        """Whether it can be played only against a server that this program has started."""
        return bool(self.server) or self.unread or self.wire == "socket"


# The canary waits for the engine's steps, which a constraint makes longer: twice is the bound, and 6 s for the refusal. The first
# constrained request starts the program that tries constraints (300 MiB), which stays.
CONSTRAINED = Bounds(rise=None, times=2.0, answered=6.0, grown=512 * MIB)
CONSTRAINTS = tuple(
    Row(
        number="1" if name == "grammar" else "1b",
        name=f"a {name} that becomes costly",
        attack=Post(COMPLETIONS, inputs.constrained(name)),
        real_engine=True,
        bounds=CONSTRAINED,
    )
    for name in inputs.CONSTRAINTS
)

# Of 2,000 tokens with 20 logprobs each; one more has more than `MAX_LOGPROB_ENTRIES`.
MAX_CHATS = 6

ROWS: tuple[Row, ...] = (
    *CONSTRAINTS,
    Row(number="2", name="a tool of empty objects", attack=Post(CHAT, inputs.tools())),
    Row(number="2", name="a schema of empty objects", attack=Post(COMPLETIONS, inputs.schema())),
    Row(number="2", name="metadata of empty lists", attack=Post(COMPLETIONS, inputs.metadata())),
    Row(number="2", name="two million token ids", attack=Post("/detokenize", inputs.ids())),
    Row(
        number="3",
        name="open streams with metadata",
        attack=Post(COMPLETIONS, inputs.held()),
        attackers=20,
        # Twenty bodies of a mebibyte may be on their way at once, and one of them decoded (25 MiB).
        bounds=Bounds(held=64 * MIB),
    ),
    Row(number="4", name="128 sequences with 20 logprobs", attack=Post(COMPLETIONS, inputs.many_logprobs())),
    Row(number="4", name="16 conversations with 20 logprobs", attack=Post(CHAT, inputs.chat_logprobs())),
    Row(number="4", name="as many logprobs as a request may ask for", attack=Post(CHAT, inputs.chat_logprobs(n=MAX_CHATS))),
    Row(
        number="5",
        name="a request log that is never read",
        # 160 lines a second fill the 64 KiB of a pipe in two seconds.
        attack=Post(COMPLETIONS, inputs.ORDINARY, pause=0.05),
        server=("--request-log", "-"),
        unread=True,
        # The control's requests would fill the pipe.
        controlled=False,
        wrong=frozenset({"no answer", "connection lost"}),
    ),
    Row(
        number="9",
        name="readers at a steady 250 kB/s",
        # 9 MB, in 36 s: longer than the 33 s that a client may take without progress.
        attack=SlowReader(CHAT, inputs.chat_logprobs(n=MAX_CHATS), 250e3),
        # Each is six sequences; more would wait for their admission.
        attackers=4,
        wrong=frozenset({"cut off"}),
        bounds=Bounds(rise=None),
    ),
    Row(
        number="10",
        name="frames without their end",
        attack=Unfinished(inputs.partial_frame()),
        attackers=150,
        wire="socket",
        wrong=frozenset({"still open"}),
        bounds=Bounds(rise=None, held=256 * MIB),
    ),
    Row(
        number="10",
        name="bodies without their last byte",
        attack=Unfinished(inputs.partial_body()),
        attackers=200,
        wrong=frozenset({"still open"}),
        bounds=Bounds(rise=None, held=256 * MIB),
    ),
)


def choose(numbers: list[str]) -> tuple[Row, ...]:
    """The rows with these numbers, or all. Raises ValueError for a number that no row has."""
    known = {row.number for row in ROWS}
    for number in numbers:
        if number not in known:
            raise ValueError(f"there is no row {number!r}: choose from {', '.join(sorted(known, key=lambda n: (len(n), n)))}")
    return tuple(row for row in ROWS if row.number in numbers or not numbers)
