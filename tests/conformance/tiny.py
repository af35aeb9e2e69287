"""The smallest models, data and trainers on which a callback can be tried."""

import lightning.pytorch
import pytorch_lightning as pl
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

WEIGHTS = ("body.0.weight", "body.3.weight")  # what callbacks choose in a Tiny by default: all but the head
WINDOW = {"start": 2, "end": 8, "every": 3}
UPDATES = [2, 5, 8]  # the optimizer steps at which something happens in WINDOW


def network():
    torch.manual_seed(0)
    layers = [nn.Linear(8, 16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 16), nn.ReLU()]
    return nn.Sequential(*layers), nn.Linear(16, 2)


def data(examples=32):
    features = torch.randn(examples, 8, generator=torch.Generator().manual_seed(1))
    return TensorDataset(features, (features.sum(1) > 0).long())


def loader(examples=32, batch_size=4, **options):
    return DataLoader(data(examples), batch_size=batch_size, **{"shuffle": True} | options)


class ResumableLoader:
    """Shuffles anew in each epoch, and its place inside an epoch goes into checkpoints."""

    def __init__(self, examples=32, batch_size=4):
        self.features, self.labels = data(examples).tensors
        self.batch_size, self.epoch, self.batch = batch_size, 0, 0

    def __len__(self):
        return len(self.labels) // self.batch_size

    def __iter__(self):
        if self.batch == len(self):
            self.epoch, self.batch = self.epoch + 1, 0
        order = torch.randperm(len(self.labels), generator=torch.Generator().manual_seed(self.epoch))
        while self.batch < len(self):
            chosen = order[self.batch * self.batch_size : (self.batch + 1) * self.batch_size]
            self.batch += 1
            yield self.features[chosen], self.labels[chosen]

    def state_dict(self):
        return {"epoch": self.epoch, "batch": self.batch}

    def load_state_dict(self, state):
        self.epoch, self.batch = state["epoch"], state["batch"]


class _Classifier:
    """A user's module, for either namespace; ``options`` go to AdamW."""

    def __init__(self, **options):
        super().__init__()
        self.options = {"lr": 0.05, "weight_decay": 0.01} | options
        self.body, self.head = network()

    def forward(self, features):
        return self.head(self.body(features))

    def loss(self, batch):
        features, labels = batch
        return F.cross_entropy(self(features).float(), labels)

    def training_step(self, batch, batch_idx):
        return self.loss(batch)

    def test_step(self, batch, batch_idx):
        self.log("test_loss", self.loss(batch))

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), **self.options)


class Tiny(_Classifier, pl.LightningModule):
    pass


class Validated(Tiny):
    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.loss(batch))

    def val_dataloader(self):
        return loader(shuffle=False)


class Manual(Tiny):
    """Steps its optimizer itself."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(self.loss(batch))
        optimizer.step()


class TinyOfLightning(_Classifier, lightning.pytorch.LightningModule):
    pass


class Plain(nn.Module):
    """The same network in a class that has never heard of Lightning."""

    def __init__(self):
        super().__init__()
        self.body, self.head = network()


def trainer(*callbacks, package=pl, **settings):
    checkpoints = any(type(callback).__name__ == "ModelCheckpoint" for callback in callbacks)
    quiet = {
        "accelerator": "cpu",
        "devices": 1,
        "logger": False,
        "enable_checkpointing": checkpoints,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "max_epochs": 2,
    }
    return package.Trainer(callbacks=list(callbacks), **quiet | settings)


def fit(model, *callbacks, batches=None, ckpt_path=None, **settings):
    """Train, and give the trainer back."""
    run = trainer(*callbacks, **settings)
    run.fit(model, loader() if batches is None else batches, ckpt_path=ckpt_path)
    return run


def weights(model, names=WEIGHTS):
    """The named parameters, whatever ``torch.compile`` has put between the parts of their names."""
    named = {name.replace("_orig_mod.", ""): parameter for name, parameter in model.named_parameters()}
    return [named[name].detach() for name in names]


def zeros(model, names=WEIGHTS):
    return sum(int((weight == 0).sum()) for weight in weights(model, names))


def adam_steps(run, name=WEIGHTS[0]):
    """How many updates a weight really had, as its Adam optimizer counted them."""
    model = run.lightning_module
    named = {name.replace("_orig_mod.", ""): parameter for name, parameter in model.named_parameters()}
    states = [optimizer.state[named[name]] for optimizer in run.optimizers if named[name] in optimizer.state]
    return int(states[0]["step"]) if states else 0


def record_updates(callback, name=WEIGHTS[0]):
    """A list that will hold the step of each update; the callback must count as Adam does."""
    steps, update = [], callback.update

    def recorded(model, now, run):
        assert now.step == adam_steps(run, name)
        steps.append(now.step)
        update(model, now, run)

    callback.update = recorded
    return steps
