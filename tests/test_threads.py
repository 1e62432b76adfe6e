"""Calls of several threads, beside changes: one answer comes from one version, and no thread's mode is another's."""

import random
import threading
from contextlib import contextmanager

import pytest
import torch
from tiny import batch_for, bits, make_adapter, make_backbone

from graftwork.adapters import Adapter, TaskIdentity
from graftwork.backbones.quiet import quiet_transformers
from graftwork.errors import AdapterError, GraftworkError
from graftwork.heads import LanguageHead
from graftwork.methods import BitFit, FullFineTuning, HeadOnly, Houlsby, LayerNormTuning, LoRA
from graftwork.model import AdaptedModel

TEXTS = ["the good film", "a man", "the woman was not very good", "bad", "the book is dull"]


@pytest.fixture
def backbone():
    return make_backbone("bert", tokenizer=True)


@contextmanager
def beside(*functions):
    """Each function again and again in a thread of its own; what they raise is raised afterwards."""
    done, raised = threading.Event(), []

    def run(function):
        try:
            while not done.is_set():
                function()
        except BaseException as error:
            raised.append(error)

    threads = [threading.Thread(target=run, args=(function,)) for function in functions]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        done.set()
        for thread in threads:
            thread.join(60)
    assert not any(thread.is_alive() for thread in threads)
    if raised:
        raise raised[0]


def permuted(adapter: Adapter, order: tuple[int, ...]) -> Adapter:
    """The same adapter with its classes in another order: it says the same of any text."""
    labels = adapter.task.labels
    moved = {
        name: tensor[list(order)] for name, tensor in adapter.tensors.items() if name.startswith("head.classifier")
    }
    task = adapter.task.model_copy(update={"labels": tuple(labels[i] for i in order)})
    return Adapter(**{**vars(adapter), "tensors": {**adapter.tensors, **moved}, "task": task})


def excused(error: Exception, *reasons: str) -> None:
    """Raise an error again that is for none of these reasons."""
    if not any(reason in str(error) for reason in reasons):
        raise error


def is_one_of(found, known, bound=1e-5) -> bool:
    return min(float((found - own).abs().max()) for own in known) <= bound


def test_the_labels_are_those_of_the_version_that_answered(backbone):
    first = make_adapter(backbone, LoRA(rank=2), trained=True)
    versions = [first, permuted(first, (2, 0, 1))]
    model = AdaptedModel(backbone, {"a": first, "b": make_adapter(backbone, Houlsby(bottleneck=2), trained=True)})
    expected = [prediction.label for prediction in model.predict(TEXTS, "a")]
    assert len(set(expected)) > 1
    wrong = []

    def ask():
        found = [prediction.label for prediction in model.predict(TEXTS, "a", batch_size=1)]
        mixed = model.predict(TEXTS, ["a", "b", "a", "b", "a"], batch_size=2)
        if found != expected or [mixed[i].label for i in (0, 2, 4)] != [expected[i] for i in (0, 2, 4)]:
            wrong.append((found, mixed))

    with beside(ask, ask):
        for i in range(60):
            model.replace("a", versions[i % 2])
    assert not wrong


def test_passes_are_right_while_an_adapter_is_merged_and_unmerged(backbone):
    adapters = {"a": make_adapter(backbone, LoRA(rank=2), trained=True), "b": make_adapter(backbone, BitFit(), seed=1)}
    model = AdaptedModel(backbone, adapters)
    batch = batch_for(backbone, 5, 4)
    with torch.no_grad():
        known = {name: [model(**batch, adapters=name).logits] for name in "ab"}
        model.merge("a")
        known["a"].append(model(**batch, adapters="a").logits)
        model.unmerge()
    wrong = []

    def ask():
        with torch.no_grad():
            for name in "ab":
                found = model(**batch, adapters=name).logits
                if not is_one_of(found, known[name]):
                    wrong.append(name)

    with beside(ask, ask):
        for _ in range(60):
            model.merge("a")
            model.unmerge()
    assert not wrong


