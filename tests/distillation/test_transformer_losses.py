import numpy as np
import pytest
import torch
from torch import nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    T5Config,
    T5EncoderModel,
)

from lightning_compress.core import ConfigurationError
from lightning_compress.distillation import functional
from lightning_compress.distillation.base import FeaturePair, Observation
from lightning_compress.distillation.losses import AttentionMaps, HiddenStates, Hint, MiniLMRelations, SequenceKD
from tests.distillation.judges import close, shown

TOKENS = torch.tensor([[5, 6, 7, 8, 9], [9, 8, 7, 0, 0], [5, 9, 6, 4, 0]])
MASK = TOKENS > 0


def bert(depth, width, heads, **settings):
    config = BertConfig(
        hidden_size=width,
        num_attention_heads=heads,
        num_hidden_layers=depth,
        intermediate_size=8,
        vocab_size=12,
        max_position_embeddings=8,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        **settings,
    )
    return BertForSequenceClassification(config)


def distilbert(depth, width, heads, **settings):
    config = DistilBertConfig(
        dim=width,
        n_heads=heads,
        n_layers=depth,
        hidden_dim=8,
        vocab_size=12,
        max_position_embeddings=8,
        dropout=0.0,
        attention_dropout=0.0,
        **settings,
    )
    return DistilBertForSequenceClassification(config)


def gpt2(depth, width, heads, **settings):
    config = GPT2Config(
        n_embd=width,
        n_head=heads,
        n_layer=depth,
        vocab_size=12,
        n_positions=8,
        bos_token_id=1,
        eos_token_id=1,
        attn_pdrop=0.0,
        embd_pdrop=0.0,
        resid_pdrop=0.0,
        **settings,
    )
    return GPT2LMHeadModel(config)


def llama(depth, width, heads, **settings):
    config = LlamaConfig(
        hidden_size=width,
        num_attention_heads=heads,
        num_key_value_heads=heads // 2,
        num_hidden_layers=depth,
        intermediate_size=8,
        vocab_size=12,
        max_position_embeddings=8,
        **settings,
    )
    return LlamaForCausalLM(config)


ARCHITECTURES = [bert, distilbert, gpt2, llama]


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.mark.parametrize("build", [bert, distilbert, gpt2])
def test_scores_are_those_that_the_network_softmaxes(build):
    network = build(2, 8, 4, attn_implementation="eager").eval()
    loss = AttentionMaps()
    own, _ = shown(loss, network, network, mask=MASK, input_ids=TOKENS)
    expected = network(input_ids=TOKENS, attention_mask=MASK.long(), output_attentions=True).attentions
    for layer, attention in enumerate(expected):
        scores = functional.attention_scores(*own.features[2 * layer : 2 * layer + 2])
        seen = MASK[:, None, None, :].expand_as(scores)
        seen = seen & torch.ones(5, 5, dtype=torch.bool).tril() if build is gpt2 else seen
        found = scores.masked_fill(~seen, -torch.inf).softmax(dim=-1)
        kept = MASK[:, None, :, None].expand_as(found)
        close(found[kept], attention.detach().numpy()[kept.numpy()], tolerance=1e-5)


def test_attention_maps_compare_the_layers_that_the_map_names():
    student, teacher = bert(2, 8, 2).eval(), bert(4, 12, 2).eval()
    for layers, expected in (("uniform", [(0, 1), (1, 3)]), ({1: 0}, [(1, 0)]), ([3, 2], [(0, 3), (1, 2)])):
        loss = AttentionMaps(layers)
        own, other = shown(loss, student, teacher, mask=MASK, input_ids=TOKENS)
        names = [(pair.student, pair.teacher) for pair in loss.pairs(student, teacher)]
        assert names == [
            tuple(f"bert.encoder.layer.{layer}.attention.self.{part}" for layer in both)
            for both in expected
            for part in ("query", "key")
        ]
        terms = []
        for place in range(len(expected)):
            scores = [functional.attention_scores(*seen.features[2 * place : 2 * place + 2]) for seen in (own, other)]
            terms.append(functional.attention_maps(*scores, MASK, causal=False).item())
        close(loss(own, other), sum(terms), tolerance=1e-6)


