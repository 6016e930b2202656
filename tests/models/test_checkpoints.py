"""First weights from a checkpoint: what becomes of the classifier, and what our own files say of themselves."""

import json

import pytest
import safetensors.torch
import torch

from cache.errors import ReskdError
from cache.view import ViewPolicy
from stages.models.architectures import build_model
from stages.models.checkpoints import ModelCard, load_model, save_model
from stages.models.config import InitConfig
from stages.models.init_weights import initialise
from tests.foreign_files import as_mmaction2, clips, model_config, resnet

NAMES = ("a", "b", "c", "d", "e")


def fresh(config):
    torch.manual_seed(5)
    return build_model(config)


def run(path, config, classes=NAMES, **init):
    """The initialised model, whether its classifier is the checkpoint's, and what is said."""
    model = fresh(config)
    before = model.head.fc.weight.detach().clone()
    said = initialise(model, config, InitConfig(path=path, **init), classes)
    return model, not torch.equal(before, model.head.fc.weight), said


def mmaction2_file(tmp_path, classes=5, headless=False, meta=None):
    state = as_mmaction2(resnet(classes))
    if headless:
        state = {name: tensor for name, tensor in state.items() if "cls_head" not in name}
    torch.save({"state_dict": state, "meta": meta or {}}, tmp_path / "net.pth")
    return tmp_path / "net.pth"


def own_file(tmp_path, config, classes=NAMES, name="net"):
    torch.manual_seed(9)
    model = build_model(config)
    policy = ViewPolicy(num_frames=4, jitter=False, crop="center", flip=0.0)
    save_model(tmp_path / f"{name}.safetensors", model, ModelCard(config, classes, 32, None, policy))
    return tmp_path / f"{name}.safetensors", model


BOTH = "head: reinit where it doesn't fit, head: drop in any case"


@pytest.mark.parametrize("classes, headless, fits", [(5, False, True), (7, False, False), (5, True, False)])
def test_the_three_policies_on_a_classifier_that_fits_one_of_other_classes_and_none(classes, headless, fits, tmp_path):
    path, config = mmaction2_file(tmp_path, classes, headless), model_config("tsn")
    if fits:
        model, kept, said = run(path, config)
        assert kept and "its classifier" in said and "taken to be in this order" in said
        assert torch.equal(model.head.fc.weight, resnet(classes).fc.weight)
    else:
        why = "has no classifier, and the model's is for 5" if headless else "of 7 classes, the model's is for 5"
        with pytest.raises(ReskdError, match=f"{why}.*{BOTH}"):
            run(path, config)
    for head, expected in (("reinit", fits), ("drop", False)):
        model, kept, said = run(path, config, head=head)
        assert kept is expected and ("a fresh classifier" in said) is not expected
        assert torch.equal(model.backbone.conv1.weight, resnet(classes).conv1.weight)


def test_a_model_is_not_touched_by_a_checkpoint_that_does_not_fit(tmp_path):
    config = model_config("tsn")
    model, before = fresh(config), fresh(config).state_dict()
    with pytest.raises(ReskdError):
        initialise(model, config, InitConfig(path=mmaction2_file(tmp_path, 7)), NAMES)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize("meta", [{"CLASSES": NAMES}, {"dataset_meta": {"classes": list(NAMES)}}], ids=["0.x", "1.x"])
def test_class_names_in_a_foreign_file_are_compared(meta, tmp_path):
    path, config = mmaction2_file(tmp_path, meta=meta), model_config("tsn")
    _, kept, said = run(path, config)
    assert kept and "taken to be" not in said
    other = ("a", "b", "d", "c", "e")
    with pytest.raises(ReskdError, match=f"class 2 is 'c' in the checkpoint and 'd' in the data set.*{BOTH}"):
        run(path, config, other)
    assert not run(path, config, other, head="reinit")[1]


def test_our_own_file_comes_back_whole_and_its_class_names_count(tmp_path):
    config = model_config("tsn")
    path, saved = own_file(tmp_path, config)
    for format in ("auto", "reskd"):
        model, kept, said = run(path, config, format=format)
        assert kept and "reskd" in said
        assert all(
            torch.equal(a, b) for a, b in zip(model.state_dict().values(), saved.state_dict().values(), strict=True)
        )
    with pytest.raises(ReskdError, match=f"class 0 is 'a' in the checkpoint and 'e' in the data set.*{BOTH}"):
        run(path, config, NAMES[::-1])
    assert not run(path, config, NAMES[::-1], head="reinit")[1]
    with pytest.raises(ReskdError, match="not of the format mmaction2: by its keys it is of reskd"):
        run(path, config, format="mmaction2")
    with pytest.raises(ReskdError, match=r"not of the format reskd"):
        run(mmaction2_file(tmp_path), config, format="reskd")


def test_our_own_file_of_another_net_or_normalisation(tmp_path):
    tsn, _ = own_file(tmp_path, model_config("tsn"), name="tsn")
    tsm, _ = own_file(tmp_path, model_config("tsm"), name="tsm")
    assert "trained without the temporal shift" in run(tsn, model_config("tsm"))[2]
    with pytest.raises(ReskdError, match="is a TSM"):
        run(tsm, model_config("tsn"))
    with pytest.raises(ReskdError, match=r"trained with mean \[0.485, 0.456, 0.406\].*model.mean is \[0.5, 0.5, 0.5\]"):
        run(tsn, model_config("tsn", mean=(0.5, 0.5, 0.5)))
    model, _, said = run(tsn, model_config("slowonly"))
    assert "2D weights inflated" in said and model.extract(clips()).shape == (2, 4, 1, 1, 2048)


def test_a_file_that_is_not_ours_is_no_model(tmp_path):
    torch.save(resnet().state_dict(), tmp_path / "net.pth")
    safetensors.torch.save_file(resnet().state_dict(), tmp_path / "net.safetensors")
    for name, message in (
        ("net.pth", "import-checkpoint"),
        ("net.safetensors", "no model description.*import-checkpoint"),
    ):
        with pytest.raises(ReskdError, match=message):
            load_model(tmp_path / name)


@pytest.mark.parametrize(
    "card, message", [("{", "is no JSON"), ("[]", "no model"), (json.dumps({"format": 9}), "format 9")]
)
def test_a_card_that_can_not_be_read_is_refused(card, message, tmp_path):
    safetensors.torch.save_file({"a": torch.zeros(1)}, tmp_path / "net.safetensors", {"reskd": card})
    for read in (load_model, lambda path: run(path, model_config("tsn"))):
        with pytest.raises(ReskdError, match=message):
            read(tmp_path / "net.safetensors")
