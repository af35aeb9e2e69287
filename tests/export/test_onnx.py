import copy

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto
from onnx.reference import ReferenceEvaluator
from torch import nn

from lightning_compress import TransformerModule, quantize
from lightning_compress.export import export
from lightning_compress.export import onnx as onnx_export
from tests.export.onnx_files import Several, exported, kinds, largest_gap, nodes, run, run_all, stored
from tests.quantization.quantized import IDS, WAYS, bert, cnn, evaluated, mlp, quantize_, random

# Runtimes sum in another order than torch, and a number half way between two integers may fall either way.
ROUNDING = 0.01
IMAGES, VECTORS = random(6, 4, 8, 8), random(8, 64)
WORDS = {"input_ids": IDS, "attention_mask": (torch.arange(8) < torch.tensor([[8], [5], [3]])).long()}


@pytest.fixture(scope="module")
def transformer():
    model = bert()
    quantize_(model, IDS, include="*", attention=True)
    return model


@pytest.fixture(scope="module")
def before(transformer):
    return copy.deepcopy(transformer)


@pytest.fixture(scope="module")
def transformer_file(transformer, before, tmp_path_factory):
    return exported(transformer, WORDS, tmp_path_factory.mktemp("bert"))


def test_a_transformer_gives_what_torch_gives_at_any_batch_and_length(transformer, transformer_file):
    for batch, length in ((3, 8), (1, 1), (5, 19)):
        words = {"input_ids": torch.arange(batch * length).view(batch, length) % 20}
        words["attention_mask"] = torch.ones_like(words["input_ids"])
        words["attention_mask"][-1, length // 2 + 1 :] = 0
        expected = transformer(**words).logits
        assert largest_gap(run(transformer_file, **words), expected) < ROUNDING
    inputs = onnx.load(transformer_file).graph.input
    assert [[size.dim_param for size in entry.type.tensor_type.shape.dim] for entry in inputs] == [
        ["batch", "length"]
    ] * 2


def test_a_transformer_stores_every_weight_in_bytes_and_quantizes_each_tensor_once(transformer, transformer_file):
    weights = {name: weight for name, weight in transformer.named_parameters() if weight.dim() > 1}
    assert sorted(array.size for array in stored(transformer_file).values()) == sorted(
        weight.numel() for weight in weights.values()
    )
    numbers = [entry for entry in onnx.load(transformer_file).graph.initializer if entry.data_type == TensorProto.FLOAT]
    assert all(np.prod(entry.dims) == max(entry.dims, default=1) for entry in numbers)  # scales and biases
    # Per layer: query, key and value share one; then four inside attention, its output, two of the feed-forward.
    # Then pooler and classifier.
    assert len(nodes(transformer_file, "QuantizeLinear")) == 2 * (1 + 4 + 1 + 2) + 2


def test_words_are_looked_up_in_bytes(transformer, transformer_file):
    table = stored(transformer_file)["model.bert.embeddings.word_embeddings.weight_quantizer.values"]
    assert table.shape == (50, 32)
    readers = [
        node.op_type
        for node in onnx.load(transformer_file).graph.node
        if "model.bert.embeddings.word_embeddings.weight_quantizer.values" in node.input
    ]
    assert readers == ["Gather"]


def test_stored_integers_times_their_scale_are_the_weight_that_was_trained_with(tmp_path):
    model = mlp()
    model[0].weight.data[:, ::2] = 0.0  # pruned
    quantize_(model, VECTORS)
    file = onnx.load(exported(model, VECTORS, tmp_path))
    arrays = {entry.name: onnx.numpy_helper.to_array(entry) for entry in file.graph.initializer}
    integers, scale = (arrays[f"model.0.weight_quantizer.{part}"] for part in ("values", "scale"))
    assert integers.dtype == np.int8
    assert integers.min() == -127 or integers.max() == 127
    np.testing.assert_array_equal((integers.astype(np.float32) * scale).T, model[0].quantized().detach().numpy())
    assert not integers[::2].any()


# Bits of weights, of inputs; those with inputs of four bits are the ones whose sums ONNX Runtime might round.
PAIRS = [(way, bits) for way in WAYS for bits in (8, None)] + [(way, 4) for way in ("8 bits", "4 bits", "ttq")]


@pytest.fixture(scope="module")
def all_ways(tmp_path_factory):
    models = {pair: mlp(inputs=32, hidden=16, outputs=8) for pair in PAIRS}
    for (way, bits), model in models.items():
        quantize_(model, VECTORS[:, :32], activation_bits=bits, **WAYS[way])
    path = exported(Several(models), VECTORS[:, :32], tmp_path_factory.mktemp("ways"))
    by_reference = ReferenceEvaluator(str(path)).run(None, {"tensor": VECTORS[:, :32].numpy()})
    by_runtime = run_all(path, VECTORS[:, :32]).values()
    return models, dict(zip(PAIRS, by_reference, strict=True)), dict(zip(PAIRS, by_runtime, strict=True))


@pytest.mark.parametrize("pair", PAIRS, ids="{0[0]}, inputs {0[1]}".format)
def test_every_way_to_quantize_a_weight(pair, all_ways):
    models, by_reference, by_runtime = all_ways
    expected = evaluated(models[pair], VECTORS[:, :32])
    assert largest_gap(torch.from_numpy(by_reference[pair]), expected) < ROUNDING
    # Without quantized inputs ONNX Runtime makes bytes of them itself.
    assert largest_gap(by_runtime[pair], expected) < (0.03 if pair[1] is None else ROUNDING)


@pytest.mark.parametrize(
    ("settings", "kind"),
    [
        ({"weight_bits": 4}, TensorProto.INT8),  # integers are multiplied as bytes
        ({"weight_bits": 4, "activation_bits": None}, TensorProto.INT4),
        ({"weight_bits": 4, "weight_granularity": "per_group", "group_size": 16}, TensorProto.INT4),
        ({"weight_bits": 5, "activation_bits": None}, TensorProto.INT8),
        ({"weight_bits": "ternary", "activation_bits": None}, TensorProto.INT4),
        ({"weight_bits": "float8"}, TensorProto.FLOAT8E4M3FN),
    ],
)
def test_a_weight_takes_as_few_bits_as_runtimes_read_fast(settings, kind, tmp_path):
    model = mlp()
    quantize_(model, VECTORS, **settings)
    path = exported(model, VECTORS, tmp_path)
    assert kinds(path)["model.0.weight_quantizer.values"] == kind


@pytest.mark.parametrize("granularity", ["per_tensor", "per_channel"])
def test_words_of_eight_bit_floats_are_stored_so_and_looked_up(granularity, tmp_path):
    tokens = torch.randint(20, (4, 6), generator=torch.Generator().manual_seed(0))
    words = nn.Sequential(nn.Embedding(20, 8), nn.Linear(8, 8), nn.Linear(8, 4))
    model = quantize(words, [tokens], weight_bits="float8", weight_granularity=granularity, include="*").eval()
    path = exported(model, tokens, tmp_path)
    assert kinds(path)["model.0.weight_quantizer.values"] == TensorProto.FLOAT8E4M3FN
    torch.testing.assert_close(run(path, tokens), model(tokens), rtol=1e-5, atol=1e-5)


def test_a_weight_with_two_scales_is_stored_as_numbers_and_said_so(tmp_path):
    model = mlp()
    quantize_(model, VECTORS, weight_bits="ttq")
    report = export(model, tmp_path / "model.onnx", VECTORS, runtime_check=False)
    assert list(report.dense) == ["0.weight", "2.weight"]
    assert report.stored_weights == 0
    assert "0.weight is stored as float32" in str(report)


@pytest.mark.parametrize("scheme", ["asymmetric", "symmetric"])
def test_integers_of_inputs_stay_on_their_grid(scheme, tmp_path):
    models = {bits: mlp() for bits in (2, 5, 8)}
    for bits, model in models.items():
        quantize_(model, VECTORS, activation_bits=bits, activation_scheme=scheme)
    file = onnx.load(exported(Several({f"{bits}": model for bits, model in models.items()}), VECTORS, tmp_path))
    firsts = [node for node in file.graph.node if node.op_type == "QuantizeLinear"][::2]
    for node in firsts:
        file.graph.output.append(onnx.helper.make_tensor_value_info(node.output[0], TensorProto.UINT8, None))
    integers = ReferenceEvaluator(file).run(None, {"tensor": 100 * VECTORS.numpy()})[3:]
    assert [(array.min(), array.max()) for array in integers] == [(0, 2**bits - 1) for bits in models]


def test_batch_normalization_that_was_folded_is_gone(tmp_path):
    model = cnn()
    quantize_(model, IMAGES)
    path = exported(model, IMAGES, tmp_path)
    assert not nodes(path, "BatchNormalization")
    assert len(nodes(path, "Conv")) == 2
    assert largest_gap(run(path, IMAGES), evaluated(model, IMAGES)) < ROUNDING


def test_onnxruntime_rounds_nothing_that_was_not_rounded_in_training(tmp_path):
    ways = {"weights": {"weight_bits": 4}, "inputs": {"activation_bits": 4}}
    ways |= {way: {"weight_bits": way} for way in ("ternary", "ttq", "float8")}
    models = {name: cnn() for name in ways}
    for name, settings in ways.items():
        quantize_(models[name], IMAGES, **settings)
    outputs = run_all(exported(Several(models), IMAGES, tmp_path), IMAGES)
    for name, model in models.items():
        assert largest_gap(outputs[name], evaluated(model, IMAGES)) < 1e-4, name


def test_a_convolution_whose_output_stays_a_number_is_a_constant_when_it_runs(tmp_path):
    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1))

        def forward(self, images):
            return images + self.layers(images)

    torch.manual_seed(0)
    model = Residual()
    quantize_(model, IMAGES, include="*")
    path = exported(model, IMAGES, tmp_path)
    first, second = nodes(path, "Conv")
    makers = {node.output[0]: node.op_type for node in onnx.load(path).graph.node}
    assert (makers[first.input[1]], makers[second.input[1]]) == ("DequantizeLinear", "Mul")
    assert largest_gap(run(path, IMAGES), evaluated(model, IMAGES)) < ROUNDING


