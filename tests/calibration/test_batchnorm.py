import subprocess
import sys

import pytest

from onnxprune.calibration import recalibrate
from onnxprune.errors import DataError

torch = pytest.importorskip("torch")


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(2, 3, 1)
        self.bn = torch.nn.BatchNorm2d(3, momentum=0.3)
        self.drop = torch.nn.Dropout(0.5)
        self.head = torch.nn.BatchNorm1d(3)
        self.unused = torch.nn.BatchNorm1d(4)

    def forward(self, x):
        return self.head(self.drop(self.bn(self.conv(x))).mean((2, 3)))


@pytest.fixture
def net():
    torch.manual_seed(0)
    net = Net()
    for layer in (net.bn, net.head, net.unused):
        layer.running_mean.fill_(float("nan"))
        layer.running_var.fill_(7)
    return net.eval()


def data(sizes):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(n, 2, 5, 5, generator=generator) * (i + 1) for i, n in enumerate(sizes)]


def test_statistics_are_those_of_the_whole_set(net):
    parts = data([4, 4, 1])
    assert recalibrate(net, [{"x": part} for part in parts[:2]]) == 2
    recalibrate(net, [{"x": torch.cat([part, part])} for part in parts])
    with torch.no_grad():
        seen = net.conv(torch.cat([torch.cat([part, part]) for part in parts]))
    torch.testing.assert_close(net.bn.running_mean, seen.mean((0, 2, 3)))
    torch.testing.assert_close(
        net.bn.running_var, seen.var((0, 2, 3), unbiased=False), rtol=0.02, atol=0
    )
    # the pooled variance differs from the mean of the batches' variances here
    assert net.bn.running_var.isfinite().all()


def test_one_batch_gives_torchs_own_statistics(net):
    (batch,) = data([6])
    recalibrate(net, [{"x": batch}])
    reference = torch.nn.BatchNorm2d(3, momentum=1.0)
    reference(net.conv(batch))
    torch.testing.assert_close(net.bn.running_mean, reference.running_mean)
    torch.testing.assert_close(net.bn.running_var, reference.running_var)


def test_everything_else_stays(net):
    net.drop.train()
    weights = {name: value.clone() for name, value in net.named_parameters()}
    recalibrate(net, [{"x": part} for part in data([4, 4])])
    assert net.bn.momentum == 0.3
    assert [net.training, net.bn.training, net.drop.training] == [False, False, True]
    assert all(torch.equal(weights[name], value) for name, value in net.named_parameters())
    assert net.unused.running_mean.isnan().all()
    assert (net.unused.running_var == 7).all()
    assert not net.bn._forward_hooks


@pytest.mark.parametrize(
    ("batches", "message"), [([], "no batches"), ([torch.zeros(1, 2, 5, 5)], "single value")]
)
def test_failure_puts_everything_back(net, batches, message):
    with pytest.raises(DataError, match=message):
        recalibrate(net, ({"x": batch} for batch in batches))
    assert net.bn.running_mean.isnan().all()
    assert (net.head.running_var == 7).all()
    assert net.bn.momentum == 0.3
    assert not net.bn.training


def test_no_layers():
    assert recalibrate(torch.nn.Linear(2, 2), []) == 0


def test_the_package_imports_without_torch():
    code = (
        "import sys; sys.modules['torch'] = sys.modules['torchvision'] = None;"
        "import onnxprune.calibration, onnxprune.validate;"
        "assert 'onnxruntime' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
