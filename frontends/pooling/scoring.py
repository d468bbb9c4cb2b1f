"""The bodies of /score and /rerank, and the scores of pairs of texts.

An embedding model scores a pair by the cosine of its texts' vectors. A classifier with one class
reads both texts together.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

import attrs
import msgspec

from frontends.access.caller import Caller
from frontends.net.turns import WorkQueue
from frontends.openai.unsupported import Unsupported
from frontends.pooling.answers import RankedDocument, RankedItem
from frontends.pooling.requests import MAX_INPUTS, UNSUPPORTED, ParsedInputs, PoolingBody
from llmserve import Embedding, EngineManager, GenerationRequest, InvalidRequest, PoolingRequest
from llmserve.engine import EngineInfo
from llmserve.pooling.requests import CLASSIFY, EMBED
from llmserve.pooling.vectors import cosine

_TEMPLATE = "the model reads the two texts without a template"
_UNSUPPORTED: Unsupported = {
    **UNSUPPORTED,
    "instruction": ((), _TEMPLATE),
    "chat_template_kwargs": (({},), _TEMPLATE),
}
# vLLM's names of the two sides of a score.
SIDES = (("queries", "documents"), ("queries", "items"), ("text_1", "text_2"), ("data_1", "data_2"))


class Document(msgspec.Struct, forbid_unknown_fields=True):
    """A document as Cohere's clients send it."""

    text: str


Texts = str | list[str]


@attrs.frozen
class Pairs:
    """The pairs of a body: `first` has one text, or one for each text of `second`."""

    first: list[str]
    second: list[str]
    names: tuple[str, str]


class ScoringBody(PoolingBody, kw_only=True, forbid_unknown_fields=True):
    """What both bodies share. Zero tokens are no limit, as in vLLM."""

    unsupported: ClassVar[Unsupported] = _UNSUPPORTED

    max_tokens_per_query: int | None = None
    max_tokens_per_doc: int | None = None

    def pairs(self) -> Pairs:
        """Return the pairs. Raises InvalidRequest."""
        raise NotImplementedError

    def scoring(self, caller: Caller, adapter: str | None, info: EngineInfo) -> "Scoring":
        """Return the requests for the scores. Raises InvalidRequest, also if the model has no scores."""
        pairs, most = self.pairs(), (self._most("max_tokens_per_query"), self._most("max_tokens_per_doc"))
        if EMBED in info.tasks:
            first, of_first, of_second = len(pairs.first), *({"prompt": name} for name in pairs.names)
            return Scoring(self._of_texts(pairs, caller, adapter), lambda index: of_first if index < first else of_second, most, first)
        if CLASSIFY in info.tasks and len(info.labels) == 1:
            both = dict(zip(("prompt", "pair"), pairs.names, strict=True))
            return Scoring(self._of_pairs(pairs, caller, adapter, both), lambda _: both, most)
        words = "a score needs an embedding model, or a classifier with one class"
        raise InvalidRequest(f"the model does not support scores: {words}; its tasks are: {', '.join(info.tasks)}", "model")

    def _most(self, name: str) -> int:
        most: int = getattr(self, name) or 0
        if most < 0:
            raise InvalidRequest(f"{name} must be a non-negative integer", name)
        return most

    def _of_texts(self, pairs: Pairs, caller: Caller, adapter: str | None) -> list[PoolingRequest]:
        sides = zip(pairs.names, (pairs.first, pairs.second), strict=True)
        return [self.request(text, caller, adapter, {"prompt": name}, task=EMBED) for name, side in sides for text in side]

    def _of_pairs(self, pairs: Pairs, caller: Caller, adapter: str | None, names: dict[str, str]) -> list[PoolingRequest]:
        first = pairs.first * len(pairs.second) if len(pairs.first) == 1 else pairs.first
        both = zip(first, pairs.second, strict=True)
        return [self.request(one, caller, adapter, names, task=CLASSIFY, pair=other) for one, other in both]