def test_an_adapter_is_what_its_folder_held_when_it_was_added(backbone, tmp_path):
    old, new = (make_adapter(backbone, LoRA(rank=2), trained=True, seed=seed) for seed in (1, 2))
    old.save(tmp_path / "a")
    batch = batch_for(backbone, 5, 4)
    one = AdaptedModel(backbone, {"a": tmp_path / "a"})
    with torch.no_grad():
        expected = one(**batch).logits
        one.merge("a")
        merged = one(**batch).logits
    size = one.memory().total
    one.detach()
    model = AdaptedModel(backbone, budget=size)
    model.add("a", tmp_path / "a")
    new.save(tmp_path / "a", overwrite=True)
    model.add("other", new)  # there is room for one
    assert model.memory().unloaded == ("a",)
    with torch.no_grad():
        assert torch.equal(model(**batch, adapters="a").logits, expected)
        model.add("third", new)
        assert all(torch.equal(t, old.tensors[name]) for name, t in model.adapter("a").tensors.items())
        model.merge("a")
        assert torch.equal(model(**batch, adapters="a").logits, merged)


def test_an_adapter_whose_tensors_are_changed_afterwards_is_as_it_was(backbone):
    given = make_adapter(backbone, LoRA(rank=2), trained=True)
    model = AdaptedModel(backbone, {"a": given})
    batch = batch_for(backbone, 5)
    with torch.no_grad():
        expected = model(**batch).logits
        for tensor in given.tensors.values():
            tensor.add_(1)
        model.to("cpu")  # everything is loaded anew
        assert torch.equal(model(**batch).logits, expected)


def test_what_is_put_away_is_checked_when_it_comes_back(backbone):
    adapters = [make_adapter(backbone, LoRA(rank=2), trained=True, seed=seed) for seed in (1, 2)]
    size = AdaptedModel(backbone, {"a": adapters[0]}).memory().total
    model = AdaptedModel(backbone, dict(zip("ab", adapters, strict=True)), budget=size)
    batch = batch_for(backbone, 5)
    model(**batch, adapters="b")
    folder = model.residents.folder
    for file in folder.iterdir():
        content = bytearray(file.read_bytes())
        content[-1] ^= 1
        file.write_bytes(content)
    with pytest.raises(AdapterError, match=rf"written to '{folder}/.*', which has changed since"):
        model(**batch, adapters="a")
    for file in folder.iterdir():
        file.unlink()
    with pytest.raises(AdapterError, match=r"cannot be read(.|\n)*change: remove\(\) the adapter"):
        model(**batch, adapters="a")
    model.detach()


def test_files_of_adapters_go_with_them(backbone):
    given = make_adapter(backbone, LoRA(rank=2), trained=True)
    model = AdaptedModel(backbone, {"a": given, "b": given}, budget=10**9)
    folder = model.residents.folder
    assert len(list(folder.iterdir())) == 2
    model.replace("a", given)
    model.remove("b")
    assert len(list(folder.iterdir())) == 1
    model.detach()
    del model
    assert not folder.exists()


def test_a_refused_adapter_is_not_there(backbone):
    model = AdaptedModel(backbone, budget=10_000)
    before = [(path, id(module)) for path, module in backbone.model.named_modules()]
    with pytest.raises(AdapterError, match="more than the budget"):
        model.add("a", make_adapter(backbone, LoRA(rank=30)))
    assert not len(model.residents)
    assert [(path, id(module)) for path, module in backbone.model.named_modules()] == before
    model.add("a", make_adapter(backbone, LoRA(rank=1)))
    with pytest.raises(AdapterError, match="more than the budget"):
        model.replace("a", make_adapter(backbone, LoRA(rank=30)))
    assert model.adapter("a").method == LoRA(rank=1)


def test_one_of_two_threads_gets_a_name(backbone):
    model = AdaptedModel(backbone)
    adapters = [make_adapter(backbone, LoRA(rank=2), trained=True, seed=seed) for seed in range(2)]
    for turn in range(20):
        barrier, refused = threading.Barrier(2), []

        def add(adapter, name=f"a{turn}", barrier=barrier, refused=refused):
            barrier.wait()
            try:
                model.add(name, adapter)
            except AdapterError as error:
                refused.append(error.problem)

        threads = [threading.Thread(target=add, args=(adapter,)) for adapter in adapters]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert refused == [f"an adapter named 'a{turn}' is already on the model"]