class Reader(nn.Module):
    def __init__(self, kind, size=6, **settings):
        super().__init__()
        self.words = nn.Embedding(20, 8)
        self.reader = kind(8, size, **settings)
        self.batch_first = settings.get("batch_first", False)

    def forward(self, ids):
        words = self.words(ids)
        output, state = self.reader(words if self.batch_first else words.transpose(0, 1))
        state = state[0] if isinstance(state, tuple) else state
        return torch.cat([output.flatten(), state.flatten()])


READERS = {
    "two layers, both directions": (nn.LSTM, {"num_layers": 2, "bidirectional": True, "batch_first": True}, {}),
    "without bias": (nn.LSTM, {"bias": False}, {"weight_bits": "ttq"}),
    "gated": (nn.GRU, {"bidirectional": True}, {"weight_bits": 4, "activation_bits": None}),
    "plain": (nn.RNN, {"batch_first": True}, {"weight_granularity": "per_tensor"}),
    "rectified": (nn.RNN, {"nonlinearity": "relu"}, {"weight_granularity": "per_group", "group_size": 2}),
    "of one number": (nn.RNN, {"size": 1}, {}),
}


@pytest.mark.parametrize("quantize", [True, False], ids=["quantized", "dense"])
def test_recurrent_layers_at_any_length(quantize, tmp_path):
    torch.manual_seed(0)
    models = {name: Reader(kind, **shape) for name, (kind, shape, _) in READERS.items()}
    for name, model in models.items():
        if quantize:
            quantize_(model, IDS, include="*", **READERS[name][2])
    path = exported(Several(models).eval(), IDS, tmp_path)
    assert [len(nodes(path, kind)) for kind in ("LSTM", "GRU", "RNN")] == [3, 1, 3]
    for ids in (IDS, torch.arange(14).view(2, 7)):
        outputs = run_all(path, ids)
        for name, model in models.items():
            assert largest_gap(outputs[name], evaluated(model, ids)) < ROUNDING, name


