"""What a step of distillation minimises, against the formulas as the papers write them, in float64."""

import pytest
import torch
from combine.teaching import say, steps_noted
from training.workbench import FAST

from graftwork import AdaptedModel, Adapter, LoRA, distill

STUDENT = LoRA(rank=2)


def means(backbone, adapter, texts):
    """The mean of each text's last states, in float64."""
    batch = backbone.require_tokenizer()(list(texts), padding=True, return_tensors="pt")
    model = AdaptedModel(backbone, {"a": adapter})
    try:
        with torch.no_grad():
            states = model(**batch, adapters="a", output_hidden_states=True).hidden_states[-1].double()
    finally:
        model.detach()
    mask = batch["attention_mask"].double()[..., None]
    return (states * mask).sum(1) / mask.sum(1)


def difference(loss, s, t, temperature):
    """From the teacher's logits t to the student's s, as the papers write it."""
    if loss == "centred":
        return (s - (t - t.mean(1, keepdim=True))).square().mean()
    p, q = ((own / temperature).softmax(1) for own in (t, s))
    return temperature**2 * (p * (p.log() - q.log())).sum(1).mean()


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"temperature": 4.0, "alpha": 1.0},
        {"temperature": 4.0, "alpha": 0.3, "hidden": 0.7},
        {"loss": "centred", "alpha": 1.0},
        {"loss": "centred", "alpha": 0.6, "hidden": 0.2},
    ],
    ids=str,
)
def test_a_step_minimises_the_written_formula(backbone, teacher, classes, settings):
    """The loss of the first step, from what the untrained student and the teacher say of its rows."""
    options = {**FAST, "max_steps": 1, "per_device_train_batch_size": 16, "prefix_cache": "off", "pooling": "mean"}
    with steps_noted() as seen:
        distill(backbone, teachers=teacher, task=classes, method=STUDENT, **settings, **options)
    [(batch, found, student, _)] = seen
    texts = backbone.require_tokenizer().batch_decode(batch["input_ids"], skip_special_tokens=True)
    both = (student, Adapter.load(teacher))
    s, t = (say(backbone, own, texts).double() for own in both)
    alpha = settings.get("alpha", 0.5)
    labels = torch.nn.functional.cross_entropy(s, batch["labels"])
    expected = (1 - alpha) * labels + alpha * difference(
        settings.get("loss", "logits"), s, t, settings.get("temperature", 2.0)
    )
    if settings.get("hidden"):
        one, other = (means(backbone, own, texts) for own in both)
        apart = (one - other).square().mean()
        assert settings["hidden"] * apart > 1e-3 * expected, "the vectors are a part that shows"
        expected = expected + settings["hidden"] * apart
    assert found == pytest.approx(expected.item(), rel=1e-5)
