"""Reports as runs leave them: a small transformer, a tiny network, and one where nearly everything failed."""

import math

from lightning_compress.report.schema import (
    Applied,
    Curve,
    Evaluation,
    Failure,
    Fidelity,
    Finding,
    Flip,
    Group,
    Latency,
    Layer,
    Model,
    Pair,
    Report,
)

ENVIRONMENT = {
    "processor": "AMD EPYC 9R14, 2 cores",
    "system": "Linux 6.1, Python 3.11.2",
    "torch": "2.13.0+cpu",
    "ONNX Runtime": "1.31.1",
    "OpenVINO": "2026.4.1",
    "lightning_compress": "0.1.0",
}

REVIEWS = (
    "a smart , sweet and playful romantic comedy .",
    "it 's a film that hinges on its casting , and glover really does n't fit the part .",
    "a gentle , compassionate drama about grief and healing <b>that never quite</b> earns its tears .",
    "the plot is nothing but boilerplate " + "clichés from start to finish , " * 8,
    "despite its overt self-awareness , parts of the movie still manage to break past the artifice .",
    "not so much funny as sitcom-cute , it 's full of throwaway one-liners and not-quite jokes .",
)


def _encoder_layers():
    yield "word_embeddings", "Embedding", 30522 * 384, 30522 * 384, 8.0
    yield "position_embeddings", "Embedding", 512 * 384, 512 * 384, 32.0
    yield "token_type_embeddings", "Embedding", 2 * 384, 2 * 384, 32.0
    yield "LayerNorm", "LayerNorm", 768, 768, 32.0