def test_hidden_states_are_those_that_the_network_returns():
    student, teacher = bert(2, 8, 2).eval(), bert(4, 8, 4).eval()
    own, other = shown(HiddenStates(), student, teacher, mask=MASK, input_ids=TOKENS)
    expected = [
        network(input_ids=TOKENS, attention_mask=MASK.long(), output_hidden_states=True).hidden_states
        for network in (student, teacher)
    ]
    squares = []
    for place, there in ((0, 0), (1, 2), (2, 4)):  # 0 is the embeddings
        q, p = (states[at].detach()[MASK].numpy() for states, at in zip(expected, (place, there), strict=True))
        squares.append(((q - p) ** 2).mean())
    close(HiddenStates()(own, other), sum(squares))


def test_hidden_states_by_cosine_without_embeddings():
    student, teacher = bert(2, 8, 2).eval(), bert(4, 8, 4).eval()
    loss = HiddenStates("last", distance="cosine", embeddings=False)
    assert [pair.teacher for pair in loss.pairs(student, teacher)] == ["bert.encoder.layer.2", "bert.encoder.layer.3"]
    own, other = shown(loss, student, teacher, mask=MASK, input_ids=TOKENS)
    terms = [functional.cosine(*both, MASK).item() for both in zip(own.features, other.features, strict=True)]
    close(loss(own, other), sum(terms))


def test_hidden_states_of_different_widths_get_a_projection_each():
    loss = HiddenStates()
    student, teacher = bert(2, 8, 2), bert(4, 12, 4)
    own, other = shown(loss, student, teacher, mask=MASK, input_ids=TOKENS)
    learned = loss.learned(own, other)
    assert [tuple(one.weight.shape) for one in learned] == [(12, 8)] * 3
    loss(own, other, learned).backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in learned.parameters())
    with pytest.raises(
        ConfigurationError, match=r"hidden states have shape \[3, 5, 8\] and the teacher's \[3, 5, 12\]"
    ):
        loss(own, other)


@pytest.mark.parametrize(
    ("layers", "expected"), [("last", {1: 3}), (1, {1: 1}), (-2, {1: 2}), ({0: 1, 1: 2}, {0: 1, 1: 2})], ids=repr
)
def test_minilm_relations_are_of_the_last_layer_or_of_those_named(layers, expected):
    student, teacher = bert(2, 8, 2).eval(), bert(4, 12, 4).eval()
    loss = MiniLMRelations(layers)
    own, other = shown(loss, student, teacher, mask=MASK, input_ids=TOKENS)
    states = [
        network(input_ids=TOKENS, attention_mask=MASK.long(), output_hidden_states=True).hidden_states
        for network in (student, teacher)
    ]
    terms = []
    for place, there in expected.items():
        for part in ("query", "key", "value"):
            heads = []
            for network, hidden, layer in zip((student, teacher), states, (place, there), strict=True):
                projection = getattr(network.bert.encoder.layer[layer].attention.self, part)
                heads.append(functional.split_heads(projection(hidden[layer]).detach(), heads=4))
            terms.append(functional.minilm_relations(*heads, MASK).item())
    close(loss(own, other), sum(terms))


