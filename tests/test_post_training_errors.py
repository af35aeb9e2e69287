"""What quantize refuses, and what it says."""

import pytest
import pytorch_lightning as pl
from torch import nn

from lightning_compress import CompressionError, ConfigurationError, TargetError, quantize
from tests.conformance.tiny import Tiny, data, loader

FEATURES = data().tensors[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batches": 0}, "batches=0: write how many"),
        ({"batches": True}, "batches=True"),
        ({"batches": 2.0}, "batches=2.0"),
        ({"smooth": 1.5}, r"smooth=1.5: write a strength from 0 to 1, smooth=0\.5"),
        ({"smooth": True}, "smooth=True"),
        ({"smooth": 0.5, "activation_bits": None}, "activation_bits=None leaves activations as they are"),
        ({"correct_bias": 1}, "correct_bias=1"),
        ({"start": 0.1}, "start=0.1 is a moment of a training run"),
        ({"freeze_ranges": 10}, "freeze_ranges=10"),
        ({"bits": 8}, "'bits' is no setting; there are weight_bits, activation_bits, "),
        ({"weight_bits": 1}, "weight_bits=1: write 2 to 8"),
        ({"method": "lsq"}, "method='lsq'.*learn their ranges in training.*method='minmax'"),
        ({"method": "lsq+"}, "method='lsq+'".replace("+", r"\+")),
        ({"method": "pact"}, "method='pact'"),
        ({"weight_bits": "ttq"}, "weight_bits='ttq'"),
        ({"overrides": {"body.0.*": {"method": "lsq"}}}, "overrides=.*'lsq'"),
        ({"forward": lambda model, batch: model(batch, 1)}, r"forward= failed on a batch of type list.*TypeError"),
    ],
)
def test_bad_values_are_refused(arguments, message):
    with pytest.raises(ConfigurationError, match=message):
        quantize(Tiny(), loader(), **arguments)


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([], "gave no batch"),
        (FEATURES, "type Tensor is no iterable of batches"),
        (pl.LightningDataModule(), r"datamodule\.train_dataloader\(\)"),
        ([{"images": FEATURES}], r"Tiny failed on a batch of type dict with images: TypeError.*forward=lambda model"),
        ([(3, FEATURES)], "Tiny failed on a batch of type tuple of int, Tensor: "),
        ([FEATURES[:, :3]], "Tiny failed on a batch of type Tensor"),
        ([None], "does not know how to call a model with a batch of type NoneType"),
    ],
)
def test_batches_that_cannot_be_used(batches, message):
    for smooth in (None, 0.5):
        with pytest.raises(ConfigurationError, match=message):
            quantize(Tiny(), batches, smooth=smooth)


def test_what_cannot_be_quantized():
    with pytest.raises(TargetError, match=r"include='\*\.atention\.\*' matches no parameter"):
        quantize(Tiny(), loader(), include="*.atention.*")
    with pytest.raises(ConfigurationError, match=r"quantize\(dict\) takes modules"):
        quantize({}, loader())
    with pytest.raises(CompressionError, match=r"input of body\.0\.weight was NaN or infinite in batch 1 "):
        quantize(Tiny(), [FEATURES, FEATURES / 0])
    with pytest.warns(UserWarning, match=r"no input of 1\.weight"):
        quantize(
            nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 2)),
            [FEATURES],
            forward=lambda model, batch: model[2](model[0](batch)),
        )