def test_memory_may_be_asked_for_beside_changes(backbone):
    given = make_adapter(backbone, HeadOnly())
    model = AdaptedModel(backbone, {f"a{i}": given for i in range(50)})
    with beside(model.memory, model.memory):
        for _ in range(300):
            model.add("more", given)
            model.remove("more")


def test_predicting_threads_leave_training_alone(backbone):
    model = AdaptedModel(backbone, {"finished": make_adapter(backbone, LoRA(rank=2), trained=True)})
    model.add("t", make_adapter(backbone, LoRA(rank=2, dropout=0.5), trained=True), trainable=True)
    model.train()
    batch = batch_for(backbone, 5, 4)
    expected = model.predict(TEXTS, "finished")

    def ask():
        assert model.predict(TEXTS, "finished") == expected

    with beside(ask, ask):
        for _ in range(30):
            with torch.no_grad():
                assert model.training
                assert not torch.equal(*(model(**batch, adapters="t").logits for _ in range(2)))
    assert model.training


def test_the_backbones_dropout_acts_in_training_passes_alone():
    backbone = make_backbone("bert", tokenizer=True, hidden_dropout_prob=0.5)
    model = AdaptedModel(backbone, {"f": make_adapter(backbone, LoRA(rank=2), trained=True)}, backbone_dropout=True)
    model.add("t", make_adapter(backbone, LoRA(rank=2), trained=True), trainable=True)
    batch = batch_for(backbone, 5, 4)
    expected = model.predict(TEXTS, "f")
    model.train()
    with beside(lambda: model.predict(TEXTS, "f") == expected or pytest.fail("dropout acted")):
        for _ in range(30):
            with torch.no_grad():
                assert not torch.equal(*(model(**batch, adapters="t").logits for _ in range(2)))
    assert not any(module.training for module in backbone.model.modules())


@pytest.mark.parametrize("method", [FullFineTuning(), LayerNormTuning()], ids=lambda method: method.name)
def test_nothing_is_lowered_from_weights_that_a_pass_exchanges(backbone, method):
    """What is added beside passes that run with other weights is lowered, and starts, by the backbone's own."""
    running = make_adapter(backbone, method, trained=True)
    norms = make_adapter(backbone, LayerNormTuning(), trained=True, seed=1)
    model = AdaptedModel(backbone, {"running": running, "alone": norms})
    batch = batch_for(backbone, 5, 4)
    frozen = bits(backbone.model)
    with torch.no_grad():
        expected = model(**batch, adapters="alone").logits

    def ask():
        with torch.no_grad():
            model(**batch, adapters="running")

    with beside(ask, ask), torch.no_grad():
        for i in range(60):
            model.add(f"a{i}", norms)
            assert torch.equal(model(**batch, adapters=f"a{i}").logits, expected)
            model.remove(f"a{i}")
    assert bits(backbone.model) == frozen


