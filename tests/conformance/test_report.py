"""A report on each way of compressing looks on: the run ends bitwise as it does without one."""

from lightning_compress import CompressionReport
from tests.conformance.interruption import assert_bitwise_equal, everything, run_to_the_end, run_until
from tests.conformance.tiny import WINDOW, Validated, loader


def test_a_report_changes_nothing(case, tmp_path):
    plain, reporting = Validated(), CompressionReport(runtimes=[], dirpath=tmp_path)
    whole = everything(run_to_the_end(plain, case.make(**WINDOW)))
    model = Validated()
    run = run_to_the_end(model, case.make(**WINDOW), reporting)
    assert_bitwise_equal(everything(run), whole)
    assert case.holds(model)
    run.test(model, loader(shuffle=False), verbose=False)
    assert vars(model).keys() - vars(plain).keys() <= {"_lightning_compress_originals", "on_save_checkpoint"}
    assert [len(one._forward_hooks) + len(one._forward_pre_hooks) for one in model.modules()] == [
        len(one._forward_hooks) + len(one._forward_pre_hooks) for one in plain.modules()
    ]
    assert not {one.measurement for one in reporting.report.failures} - {"energy"}
    assert reporting.report.applied[0].in_words


def test_a_resumed_run_ends_as_the_whole_one_and_knows_the_same_dense_model(case, tmp_path):
    def callbacks():
        return case.make(**WINDOW), CompressionReport(runtimes=[], dirpath=tmp_path)

    whole, resumed = callbacks(), callbacks()
    expected = everything(run_to_the_end(Validated(), *whole))
    path = run_until(6, tmp_path, Validated(), *callbacks())
    found = everything(run_to_the_end(Validated(), *resumed, ckpt_path=path))
    assert_bitwise_equal(found, expected)
    for name in ("dense", "compressed"):
        once, again = (getattr(one[1].report, name) for one in (whole, resumed))
        assert (once.metrics, once.nonzero, once.bops) == (again.metrics, again.nonzero, again.bops)