def minilm():
    """MiniLM, pruned, distilled and quantized: 75 layers with parameters."""
    layers = [
        Layer(
            f"net.bert.embeddings.{name}",
            kind,
            count,
            nonzero,
            bits,
            None,
            4 * count,
            int(count * bits / 8),
            0,
            0,
            0.004,
        )
        for name, kind, count, nonzero, bits in _encoder_layers()
    ]
    for block in range(6):
        for place, (name, outputs, inputs) in enumerate(
            (
                ("attention.self.query", 384, 384),
                ("attention.self.key", 384, 384),
                ("attention.self.value", 384, 384),
                ("attention.output.dense", 384, 384),
                ("attention.output.LayerNorm", 384, 2),
                ("intermediate.dense", 1536, 384),
                ("output.dense", 384, 1536),
                ("output.LayerNorm", 384, 2),
            )
        ):
            is_norm = name.endswith("Norm")
            count = outputs * inputs + (0 if is_norm else outputs)
            kept = 1.0 if is_norm else 0.1 + 0.35 * abs(math.sin(block * 2.3 + place)) + 0.05 * (5 - block) / 5
            macs = 0 if is_norm else 64 * outputs * inputs
            layers.append(
                Layer(
                    f"net.bert.encoder.layer.{block}.{name}",
                    "LayerNorm" if is_norm else "Linear",
                    count,
                    int(count * kept),
                    32.0 if is_norm else 4.0 if "intermediate" in name else 8.0,
                    None if is_norm else 8.0,
                    4 * count,
                    int(count * kept),
                    macs,
                    int(macs * kept),
                    0.0 if is_norm else round(0.08 + 0.3 * (1 - kept), 4),
                    round(0.995 - 0.02 * block - 0.004 * place, 4),
                )
            )
    layers += [
        Layer(f"net.adapter.{place}", "Linear", 4000, 4000, 32.0, None, 16000, 16000, 4000, 4000, 0.0, 0.9)
        for place in range(21)
    ]
    layers.append(
        Layer("net.bert.pooler.dense", "Linear", 147840, 147840, 8.0, 8.0, 591360, 148000, 147456, 147456, 0.01, 0.9)
    )
    layers.append(
        Layer("net.classifier", "Linear", 770, 770, 32.0, None, 3080, 3080, 768, 768, 0.0, 0.88, Pair(0.845, 0.843))
    )
    steps = tuple(range(0, 1600, 5))
    progress = [min(max((step - 80) / 1040, 0.0), 1.0) for step in steps]
    return Report(
        title="TransformerModule",
        created="2026-11-24T14:03:11Z",
        environment=ENVIRONMENT,
        applied=(
            Applied(
                "KnowledgeDistillation",
                "The model was trained to give the answers of a frozen copy of the dense model, at temperature 2.",
                {"teacher": "before_fit", "temperature": 2.0, "alpha": 0.5},
            ),
            Applied(
                "GradualPruning",
                "80% of the weights of 36 layers were set to zero, in 104 updates from step 80 to step 1120.",
                {"sparsity": 0.8, "criterion": "fisher", "pattern": "unstructured", "start": 0.05, "end": 0.7},
            ),
            Applied(
                "QuantizationAwareTraining",
                "Weights were rounded to 8 bits (4 in 6 layers) and inputs to 8 bits in training, from step 1200 on.",
                {"weight_bits": 8, "activation_bits": 8, "overrides": {"*.intermediate.*": {"weight_bits": 4}}},
            ),
        ),
        evaluation=Evaluation("test", 1066, "test_acc", higher_is_better=True),
        baseline="the model before the fit",
        dense=Model(
            "dense",
            {"test_acc": 0.8452, "test_loss": 0.3912, "test_f1": 0.8449},
            22_713_986,
            22_713_216,
            32.0,
            90_867_000,
            {
                "dense": 90_868_340,
                "packed": 90_869_120,
                "entropy-coded": 83_561_204,
                "onnx": 91_204_110,
                "openvino": 91_310_774,
            },
            690_000_000,
            690_000_000,
            706_560_000_000,
            28_400_000,
            2_359_296,
        ),
        compressed=Model(
            "compressed",
            {"test_acc": 0.8433, "test_loss": 0.4178, "test_f1": 0.8428},
            22_713_986,
            14_240_119,
            8.3,
            90_867_000,
            {
                "dense": 90_868_340,
                "packed": 19_961_877,
                "entropy-coded": 16_240_233,
                "onnx": 23_380_190,
                "openvino": 23_402_001,
            },
            690_000_000,
            214_000_000,
            44_160_000_000,
            28_400_000,
            2_359_296,
        ),
        latency=(
            Latency("PyTorch eager", 1, 64, 1, 18.21, 31.4, 0.58, 0.571, 0.586, "slower"),
            Latency("ONNX Runtime", 1, 64, 1, 12.31, 6.27, 1.963, 1.91, 2.02, "faster"),
            Latency("OpenVINO", 1, 64, 1, 11.04, 5.26, 2.099, 2.07, 2.13, "faster"),
            Latency("ONNX Runtime", 8, 64, 1, 88.3, 45.1, 1.957, 1.93, 1.98, "faster"),
            Latency("OpenVINO", 8, 64, 1, 80.9, 38.7, 2.09, 2.05, 2.14, "faster"),
        ),
        fidelity=Fidelity(
            predictions=1066,
            agreement=0.9531,
            kl=0.0412,
            flips=50,
            broken=26,
            mended=24,
            flipped=tuple(
                Flip(
                    17 * place,
                    place % 2,
                    (place + place // 2) % 2,
                    1 - (place + place // 2) % 2,
                    0.97 - 0.03 * place,
                    review,
                )
                for place, review in enumerate(REVIEWS)
            ),
            calibration_error=Pair(0.031, 0.044),
            macro_f1=Pair(0.8449, 0.8428),
            mcc=Pair(0.6908, 0.6871),
            classes=(Group("negative", 533, 0.861, 0.848), Group("positive", 533, 0.829, 0.838)),
            slices=(Group("longer than 30 words", 211, 0.834, 0.801), Group("10 words or fewer", 240, 0.871, 0.875)),
        ),
        layers=tuple(layers),
        curves=(
            Curve("sparsity", steps, tuple(0.8 * (1 - (1 - share) ** 3) for share in progress)),
            Curve(
                "training loss",
                steps,
                tuple(0.42 + 0.3 * math.exp(-step / 300) + 0.04 * math.sin(step) for step in steps),
            ),
            Curve("distillation loss", steps, tuple(0.9 * math.exp(-step / 500) + 0.05 for step in steps)),
            Curve("quantization/active", steps, tuple(float(step >= 1200) for step in steps)),
        ),
        findings=(
            Finding(
                "sparsity",
                "net.bert.encoder.layer.*",
                "80% of the weights are zeros that follow no pattern: no runtime skips them.",
                0.71,
                "Prune whole heads and neurons, or 2:4 on a GPU; these zeros only make the file smaller.",
            ),
            Finding(
                "G1",
                "net.bert.encoder.layer.*.intermediate.dense",
                "1536 outputs from 384 inputs move 1.6 times the numbers of a square layer with as many multiply-adds.",
                0.22,
                "A narrower intermediate layer would need less memory traffic for the same work.",
            ),
        ),
        notes=(
            "The dense model was evaluated on the same batches, in the same order, by the same test_step.",
            "Multiply-adds are those of one example of 64 tokens.",
        ),
        failures=(Failure("energy of one inference", "this machine has neither RAPL nor a GPU that NVML can read"),),
        seconds={"quality": 8.9, "latency": 42.1, "size": 3.2, "operations": 1.4, "similarity": 2.2, "page": 0.1},
    )


def tiny():
    """A network of three layers, pruned: smaller, no faster, and worse."""
    return Report(
        title="Classifier",
        created="2026-11-24T09:30:00Z",
        environment={"processor": "2 cores", "torch": "2.13.0+cpu"},
        applied=(Applied("GradualPruning", "90% of the weights of 2 layers were set to zero.", {"sparsity": 0.9}),),
        evaluation=Evaluation("validation", 400, "val_acc", higher_is_better=True),
        baseline="the model before the fit",
        dense=Model(
            "dense", {"val_acc": 0.97}, 2762, 2762, 32.0, 11048, {"dense": 11_500, "packed": 11_600}, 2700, 2700
        ),
        compressed=Model(
            "compressed", {"val_acc": 0.91}, 2762, 420, 32.0, 11048, {"dense": 11_500, "packed": 2_400}, 2700, 300
        ),
        latency=(
            Latency("PyTorch eager", 1, None, 1, 0.041, 0.041, 1.001, 0.99, 1.01, "no difference"),
            Latency("ONNX Runtime", 1, None, 1, 0.011, 0.012, 0.97, 0.8, 1.2, "too noisy to tell"),
        ),
        fidelity=Fidelity(
            400, 0.93, 0.21, 28, 26, 2, classes=(Group("0", 200, 0.97, 0.88), Group("1", 200, 0.97, 0.94))
        ),
        layers=(
            Layer("0", "Linear", 2080, 250, 32.0, None, 8320, 1260, 2048, 205, 0.31, 0.93),
            Layer("2", "Linear", 650, 138, 32.0, None, 2600, 700, 640, 64, 0.28, 0.9),
            Layer("4", "Linear", 32, 32, 32.0, None, 128, 128, 32, 32, 0.0, 0.9),
        ),
        curves=(Curve("sparsity", (0, 10, 20), (0.0, 0.7, 0.9)), Curve("sparsity/4", (0, 10, 20), (0.0, 0.0, 0.0))),
        seconds={"quality": 0.4},
    )


def failed():
    """A run of which nearly nothing could be measured."""
    reasons = {
        "quality": "the loader is empty",
        "latency": "torch cannot export Net: data-dependent control flow in forward",
        "size": "No space left on device",
        "operations": "forward() missing 1 required positional argument: 'mask'",
        "fidelity": "the loader is empty",
        "guidelines": "forward() missing 1 required positional argument: 'mask'",
    }
    return Report(
        title="Net<script>alert(1)</script>",
        created="2026-11-24T09:30:00Z",
        environment={"torch": "2.13.0+cpu"},
        applied=(),
        evaluation=None,
        baseline="checkpoints/dense.ckpt",
        dense=Model("dense"),
        compressed=Model("compressed"),
        failures=tuple(Failure(name, reason) for name, reason in reasons.items()),
        seconds={"quality": 0.0},
    )


def everything():
    """All three, by name."""
    return {"minilm": minilm(), "tiny": tiny(), "failed": failed()}
