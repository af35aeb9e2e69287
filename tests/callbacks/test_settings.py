"""What goes into a checkpoint about a callback's arguments."""

from lightning_compress import GradualPruning
from tests.conformance.interruption import run_to_the_end, run_until
from tests.conformance.tiny import WINDOW, Tiny


class Half(GradualPruning):
    """A user's subclass that hands most of its arguments on."""

    def __init__(self, **arguments):
        super().__init__(0.5, **arguments)


def test_a_subclass_that_hands_its_arguments_on_resumes_without_a_warning(tmp_path):
    path = run_until(4, tmp_path, Tiny(), Half(**WINDOW, criterion="magnitude"))
    model = Tiny()
    run_to_the_end(model, Half(**WINDOW, criterion="magnitude"), ckpt_path=path)
    assert int((model.body[3].weight == 0).sum()) > 0