def test_other_passes_run_while_a_text_is_generated():
    backbone = make_backbone("gpt2", head=True)
    head = LanguageHead(shifted=True)
    adapters = {f"a{i}": make_adapter(backbone, LoRA(rank=2), head=head, trained=True, seed=i) for i in range(2)}
    model = AdaptedModel(backbone, adapters)
    ids = torch.randint(5, 100, (2, 6), generator=torch.Generator().manual_seed(0))
    options = {"max_new_tokens": 20, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    expected = model.generate(ids, adapters=["a0", "a1"], **options)
    passes, seen = [], []
    waiting = threading.Event()

    def stop(ids, scores, **kwargs):
        waiting.set()
        seen.append(len(passes))
        return torch.zeros(len(ids), dtype=torch.bool)

    def ask():
        waiting.wait()
        with torch.no_grad():
            model(ids, adapters="a1")
        passes.append(1)
        model.replace("a0", adapters["a1"])
        model.replace("a1", adapters["a0"])

    with beside(ask):
        found = model.generate(ids, adapters=["a0", "a1"], stopping_criteria=[stop], **options)
    # Each token by what the names stood for at the beginning.
    assert torch.equal(found, expected)
    assert seen[-1] > 0


def test_a_pass_inside_a_pass_leaves_no_state(backbone):
    model = AdaptedModel(
        backbone, {n: make_adapter(backbone, LoRA(rank=2), trained=True, seed=i) for i, n in enumerate("ab")}
    )
    batch, inner = batch_for(backbone, 5, 4), []
    with torch.no_grad():
        expected = {name: model(**batch, adapters=name).logits for name in "ab"}

        def nested(*_):
            if not inner:
                inner.append(None)
                inner[0] = model(**batch, adapters="b").logits

        hook = backbone.model.encoder.layer[1].register_forward_hook(nested)
        assert torch.equal(model(**batch, adapters="a").logits, expected["a"])
        hook.remove()
    assert torch.equal(inner[0], expected["b"])


def test_what_has_no_room_beside_an_outer_pass_is_refused_and_does_not_wait(backbone):
    adapters = {n: make_adapter(backbone, LoRA(rank=2), trained=True, seed=i) for i, n in enumerate("ab")}
    size = AdaptedModel(backbone, {"a": adapters["a"]}).memory().total
    model = AdaptedModel(backbone, adapters, budget=size)
    batch = batch_for(backbone, 5, 4)
    hook = backbone.model.encoder.layer[1].register_forward_hook(lambda *_: model(**batch, adapters="b"))
    with pytest.raises(AdapterError, match="an unfinished pass of this thread"):
        model(**batch, adapters="a")
    hook.remove()
    with torch.no_grad():
        assert model(**batch, adapters="b").logits.shape == (2, 3)


def test_transformers_is_as_loud_as_before_when_the_last_quiet_part_has_ended():
    from transformers.utils import logging

    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    first, second = quiet_transformers(), quiet_transformers()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert logging.get_verbosity() == logging.ERROR
    assert not logging.is_progress_bar_enabled()
    second.__exit__(None, None, None)
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before


def test_an_interrupted_detach_can_be_called_again(backbone, monkeypatch):
    model = AdaptedModel(backbone, {"a": make_adapter(backbone, LoRA(rank=2), trained=True)})
    model.merge("a")
    frozen = None
    import graftwork.grafting.graft as module

    calls = []
    replace = module.replace_module

    def interrupted(*args):
        calls.append(args)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return replace(*args)

    monkeypatch.setattr(module, "replace_module", interrupted)
    with pytest.raises(KeyboardInterrupt):
        model.detach()
    model.detach()
    frozen = bits(make_backbone("bert").model)
    assert bits(backbone.model) == frozen
    AdaptedModel(backbone, {"a": make_adapter(backbone, LoRA(rank=2))}).detach()


def test_a_layer_is_recomputed_with_the_weights_of_its_forward_pass(backbone):
    gradients = []
    for merging in (False, True):
        model = AdaptedModel(backbone, {"a": make_adapter(backbone, LoRA(rank=2), trained=True)})
        model.add("t", make_adapter(backbone, LoRA(rank=2), trained=True, seed=1), trainable=True)
        model.train().gradient_checkpointing_enable()
        loss = model(**batch_for(backbone, 5, 4), labels=torch.tensor([0, 1]), adapters="t").loss
        if merging:
            model.merge("a")
        loss.backward()
        gradients.append({name: p.grad for name, p in model.in_training("t").named_parameters()})
        model.detach()
    assert all(torch.equal(gradient, gradients[1][name]) for name, gradient in gradients[0].items())


STEPS = 40
"""Of each thread of the stress test; `--stress-seconds` lets it run for longer."""


def test_every_answer_is_that_of_one_version(backbone, pytestconfig):
    """Threads add, replace, merge, evict under a budget, predict and train at once."""
    methods = [LoRA(rank=2), LoRA(rank=3), Houlsby(bottleneck=3), LayerNormTuning(), FullFineTuning(top_layers=1)]
    versions = [make_adapter(backbone, method, trained=True, seed=i) for i, method in enumerate(methods)]
    versions += [permuted(version, (1, 2, 0)) for version in versions[:2]]
    batch = batch_for(backbone, 5, 4)
    solo, answers = [], []
    for version in versions:
        model = AdaptedModel(backbone, {"a": version})
        with torch.no_grad():
            own = [model(**batch).logits]
            answers.append([p.label for p in model.predict(TEXTS)])
            if not version.method.unmergeable:
                model.merge("a")
                own.append(model(**batch).logits)
        solo.append(own)
        model.detach()
    known = [logits for own in solo for logits in own]
    sizes = [AdaptedModel(backbone, {"a": version}).memory().total for version in versions]
    budget = max(sizes) + 4 * max(sizes[:3])
    model = AdaptedModel(backbone, budget=budget)
    for i in range(3):
        model.add(f"a{i}", versions[i])
    trained = make_adapter(backbone, LoRA(rank=2), trained=True, seed=9)
    model.add("t", trained, trainable=True)
    model.train()
    wrong, over = [], []

    def forward(names):
        with torch.no_grad():
            try:
                rows = model(**batch, adapters=names).rows
            except AdapterError as error:
                # A name may be gone; what several take may be too much.
                excused(error, "no adapter is named", "more than the budget")
                return
        for place, row in enumerate(rows):
            if not is_one_of(row, [logits[place] for logits in known], 1e-4):
                wrong.append((names, row))

    def ask(draw):
        forward([f"a{draw.randrange(3)}" for _ in range(2)])
        labels = [p.label for p in model.predict(TEXTS, f"a{draw.randrange(3)}", batch_size=2)]
        if labels not in answers:
            wrong.append(labels)

    def change(draw):
        name, version = f"a{draw.randrange(3)}", draw.choice(versions)
        try:
            model.replace(name, version)
        except AdapterError as error:
            excused(error, "merged", "another thread")

    def come_and_go(draw):
        name = f"extra-{draw.random()}"
        model.add(name, draw.choice(versions))
        forward([name, "a0"])
        model.remove(name)

    def merge(draw):
        try:
            model.merge(f"a{draw.randrange(3)}")
        except GraftworkError as error:
            excused(error, "merged", "another thread")
        forward([f"a{draw.randrange(3)}"] * 2)
        model.unmerge()

    def train(draw):
        loss = model(**batch, labels=torch.tensor([0, 2]), adapters="t").loss
        loss.backward()
        assert all(p.grad.isfinite().all() for p in model.in_training("t").parameters())

    def look(draw):
        memory = model.memory()
        if memory.total > budget:
            over.append(memory)

    seconds = pytestconfig.getoption("--stress-seconds")
    functions, raised = [ask, ask, change, come_and_go, merge, train, look, ask], []

    def run(function, seed):
        draw = random.Random(seed)
        try:
            from time import monotonic

            end, turn = monotonic() + seconds, 0
            while monotonic() < end if seconds else turn < STEPS:
                function(draw)
                turn += 1
        except BaseException as error:
            raised.append(error)

    threads = [threading.Thread(target=run, args=(f, seed)) for seed, f in enumerate(functions)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(seconds + 120)
    assert not any(thread.is_alive() for thread in threads)
    if raised:
        raise raised[0]
    assert not wrong
    assert not over
    assert model.training
    model.detach()
    assert bits(backbone.model) == bits(make_backbone("bert").model)


def test_generation_settings_of_zero_are_refused_and_are_not_the_default():
    from tiny import make_tokenizer

    backbone = make_backbone("gpt2", head=True, tokenizer=True)
    backbone.tokenizer.eos_token = "[SEP]"
    head = LanguageHead(shifted=True)
    adapter = Adapter.create(backbone, LoRA(rank=2), head, TaskIdentity(name="t", max_length=8, max_target_length=4))
    model = AdaptedModel(backbone, {"a": adapter})
    assert make_tokenizer().vocab_size
    with pytest.raises(GraftworkError, match="max_new_tokens is 0"):
        model.predict(["a film"], max_new_tokens=0)
    with pytest.raises(GraftworkError, match="num_beams is 0"):
        model.predict(["a film"], num_beams=0)