class ScoreRequest(ScoringBody, kw_only=True, forbid_unknown_fields=True):
    """The body of POST /score: `queries` and `documents`, or one of vLLM's other pairs of names."""

    id_fields: ClassVar[frozenset[str]] = frozenset(name for names in SIDES for name in names)

    queries: Texts | None = None
    documents: Texts | None = None
    items: Texts | None = None
    text_1: Texts | None = None
    text_2: Texts | None = None
    data_1: Texts | None = None
    data_2: Texts | None = None

    def pairs(self) -> Pairs:
        given = {name for names in SIDES for name in names if getattr(self, name) is not None}
        names = next((names for names in SIDES if given == set(names)), None)
        if names is None:
            known = ", ".join(" and ".join(names) for names in SIDES)
            raise InvalidRequest(f"give exactly one pair of fields: {known}", min(given) if given else "queries")
        first, second = (_listed(name, getattr(self, name)) for name in names)
        if len(first) not in (1, len(second)):
            raise InvalidRequest(f"{names[0]} must have one text, or as many as {names[1]}", names[0])
        return Pairs(first, second, names)


class RerankRequest(ScoringBody, kw_only=True, forbid_unknown_fields=True):
    """The body of POST /rerank, as Jina's, Cohere's and vLLM's clients send it."""

    id_fields: ClassVar[frozenset[str]] = frozenset({"query"})
    unsupported: ClassVar[Unsupported] = {
        **_UNSUPPORTED,
        "max_chunks_per_doc": ((), "a document is not divided"),
        "rank_fields": ((), "a document has only its text"),
    }

    query: str | None = None
    documents: list[str | Document] | None = None
    top_n: int | None = None
    return_documents: bool | None = None

    def pairs(self) -> Pairs:
        if self.top_n is not None and self.top_n < 0:
            raise InvalidRequest("top_n must not be negative", "top_n")
        return Pairs(_listed("query", self.query), _listed("documents", self.texts()), ("query", "documents"))

    def texts(self) -> list[str]:
        """Return the texts of the documents."""
        return [one if isinstance(one, str) else one.text for one in self.documents or ()]

    def ranked(self, scores: Sequence[float]) -> list[RankedItem]:
        """Return the documents by their scores, the best first."""
        texts = self.texts() if self.return_documents is not False else None
        order = sorted(range(len(scores)), key=lambda index: -scores[index])[: self.top_n or None]
        return [RankedItem(index, scores[index], RankedDocument(texts[index]) if texts else msgspec.UNSET) for index in order]


@attrs.frozen
class Scoring(ParsedInputs):
    """The requests for the scores: of both sides' texts, of which `first` are the first side's, or of pairs.

    For pairs `first` is 0. `most` are the maximum tokens of each text of both sides; 0 is no limit.
    """

    most: tuple[int, int] = (0, 0)
    first: int = 0

    async def shortened(self, manager: EngineManager) -> "Scoring":
        """Return the requests with the beginnings of their texts, within `most`. Raises Overloaded."""
        queries: dict[str, str] = {}
        query, document = self.most
        requests = []
        for index, request in enumerate(self.requests):
            text = str(request.prompt)
            if self.first and index >= self.first:
                requests.append(attrs.evolve(request, prompt=await _beginning(manager, text, document)))
                continue
            if text not in queries:
                queries[text] = await _beginning(manager, text, query)
            pair = None if request.pair is None else await _beginning(manager, request.pair, document)
            requests.append(attrs.evolve(request, prompt=queries[text], pair=pair))
        return attrs.evolve(self, requests=requests)

    async def scores(self, found: Sequence[Embedding], turns: WorkQueue) -> list[float]:
        """Return the score of each pair, from the vectors of the requests."""
        if not self.first:
            return [float(one.vector[0]) for one in found]
        first = [one.vector for one in found[: self.first]]
        scores: list[float] = []
        for index, other in enumerate(found[self.first :]):
            scores.append(await turns.run(cosine, first[index if self.first > 1 else 0], other.vector))
        return scores


async def _beginning(manager: EngineManager, text: str, most: int) -> str:
    """Return a text's first `most` tokens, without special tokens; all for 0."""
    if not 0 < most < manager.info.max_model_len:
        return text
    request = GenerationRequest(prompt=text, add_special_tokens=False, truncate_prompt_tokens=most, truncation_side="right")
    found = (await manager.tokenize(request)).token_ids
    # The text of tokens may differ from the original, so a short text stays.
    return text if len(found) < most else await manager.detokenize(found)


def _listed(name: str, given: Any) -> list[str]:
    texts = [given] if isinstance(given, str) else given
    if not texts:
        raise InvalidRequest(f"{name} is missing or empty", name)
    if len(texts) > MAX_INPUTS:
        raise InvalidRequest(f"{name} must have at most {MAX_INPUTS:,} texts", name)
    return list(texts)
