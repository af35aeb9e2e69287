"""A teacher in 8 or 4 bits beside a student that trains, with and without Lightning's plugin for bitsandbytes."""

import pytest
import torch
from pytorch_lightning.plugins import BitsandbytesPrecision
from torch.nn import functional as F

from lightning_compress import KnowledgeDistillation
from lightning_compress.quantization import convert
from tests.callbacks.distilling import teacher
from tests.conformance.tiny import Tiny, fit

bitsandbytes = pytest.importorskip("bitsandbytes")
DEVICE = "cuda"
ON_DEVICE = {"accelerator": DEVICE, "devices": 1}
PRECISIONS = ["32-true", "bf16-mixed", "bf16-true"]
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.filterwarnings("ignore::UserWarning:bitsandbytes"),
]


def by_hand(mode):
    """What the plugin makes of a teacher; its weights become integers on their way to the device."""
    return BitsandbytesPrecision(mode).convert_module(teacher())


TEACHERS = {
    "convert nf4": lambda: convert(teacher(), "bitsandbytes-nf4", exclude=[]),
    "convert int8": lambda: convert(teacher(), "bitsandbytes-int8", exclude=[]),
    "plugin nf4": lambda: by_hand("nf4"),
    "plugin int8": lambda: by_hand("int8"),
}


def layers(network):
    return [module for module in network.modules() if isinstance(module, torch.nn.Linear)]


def numbers(network):
    return [parameter.detach().cpu().clone() for parameter in network.parameters()]


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("way", TEACHERS)
def test_a_quantized_teacher_stays_and_its_student_trains(way, precision):
    student, quantized = Tiny(), TEACHERS[way]().to(DEVICE)
    kinds = (bitsandbytes.nn.Linear4bit, bitsandbytes.nn.Linear8bitLt)
    assert isinstance(layers(quantized)[0], kinds)
    assert not layers(quantized)[0].weight.is_floating_point()
    before, start = numbers(quantized), numbers(student)
    run = fit(student, KnowledgeDistillation(quantized), precision=precision, **ON_DEVICE)
    assert all(torch.equal(old, new) for old, new in zip(before, numbers(quantized), strict=True))
    assert not any(torch.equal(old, new) for old, new in zip(start, numbers(student), strict=True))
    assert all(parameter.isfinite().all() for parameter in student.parameters())
    assert run.callback_metrics["distillation/soft_targets"].isfinite()


def test_the_term_is_that_of_the_quantized_teacher():
    quantized, student, seen = TEACHERS["convert nf4"]().to(DEVICE), Tiny(), {}
    for name, network in {"teacher": quantized, "student": student}.items():
        network.register_forward_hook(lambda module, args, output, name=name: seen.update({name: (args[0], output)}))
    run = fit(student, KnowledgeDistillation(quantized), limit_train_batches=1, max_epochs=1, **ON_DEVICE)
    logits = seen["teacher"][0]
    for module in quantized.eval():
        if isinstance(module, bitsandbytes.nn.Linear4bit):
            weight = bitsandbytes.functional.dequantize_4bit(module.weight.data, module.weight.quant_state)
            logits = F.linear(logits, weight.float().view(module.out_features, -1), module.bias.float())
        else:
            logits = module(logits)
    log_shares = [F.log_softmax(one.float() / 2.0, dim=-1) for one in (seen["student"][1], logits)]
    expected = 0.7 * 4.0 * F.kl_div(*log_shares, log_target=True, reduction="batchmean")
    assert run.callback_metrics["distillation/soft_targets"].item() == pytest.approx(expected.item(), rel=0.02)


def test_the_plugin_quantizes_the_student_and_what_it_leaves_out_trains():
    student = Tiny().bfloat16()
    whole = teacher()
    before, start = numbers(whole), numbers(student.body)
    plugin = BitsandbytesPrecision("nf4", dtype=torch.bfloat16, ignore_modules={"body"})
    fit(student, KnowledgeDistillation(whole), plugins=[plugin], **ON_DEVICE)
    assert isinstance(student.head, bitsandbytes.nn.Linear4bit)
    assert not isinstance(layers(whole)[0], bitsandbytes.nn.Linear4bit)
    assert all(torch.equal(old, new) for old, new in zip(before, numbers(whole), strict=True))
    assert not any(torch.equal(old, new) for old, new in zip(start, numbers(student.body), strict=True))