def test_a_state_can_be_given_to_a_recurrent_layer(tmp_path):
    torch.manual_seed(0)
    model = nn.GRU(8, 6, batch_first=True)
    inputs, state = random(3, 5, 8), random(1, 3, 6)
    quantize_(model, inputs, state, include="*")
    path = exported(model.eval(), (inputs, state), tmp_path, dynamic={"input": {1: "length"}})
    assert largest_gap(run(path, inputs, state), evaluated(model, inputs, state)) < ROUNDING


@pytest.mark.parametrize("granularity", [{}, {"weight_granularity": "per_group", "group_size": 2}])
@pytest.mark.parametrize(
    ("plain", "transposed", "size"), [(nn.Conv1d, nn.ConvTranspose1d, (5,)), (nn.Conv3d, nn.ConvTranspose3d, (5, 4, 3))]
)
def test_convolutions(plain, transposed, size, granularity, tmp_path):
    torch.manual_seed(0)
    middle = transposed(8, 4, 3, stride=2, output_padding=1)
    model = nn.Sequential(plain(4, 8, 3, groups=2), nn.ReLU(), middle, nn.ReLU(), plain(4, 2, 1))
    sample = random(2, 4, *size)
    quantize_(model, sample, include="*", **granularity)
    path = exported(model, sample, tmp_path)
    assert largest_gap(run(path, sample), evaluated(model, sample)) < ROUNDING
    assert len(stored(path)) == 3


