"""One tokenizer asked by several threads: each is given what it asked for."""

import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
from tiny import make_backbone, make_model
from tiny import make_tokenizer as make_bert_tokenizer
from training.kinds import make_tokenizer

from graftwork.adapters import TaskIdentity
from graftwork.backbones import Backbone
from graftwork.encoding import GenerationEncoder, LikelihoodEncoder, TagEncoder, TextEncoder
from graftwork.methods.vocabulary import tokens_of

TEXT = "a very good film and a very bad book " * 4
ROUNDS = 300


@pytest.fixture(autouse=True)
def switching():
    """Threads take turns as often as they can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def askers() -> dict[str, list]:
    """What several threads ask of one tokenizer, by case: each a call that should always say the same."""
    backbone = make_backbone("bert", tokenizer=True)
    # Another backbone may have the same tokenizer.
    other = Backbone(make_model("bert"), backbone.tokenizer)

    def encoder(kind, length, backbone=backbone, **fields):
        made = kind(backbone, TaskIdentity(name="t", max_length=length, **fields))
        return lambda inputs: made.encode(inputs)

    texts, pairs, words = [TEXT] * 4, [(TEXT, TEXT)] * 4, [TEXT.split()] * 2
    t5 = Backbone(make_model("t5", head=True), make_tokenizer(ends=True))
    targets = [("the", [TEXT, "good"])]
    lengths = {"max_target_length": 9}
    return {
        "texts": [lambda n=n: encoder(TextEncoder, n)(texts) for n in (8, 20, 31)],
        "of two backbones": [lambda: encoder(TextEncoder, 8)(texts), lambda: encoder(TextEncoder, 20, other)(texts)],
        "pairs and tags": [
            lambda: encoder(TextEncoder, 12, pairs=True)(pairs),
            lambda: encoder(TagEncoder, 30)(words),
            lambda: tokens_of(backbone, TEXT, 36),
        ],
        "sources and choices": [
            lambda: encoder(LikelihoodEncoder, 6, t5, **lengths)(targets),
            lambda: encoder(GenerationEncoder, 11, t5)(texts),
            lambda: encoder(LikelihoodEncoder, 21, t5)(targets),
        ],
    }


@pytest.mark.parametrize("case", ["texts", "of two backbones", "pairs and tags", "sources and choices"])
def test_each_thread_is_given_what_it_asked_for(case):
    asked = askers()[case]
    expected = [ask() for ask in asked]

    def wrong(place: int) -> int:
        return sum(asked[place]() != expected[place] for _ in range(ROUNDS))

    with ThreadPoolExecutor(len(asked)) as pool:
        assert sum(pool.map(wrong, range(len(asked)))) == 0


def test_lengths_are_those_asked_for():
    """So that the test above cannot pass where nothing is cut."""
    backbone = Backbone(make_model("bert"), make_bert_tokenizer())
    for n in (8, 20):
        [row] = TextEncoder(backbone, TaskIdentity(name="t", max_length=n)).encode([TEXT])
        assert len(row["input_ids"]) == n