@pytest.mark.parametrize("heads", [1, 2, 4])
def test_relation_heads_may_be_any_divisor(heads):
    student, teacher = bert(2, 8, 2), bert(3, 12, 3)
    loss = MiniLMRelations(heads=heads)
    own, other = shown(loss, student, teacher, mask=MASK, input_ids=TOKENS)
    assert [tuple(feature.shape) for feature in own.features] == [(3, heads, 5, 8 // heads)] * 3
    assert [tuple(feature.shape) for feature in other.features] == [(3, heads, 5, 12 // heads)] * 3


def test_relation_heads_that_divide_no_width_are_refused():
    student, teacher = bert(2, 8, 2), bert(3, 12, 3)
    with pytest.raises(ConfigurationError, match=r"\[3, 5, 8\] cannot be cut into heads=3"):
        shown(MiniLMRelations(), student, teacher, mask=MASK, input_ids=TOKENS)  # the teacher's 3 by default


LOSSES = [AttentionMaps(), AttentionMaps(causal=True), HiddenStates(), MiniLMRelations(), MiniLMRelations(heads=2)]


@pytest.mark.parametrize("loss", LOSSES, ids=repr)
@pytest.mark.parametrize("build", ARCHITECTURES)
def test_every_architecture_learns_from_a_deeper_and_wider_one(build, loss):
    student, teacher = build(1, 8, 4), build(2, 16, 4).eval()
    learned = loss.learned(*shown(loss, student, teacher, mask=MASK, input_ids=TOKENS))
    parameters = [*student.parameters(), *(learned.parameters() if learned is not None else [])]
    optimizer = torch.optim.Adam(parameters, lr=0.01)
    terms = []
    for _ in range(30):
        term = loss(*shown(loss, student, teacher, mask=MASK, input_ids=TOKENS), learned)
        optimizer.zero_grad()
        term.backward()
        optimizer.step()
        terms.append(term.item())
    assert terms[-1] < 0.9 * terms[0]
    assert all(parameter.grad is None for parameter in teacher.parameters())


@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_architectures_may_differ(loss):
    student, teacher = bert(1, 8, 2), gpt2(2, 8, 4).eval()
    term = loss(*shown(loss, student, teacher, mask=MASK, input_ids=TOKENS))
    term.backward()
    assert term > 0


def test_each_network_is_cut_into_its_own_heads():
    student, teacher = bert(1, 8, 2), gpt2(1, 8, 4).eval()
    own, other = shown(AttentionMaps(), student, teacher, mask=MASK, input_ids=TOKENS)
    assert [tuple(feature.shape) for feature in own.features] == [(3, 2, 5, 4)] * 2
    assert [tuple(feature.shape) for feature in other.features] == [(3, 4, 5, 2)] * 2


@pytest.mark.parametrize("causal", [False, True])
def test_decoders_may_leave_out_what_they_never_look_at(causal):
    student, teacher = gpt2(1, 8, 2).eval(), gpt2(1, 8, 2).eval()
    loss = AttentionMaps(causal=causal)
    own, other = shown(loss, student, teacher, mask=MASK, input_ids=TOKENS)
    scores = [functional.attention_scores(*seen.features) for seen in (own, other)]
    close(loss(own, other), functional.attention_maps(*scores, MASK, causal=causal).item(), tolerance=1e-6)


@pytest.mark.parametrize("loss", [HiddenStates(), AttentionMaps(), MiniLMRelations()], ids=repr)
def test_padding_has_no_influence(loss):
    student, teacher = bert(1, 8, 2).eval(), bert(2, 8, 4).eval()
    before = loss(*shown(loss, student, teacher, mask=MASK, input_ids=TOKENS))
    other = TOKENS.masked_fill(~MASK, 11)
    close(loss(*shown(loss, student, teacher, mask=MASK, input_ids=other)), before.item(), tolerance=1e-6)


def test_a_copy_has_nothing_to_learn():
    teacher = llama(2, 16, 4).eval()
    for loss in (*LOSSES, SequenceKD(), SequenceKD(beta=0.5)):
        close(loss(*shown(loss, teacher, teacher, mask=MASK, input_ids=TOKENS)), 0.0, tolerance=1e-6)


def test_grouped_keys_serve_as_many_queries():
    network = llama(1, 16, 4).eval()
    own, _ = shown(AttentionMaps(), network, network, mask=MASK, input_ids=TOKENS)
    assert [tuple(feature.shape) for feature in own.features] == [(3, 4, 5, 4), (3, 2, 5, 4)]


def test_hints_take_the_mask_of_tokens():
    student, teacher = bert(1, 8, 2).eval(), bert(2, 8, 4).eval()
    loss = Hint([FeaturePair("bert.encoder.layer.0", "bert.encoder.layer.1")])
    own, other = shown(loss, student, teacher, mask=MASK, input_ids=TOKENS)
    q, p = (seen.features[0].detach()[MASK].numpy() for seen in (own, other))
    close(loss(own, other), np.mean((q - p) ** 2))


def test_compiled_networks_are_named_as_they_were_before():
    network = bert(2, 8, 2)
    plain = AttentionMaps().pairs(network, network)
    network.bert.encoder = torch.compile(network.bert.encoder, backend="eager")
    assert AttentionMaps().pairs(network, network) == plain
    assert HiddenStates().pairs(network, network)[1].student == "bert.encoder.layer.0"


def test_networks_without_what_is_looked_for_are_refused():
    convolution, encoder = nn.Conv2d(2, 2, 1), bert(2, 8, 2)
    for loss in (AttentionMaps(), HiddenStates(), MiniLMRelations()):
        with pytest.raises(ConfigurationError, match="Conv2d has no stack of equal layers"):
            loss.pairs(encoder, convolution)
    bare = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2), 2, enable_nested_tensor=False)
    assert len(HiddenStates().pairs(bare, bare)) == 3
    with pytest.raises(ConfigurationError, match="TransformerEncoderLayer has no query, key and value layers"):
        AttentionMaps().pairs(bare, bare)
    for layers, named in ((4, "layers={1: 4}"), (-3, "layers={1: -1}"), ({2: 0}, "layers={2: 0}")):
        with pytest.raises(ConfigurationError) as caught:
            MiniLMRelations(layers).pairs(encoder, encoder)
        assert named in str(caught.value)


def test_a_number_of_heads_that_nobody_says_is_refused():
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.query, self.key, self.value = (nn.Linear(4, 4) for _ in range(3))

    network = nn.Module()
    network.layers = nn.ModuleList([nn.ModuleDict({"attention": Attention()})])
    with pytest.raises(
        ConfigurationError, match=r"Attention in 'layers.0' does not say how many heads it has: expected"
    ):
        AttentionMaps().pairs(network, network)
    network.layers[0]["attention"].num_heads = 2
    assert [pair.pick.heads for pair in AttentionMaps().pairs(network, network)] == [2, 2]


def test_heads_of_t5_are_found():
    config = T5Config(d_model=8, d_kv=4, d_ff=8, num_layers=2, num_heads=3, vocab_size=12, dropout_rate=0.0)
    network = T5EncoderModel(config)
    pairs = AttentionMaps().pairs(network, network)
    assert {pair.pick.heads for pair in pairs} == {3}


def test_fused_projections_with_fewer_keys_are_not_mistaken_for_those_of_gpt2():
    network = nn.Module()
    layer = nn.Module()
    layer.c_attn = nn.Linear(8, 8 + 2 * 4)
    layer.num_heads = 2
    network.layers = nn.ModuleList([layer])
    with pytest.raises(ConfigurationError, match="Module has no query, key and value layers"):
        MiniLMRelations().pairs(network, network)


def test_observations_of_the_two_networks_must_agree():
    loss = MiniLMRelations(heads=2)
    student, teacher = bert(1, 8, 2), bert(2, 8, 4)
    own, other = shown(loss, student, teacher, mask=MASK, input_ids=TOKENS)
    fewer = Observation(None, [feature[:2] for feature in other.features])
    with pytest.raises(ConfigurationError, match="expected the same number of samples, relation heads and tokens"):
        loss(own, fewer)
