"""Plain numpy and loops, against which the formulas are held, and captures of features without the package's hooks."""

import numpy as np
import torch

from lightning_compress.distillation.base import Observation


def log_softmax(logits):
    """In float64, along the last dimension."""
    logits = np.asarray(logits, dtype=np.float64)
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def softmax(logits):
    return np.exp(log_softmax(logits))


def kl(p, q):
    """KL(p || q) of probabilities, along the last dimension; what p does not have counts nothing."""
    p, q = np.asarray(p), np.asarray(q)
    return np.where(p > 0, p * np.log(np.where(p > 0, p, 1.0) / q), 0.0).sum(axis=-1)


def numbers(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def close(found, expected, tolerance=1e-5):
    np.testing.assert_allclose(found.detach().numpy(), expected, rtol=tolerance, atol=tolerance)


def assert_only_the_student_learns(formula, student, teacher):
    """The loss is a float32 scalar in any precision, and nothing flows into the teacher."""
    student, teacher = student.clone().requires_grad_(), teacher.clone().requires_grad_()
    loss = formula(student, teacher)
    assert loss.shape == ()
    loss.backward()
    assert student.grad is not None
    assert torch.isfinite(student.grad).all()
    assert student.grad.abs().sum() > 0
    assert teacher.grad is None
    assert formula(student.detach().bfloat16(), teacher.detach().bfloat16()).dtype is torch.float32


def shown(loss, student, teacher, mask=None, labels=None, **inputs):
    """What both networks show to a loss, the teacher in inference mode."""
    pairs = loss.pairs(student, teacher)
    own = _observe(student, [(pair.student, pair.of, pair.pick) for pair in pairs], mask, inputs)
    places = [(pair.teacher or pair.student, pair.of, pair.teacher_pick or pair.pick) for pair in pairs]
    with torch.inference_mode():
        other = _observe(teacher, places, mask, inputs)
    return Observation(*own, mask=mask, labels=labels), Observation(*other, mask=mask, labels=labels)


def _observe(network, places, mask, inputs):
    seen, handles = {}, []
    for place in places:
        name, of, pick = place

        def look(module, given, output=None, *, place=place, of=of, pick=pick):
            value = given if of == "input" else output
            value = value[0] if isinstance(value, tuple) else value
            seen[place] = value if pick is None else pick(value)

        module = network.get_submodule(name)
        hook = module.register_forward_pre_hook if of == "input" else module.register_forward_hook
        handles.append(hook(look))
    output = network(**inputs) if mask is None else network(**inputs, attention_mask=mask.long())
    for handle in handles:
        handle.remove()
    return getattr(output, "logits", output), [seen[place] for place in places]
