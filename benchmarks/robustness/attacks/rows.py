"""The attack table: each row is an attack and its bounds. A new attack is a new entry."""

import attrs

from benchmarks.robustness.attacks import inputs
from benchmarks.robustness.attacks.attackers import Attack, Post, SlowReader, Unfinished
from benchmarks.robustness.canary import Wire

MIB = 2**20
COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"


@attrs.frozen(kw_only=True)
class Bounds:
    """What breaks a row, besides a failure of the canary. Seconds and bytes; None is no bound.

    Attributes:
        rise: Increase of the canary's worst latency, over the worse of before and with the control.
        times: Ratio of the canary's worst latency to that before; used instead of `rise`.
        grown: Increase of the server's resident size after the attack.
        held: Largest increase of the resident size during the attack.
        answered: Longest time until an attacker is answered.
    """

    rise: float | None = 0.1
    times: float | None = None
    grown: int = 64 * MIB
    held: int | None = None
    answered: float | None = None


@attrs.frozen(kw_only=True)
class Row:
    """One attack.

    Attributes:
        attackers: Number of concurrent attackers, where the attack needs a certain number.
        server: Arguments of the server that the command starts.
        unread: Whether the server's standard output is a pipe that is never read.
        controlled: Whether the attack's control runs first.
        wrong: Answers that break the row.
    """

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
        """Whether the row needs a server that this program starts."""
        return bool(self.server) or self.unread or self.wire == "socket"


# The canary waits for the engine's steps, which a constraint makes longer. The bound is twice the
# latency, and 6 s for the refusal. The first constrained request starts the process that tests
# constraints (300 MiB), which keeps running.
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

# Sequences of 2,000 tokens with 20 logprobs each; one more sequence exceeds `MAX_LOGPROB_ENTRIES`.
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
        # Twenty bodies of one mebibyte may be in transit together, and one of them decoded (25
        # MiB).
        bounds=Bounds(held=64 * MIB),
    ),
    Row(number="4", name="128 sequences with 20 logprobs", attack=Post(COMPLETIONS, inputs.many_logprobs())),
    Row(number="4", name="16 conversations with 20 logprobs", attack=Post(CHAT, inputs.chat_logprobs())),
    Row(number="4", name="as many logprobs as a request may ask for", attack=Post(CHAT, inputs.chat_logprobs(n=MAX_CHATS))),
    Row(
        number="5",
        name="a request log that is never read",
        # 160 lines per second fill the 64 KiB of a pipe in two seconds.
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
        # 9 MB in 36 s: longer than the 33 s that a client may take without progress.
        attack=SlowReader(CHAT, inputs.chat_logprobs(n=MAX_CHATS), 250e3),
        # Each request is six sequences; more requests would wait for admission.
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
    """Return the rows with these numbers, or all rows. Raises ValueError for an unknown number."""
    known = {row.number for row in ROWS}
    for number in numbers:
        if number not in known:
            raise ValueError(f"unknown row {number!r}; choose from {', '.join(sorted(known, key=lambda n: (len(n), n)))}")
    return tuple(row for row in ROWS if row.number in numbers or not numbers)
