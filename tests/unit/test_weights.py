"""Encoders that begin with a file of weights: what is taken, how a run is known by it, what is refused."""

import hashlib

import pytest
import torch
from torchvision.models import resnet18, resnet34

from balancebench_udi.errors import UserError
from balancebench_udi.nets import encoders
from balancebench_udi.nets.encoders import build_encoder, encoder_options
from balancebench_udi.nets.model import seeded


@pytest.fixture(scope="module")
def trained():
    """A state dict as torchvision distributes it: of older files, without counts of batches."""
    state = {n: v for n, v in resnet18().state_dict().items() if not n.endswith("num_batches_tracked")}
    return {n: v + torch.rand_like(v) / 2 for n, v in state.items()}


@pytest.fixture
def file(trained, tmp_path):
    torch.save(trained, tmp_path / "net.pth")
    return tmp_path / "net.pth"


def built(description, channels):
    with seeded(0, "test"):
        return build_encoder(description, (channels, 32, 32))


def test_a_file_is_known_by_its_content_alone(file, tmp_path):
    described = encoder_options("resnet18", "frames", {"weights": str(file)})
    assert described == {"name": "resnet18", "weights": f"sha256:{hashlib.sha256(file.read_bytes()).hexdigest()}"}
    (tmp_path / "copy.pth").write_bytes(file.read_bytes())
    assert encoder_options("resnet18", "frames", {"weights": str(tmp_path / "copy.pth")}) == described
    rest = {k: v for k, v in described.items() if k != "name"}
    assert encoder_options("resnet18", "frames", rest) == described
    torch.save({**torch.load(file), "bn1.bias": torch.zeros(64)}, file)
    assert encoder_options("resnet18", "frames", {"weights": str(file)}) != described
    assert encoder_options("resnet18", "frames", {"weights": "none"}) == {"name": "resnet18"}


def test_all_but_the_classifier_is_taken(trained, file):
    encoder = built(encoder_options("resnet18", "frames", {"weights": str(file)}), 3)
    taken = {n: v for n, v in encoder.net.state_dict().items() if not n.endswith("num_batches_tracked")}
    assert taken.keys() == {n for n in trained if not n.startswith("fc.")}
    for name, value in taken.items():
        assert torch.equal(value, trained[name])
    whole = resnet18()
    whole.load_state_dict(trained, strict=False)
    whole.fc = torch.nn.Identity()
    x = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(encoder.eval()(x), whole.eval()(x), rtol=1e-4, atol=1e-4)


def test_a_first_convolution_of_other_channels_begins_from_scratch(trained, file):
    flow = built(encoder_options("resnet18", "flow", {"weights": str(file)}), 2)
    scratch = built({"name": "resnet18"}, 2)
    assert torch.equal(flow.net.conv1.weight, scratch.net.conv1.weight)
    assert torch.equal(flow.net.layer4[1].conv2.weight, trained["layer4.1.conv2.weight"])
    assert not torch.equal(scratch.net.layer4[1].conv2.weight, trained["layer4.1.conv2.weight"])


def other_shape(state):
    return {**state, "layer1.0.conv1.weight": torch.zeros(64, 64, 1, 1)}


def other_start(state):
    return {**state, "conv1.weight": torch.zeros(32, 3, 7, 7)}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (lambda state: b"<html>", "must be a state dict that torch.save wrote, found another content in"),
        (lambda state: [1, 2], "must be a state dict that torch.save wrote, found another content in"),
        (lambda state: {"epoch": 3, **state}, "must be a state dict that torch.save wrote, found another content in"),
        (lambda state: {"net": torch.zeros(3)}, r"resnet18, .* of shape \(.*\), found none in"),
        (lambda state: resnet34().state_dict() | {"layer2.0.bn1.bias": torch.zeros(3)}, r"layer2.*found \(3,\) in"),
        (other_start, r"conv1.weight of shape \(64, 3, 7, 7\), found \(32, 3, 7, 7\) in"),
        (other_shape, r"layer1.0.conv1.weight of shape \(64, 64, 3, 3\), found \(64, 64, 1, 1\) in"),
    ],
    ids=[
        "no archive",
        "a list",
        "a checkpoint",
        "another network",
        "a shape of resnet34",
        "another start",
        "another shape",
    ],
)
def test_another_content_is_refused_before_anything_is_trained(trained, tmp_path, content, said):
    path, made = tmp_path / "net.pth", content(trained)
    path.write_bytes(made) if isinstance(made, bytes) else torch.save(made, path)
    with pytest.raises(UserError, match=said):
        encoder_options("resnet18", "frames", {"weights": str(path)})


def test_a_file_for_gray_pictures_serves_them(trained, tmp_path):
    torch.save({**trained, "conv1.weight": torch.ones(64, 1, 7, 7)}, tmp_path / "net.pth")
    described = encoder_options("resnet18", "spectrogram", {"weights": str(tmp_path / "net.pth")})
    assert built(described, 1).net.conv1.weight.eq(1).all()
    assert not built(described, 3).net.conv1.weight.eq(1).any()


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match=r"^weights must be a file that can be read, found .*none.pth: No such file"):
        encoder_options("resnet18", "frames", {"weights": str(tmp_path / "none.pth")})
    with pytest.raises(UserError, match=r"^encoder digit has no option 'weights'"):
        encoder_options("digit", "digit", {"weights": "x"})


def test_a_process_that_was_never_told_of_the_file_says_so(file, monkeypatch):
    described = encoder_options("resnet18", "frames", {"weights": str(file)})
    monkeypatch.setattr(encoders, "_weights", {})
    with pytest.raises(UserError, match=r"begins with the weights sha256:[0-9a-f]{64}: name their file again"):
        built(described, 3)


def test_a_file_that_changes_between_plan_and_training_is_refused(trained, file):
    described = encoder_options("resnet18", "frames", {"weights": str(file)})
    torch.save({**trained, "bn1.bias": torch.zeros(64)}, file)
    with pytest.raises(UserError, match=r"net.pth must stay as it was, sha256:\w+, found sha256:\w+: start the run"):
        built(described, 3)