def test_the_transformer_of_torch_whose_attention_reads_weights_itself(tmp_path):
    torch.manual_seed(0)
    model = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True), 1)
    sample = random(3, 5, 16)
    quantize_(model, sample, include="*")
    path = exported(model, sample, tmp_path, dynamic={"src": {0: "batch", 1: "length"}})
    for inputs in (sample, random(2, 9, 16)):
        assert largest_gap(run(path, inputs), evaluated(model, inputs)) < ROUNDING
    assert len(stored(path)) == 4


def test_gpt2_with_its_own_linear_layer_and_a_head_tied_to_the_words(tmp_path):
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    ends = {"bos_token_id": 0, "eos_token_id": 0}
    model = GPT2LMHeadModel(GPT2Config(vocab_size=80, n_positions=16, n_embd=16, n_layer=1, n_head=2, **ends))
    quantize_(model, IDS, include="*", attention=True)
    path = exported(model, {"input_ids": IDS}, tmp_path)
    assert largest_gap(run(path, IDS), model(IDS).logits) < ROUNDING
    tables = [name for name, array in stored(path).items() if array.shape == (80, 16)]
    assert tables == ["model.transformer.wte.weight_quantizer.values"]


def test_a_dense_model_can_be_exported_too(tmp_path):
    model = mlp().eval()
    path = exported(model, VECTORS[:1], tmp_path)  # a sample of one example does not fix the batch
    torch.testing.assert_close(run(path, VECTORS), model(VECTORS), rtol=1e-5, atol=1e-6)
    assert not nodes(path, "QuantizeLinear")


def test_a_lightning_module_with_the_batch_of_its_loader(tmp_path):
    shape = {"vocab_size": 50, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32}
    module = TransformerModule({"model_type": "bert", "num_hidden_layers": 1, **shape}, num_labels=3)
    path = exported(module, WORDS | {"labels": torch.zeros(3, dtype=torch.long)}, tmp_path)
    assert [entry.name for entry in onnx.load(path).graph.input] == ["input_ids", "attention_mask"]
    assert [entry.name for entry in onnx.load(path).graph.output] == ["logits"]
    assert largest_gap(run(path, **WORDS), module.eval()(**WORDS).logits) < 1e-5


def test_the_model_of_the_user_is_left_alone(transformer, before, transformer_file):
    kinds_before = {name: type(module) for name, module in before.named_modules()}
    assert {name: type(module) for name, module in transformer.named_modules()} == kinds_before
    state = transformer.state_dict()
    assert all(torch.equal(state.pop(name), tensor) for name, tensor in before.state_dict().items())
    assert not state
    assert transformer.config.to_dict() == before.config.to_dict()
    assert torch.equal(transformer(**WORDS).logits, before(**WORDS).logits)


def test_a_model_goes_on_training_after_its_export(tmp_path):
    model = mlp()
    quantize_(model, VECTORS)
    model.train()
    exported(model, VECTORS, tmp_path)
    assert all(module.training for module in model.modules())
    model(VECTORS).sum().backward()
    assert model[0].weight.grad.abs().sum() > 0


def test_half_precision_and_compiled_models(tmp_path):
    model = mlp().bfloat16()
    path = exported(torch.compile(model, backend="eager"), VECTORS.bfloat16(), tmp_path)
    assert largest_gap(run(path, VECTORS), model.float()(VECTORS)) < 0.01


def test_a_newer_operator_set(tmp_path):
    model = mlp()
    quantize_(model, VECTORS)
    path = exported(model, VECTORS, tmp_path, opset=25)
    assert onnx.load(path).opset_import[0].version == 25
    assert largest_gap(run(path, VECTORS), evaluated(model, VECTORS)) < ROUNDING


def test_numbers_beyond_one_file_stand_beside_it(tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_export, "_WHOLE_FILE", 100)
    model = mlp()
    quantize_(model, VECTORS)
    report = export(model, tmp_path / "model.onnx", VECTORS, runtime_check=False)
    files = list(tmp_path.iterdir())
    assert sorted(file.name for file in files) == ["model.onnx", "model.onnx.data"]
    assert report.bytes == sum(file.stat().st_size for file in files)
    assert largest_gap(run(tmp_path / "model.onnx", VECTORS), evaluated(model, VECTORS)) < ROUNDING


def test_sizes_are_free_only_where_asked(tmp_path):
    path = exported(mlp(), VECTORS, tmp_path, dynamic={})
    assert [size.dim_value for size in onnx.load(path).graph.input[0].type.tensor_type.shape.dim] == [8, 64]


class EncoderDecoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.words, self.head = nn.Embedding(20, 8), nn.Linear(8, 5)

    def forward(self, input_ids, attention_mask, decoder_input_ids):
        read = (self.words(input_ids) * attention_mask[..., None]).sum(1, keepdim=True)
        return self.head(self.words(decoder_input_ids) + read)


def sequences(batch, read, written):
    words = torch.arange(batch * (read + written)).view(batch, -1) % 20
    return {
        "input_ids": words[:, :read],
        "attention_mask": torch.ones(batch, read, dtype=torch.long),
        "decoder_input_ids": words[:, read:],
    }


def names_of_sizes(path):
    return {
        value.name: [size.dim_param for size in value.type.tensor_type.shape.dim]
        for value in onnx.load(path).graph.input
    }


def test_sizes_that_differ_have_names_of_their_own(tmp_path):
    model = EncoderDecoder()
    path = exported(model, sequences(3, 6, 4), tmp_path)
    assert names_of_sizes(path) == {
        "input_ids": ["batch", "input_ids_length"],
        "attention_mask": ["batch", "input_ids_length"],
        "decoder_input_ids": ["batch", "decoder_input_ids_length"],
    }
    others = sequences(2, 3, 7)
    np.testing.assert_allclose(run(path, **others), evaluated(model, *others.values()), atol=1e-5)


def test_sizes_that_agree_share_their_names(tmp_path):
    path = exported(EncoderDecoder(), sequences(3, 6, 6), tmp_path)
    assert set(map(tuple, names_of_sizes(path).values())) == {("batch", "length")}


def test_matrices_are_multiplied_in_integers_by_onnx_runtime(tmp_path):
    model = mlp()
    quantize_(model, VECTORS, include="*")
    path = exported(model, VECTORS, tmp_path)
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    kinds = [node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node]
    assert not {"Gemm", "MatMul"} & set(kinds), "computed in floating point"
    assert any("Integer" in kind or kind.startswith("Q") for kind in kinds)
