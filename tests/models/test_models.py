"""Backbones, weights, freezing, schedules and the network."""

from __future__ import annotations

import argparse
import re
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file, save_model
from torch import nn

from binventory.config.compose import compose_checked
from binventory.data.preprocess import Preprocessing
from binventory.errors import ConfigError, InputError
from binventory.models import schedules
from binventory.models.backbones import freeze, frozen_to_eval, make_backbone
from binventory.models.network import BinNetwork
from binventory.models.stages import describe_trained, head_names
from binventory.models.timm_alone import timm


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A thousand-class resnet10t as a file, in half precision as published files often are."""
    torch.manual_seed(7)
    state = make_backbone("resnet10t", "none", 1000).state_dict()
    path = tmp_path_factory.mktemp("weights") / "resnet10t.safetensors"
    save_file({key: value.half() if value.is_floating_point() else value for key, value in state.items()}, path)
    torch.save({"state_dict": state}, path.with_suffix(".pth"))
    return path


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_local_weights_are_loaded_and_the_head_is_new(weights: Path, suffix: str) -> None:
    source = torch.load(weights.with_suffix(".pth"), weights_only=True)["state_dict"]
    network = make_backbone("resnet10t", str(weights.with_suffix(suffix)), 5)
    loaded = network.state_dict()
    assert loaded["fc.weight"].shape == (5, 512)
    for key, value in loaded.items():
        if not key.startswith("fc."):
            assert torch.allclose(value.float(), source[key].float(), atol=1e-3), key
            assert value.dtype == source[key].dtype


def broken(weights: Path, tmp_path: Path, fault: str) -> tuple[str, str]:
    """Return (model name, file) of weights with a fault."""
    state = torch.load(weights.with_suffix(".pth"), weights_only=True)["state_dict"]
    path = tmp_path / "w.pth"
    if fault == "truncated":
        path.write_bytes(weights.with_suffix(".pth").read_bytes()[:5000])
    elif fault == "text":
        path.write_text("weights")
    elif fault == "missing":
        torch.save({key: value for key, value in state.items() if "layer4" not in key}, path)
    elif fault == "shape":
        torch.save({**state, "layer1.0.conv1.weight": torch.zeros(3)}, path)
    elif fault == "nan":
        torch.save({**state, "bn1.weight": torch.full_like(state["bn1.weight"], torch.nan)}, path)
    elif fault == "pickle":
        torch.save(nn.Linear(2, 2), path)  # a module: loading it would run code
    return ("resnet18" if fault == "other network" else "resnet10t"), str(weights if fault == "other network" else path)


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("truncated", "cannot read"),
        ("text", "cannot read"),
        ("missing", "missing"),
        ("shape", "of another shape"),
        ("nan", "NaN"),
        ("pickle", "cannot read"),
        ("other network", "not weights of resnet18"),
    ],
)
def test_wrong_weights_are_named(weights: Path, tmp_path: Path, fault: str, said: str) -> None:
    name, path = broken(weights, tmp_path, fault)
    with pytest.raises(InputError, match=said) as error:
        make_backbone(name, path, 5)
    assert path in str(error.value)
    assert "\n" not in str(error.value)


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    torch.manual_seed(3)
    return dict(make_backbone("test_resnet", "none", 1000).state_dict())


def prefixed(prefix: str, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {prefix + key: value for key, value in state.items()}


def content(kind: str, state: dict[str, torch.Tensor]) -> Any:
    """Return what a file of these weights may hold, other weights beside them or not."""
    other = {key: value + 1 for key, value in state.items()}
    kinds: dict[str, Callable[[], Any]] = {
        "plain": lambda: state,
        "without counters": lambda: {key: value for key, value in state.items() if "num_batches" not in key},
        "beside plain values": lambda: {**state, "epoch": 3, "arch": "resnet"},
        "state_dict_ema": lambda: {"state_dict": other, "state_dict_ema": state},
        "model_ema": lambda: {"model": other, "model_ema": state, "epoch": 3},
        "no average yet": lambda: {"state_dict": state, "state_dict_ema": None},
        "model_state_dict": lambda: {"model_state_dict": state, "optimizer": {"state": {}}},
        "options": lambda: {"state_dict": state, "args": argparse.Namespace(lr=0.1, model="test_resnet")},
        "wrapped": lambda: prefixed("_orig_mod.module.", state),
        "averaged": lambda: {"n_averaged": torch.tensor(3), **prefixed("module.", state)},
        "lightning": lambda: {"state_dict": {**prefixed("model.", state), "loss.weight": torch.ones(3)}},
        "ours": lambda: {
            "state_dict": {**prefixed("network.backbone.", state), "network.normalize.mean": torch.ones(3)}
        },
        "double": lambda: {key: value.double() if value.is_floating_point() else value for key, value in state.items()},
    }
    return kinds[kind]()


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("plain", "w.PTH"),
        ("plain", "no ending"),
        ("without counters", "w.pth"),
        ("beside plain values", "w.pt"),
        ("state_dict_ema", "w.pth.tar"),
        ("model_ema", "w.bin"),
        ("no average yet", "w.pth"),
        ("model_state_dict", "w.pth"),
        ("options", "w.pth.tar"),
        ("wrapped", "w.pth"),
        ("averaged", "w.pth"),
        ("lightning", "w.ckpt"),
        ("ours", "last.ckpt"),
        ("double", "w.pth"),
    ],
)
def test_what_timm_loads_is_loaded_with_the_same_choice(
    kind: str, name: str, state: dict[str, torch.Tensor], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / name
    torch.save(content(kind, state), path)
    with caplog.at_level("INFO", "binventory"):
        loaded = make_backbone("test_resnet", str(path), 5).state_dict()
    body = [key for key in loaded if not key.startswith("fc.") and "num_batches" not in key]
    assert len(body) > 20
    for key in body:
        assert torch.equal(loaded[key], state[key]), key
        assert loaded[key].dtype == torch.float32
    assert "its classifier is ignored (fc.weight (1000, " in caplog.text
    if kind in ("state_dict_ema", "model_ema"):
        assert f"took {kind}, not {kind.replace('_ema', '')}" in caplog.text
    if kind not in ("lightning", "ours", "model_state_dict"):  # those timm itself does not know
        theirs = timm.models.load_state_dict(str(path))
        assert torch.equal(theirs["conv1.0.weight"], state["conv1.0.weight"].to(theirs["conv1.0.weight"].dtype))


def test_names_of_an_older_version_are_those_that_timm_knows(tmp_path: Path) -> None:
    """DenseNet as torchvision published it: `norm.1` for `norm1`, and no counters."""
    state = make_backbone("densenet121", "none", 1000).state_dict()
    old = {re.sub(r"(denselayer\d+\.(?:norm|conv))(\d)", r"\1.\2", key): value for key, value in state.items()}
    assert old.keys() != state.keys()
    torch.save({key: value for key, value in old.items() if "num_batches" not in key}, tmp_path / "densenet.pth")
    loaded = make_backbone("densenet121", str(tmp_path / "densenet.pth"), 5).state_dict()
    key = "features.denseblock4.denselayer16.conv2.weight"
    assert torch.equal(loaded[key], state[key])


def test_tensors_that_are_one_are_saved_once(tmp_path: Path) -> None:
    network = make_backbone("coat_lite_tiny", "none", 5)
    save_model(network, str(tmp_path / "shared.safetensors"))
    loaded = make_backbone("coat_lite_tiny", str(tmp_path / "shared.safetensors"), 5).state_dict()
    state = network.state_dict()
    assert len(load_file(tmp_path / "shared.safetensors")) < len(state)
    assert all(torch.equal(value, state[key]) for key, value in loaded.items() if not key.startswith("head."))


def test_a_file_that_cannot_be_taken_says_what_to_do(state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    path = tmp_path / "w.ckpt"
    for held, said in (
        (
            {"state_dict": state, "config": Preprocessing(32)},
            "objects other than tensors: .*Preprocessing.*save its state",
        ),
        ({**prefixed("model.", state), **prefixed("ema.", state)}, r"more than once \(ema.…, model.…\); save the one"),
        ({**state, "conv1.0.weight": torch.ones(2, 1, 3, 3)}, r"\(2, 1, 3, 3\) instead of \("),
        ({**state, "conv1.0.weight": state["conv1.0.weight"].double() * 1e300}, "NaN or infinity"),
    ):
        torch.save(held, path)
        with pytest.raises(InputError, match=said) as error:
            make_backbone("test_resnet", str(path), 5)
        assert str(error.value).isprintable()
    with pytest.raises(InputError, match="not a file"):
        make_backbone("test_resnet", str(tmp_path), 5)


def test_unreachable_hub_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ConfigError, match=r"model\.weights=PATH .* or model\.weights=none") as error:
        make_backbone("resnet18", "resnet18.tv_in1k", 5)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "tag", "said"),
    [
        ("resnet18", "resnet18.tv_in2k", "did you mean resnet18.tv_in1k"),
        ("resnet18", "resnet34.tv_in1k", "resnet18"),
        ("resnet19", "none", "did you mean resnet18"),
    ],
)
def test_wrong_names_are_corrected(name: str, tag: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        make_backbone(name, tag, 5)


@pytest.mark.parametrize("name", ["resnet10t", "efficientnet_lite0", "convnext_atto"])
@pytest.mark.parametrize("finetune", ["full", "head", "last_stage"])
def test_frozen_parts_do_not_move(name: str, finetune: str) -> None:
    torch.manual_seed(0)
    network = BinNetwork(make_backbone(name, "none", 3), Preprocessing(64), channels_last=True)
    freeze(network.backbone, finetune)
    network.train()
    frozen_to_eval(network)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=0.1)
    pixels = torch.randint(0, 256, (4, 3, 64, 64), dtype=torch.uint8)
    nn.functional.cross_entropy(network(pixels), torch.tensor([0, 1, 2, 0])).backward()
    optimizer.step()
    moved = {key for key, value in network.state_dict().items() if not torch.equal(value, before[key])}
    head = {key for key in before if key.startswith(("backbone.fc.", "backbone.classifier.", "backbone.head."))}
    first = next(key for key in before if key.endswith("weight"))
    assert moved & head
    if finetune == "head":
        assert moved <= head
    elif finetune == "last_stage":
        assert moved - head
        assert first not in moved
        assert len(moved) < len(before)
    else:
        assert first in moved
        statistics = {key for key in before if "running_" in key}
        assert statistics <= moved


# What is trained of the smallest networks of some families, by the modules that are trained whole.
LAST_STAGES = {
    "densenet121": "features.denseblock4, features.norm5, classifier",
    "test_byobnet": "stages.3, head",
    "repvgg_a0": "stages.3, head",
    "test_resnet": "layer4, fc",
    "resnet18": "layer4, fc",
    "test_vit": "blocks.5, norm, head",
    "test_convnext": "stages.3, head",
    "test_efficientnet": "blocks.4, conv_head, bn2, classifier",
    "mobilenetv3_small_050": "blocks.5, conv_head, classifier",
    "vgg11": "features.16, features.18, pre_logits, head",
    "pit_xs_224": "transformers.2, norm, head",
}
# The same, of networks that take longer to build.
MORE_LAST_STAGES = {
    "cait_xxs24_224": "blocks.23, blocks_token_only, norm, head",
    "twins_svt_small": "patch_embeds.3, blocks.3, pos_block.3, norm, head",
    "hiera_tiny_224": "blocks.10, blocks.11, head",
    "legacy_xception": "block12, conv3, bn3, conv4, bn4, fc",
    "hrnet_w18_small": "stage4, incre_modules, downsamp_modules, final_layer, classifier",
    "swin_tiny_patch4_window7_224": "layers.3, norm, head",
    "inception_v3": "Mixed_7a, Mixed_7b, Mixed_7c, fc",
}


def without_data(name: str) -> nn.Module:
    with torch.device("meta"):
        return make_backbone(name, "none", 5)


@pytest.mark.parametrize(
    ("name", "modules"),
    [*LAST_STAGES.items(), *(pytest.param(*pair, marks=pytest.mark.long) for pair in MORE_LAST_STAGES.items())],
)
def test_the_last_stage_is_the_true_one(name: str, modules: str) -> None:
    network = without_data(name)
    freeze(network, "last_stage")
    said = describe_trained(network)
    assert said.startswith(f"trained: {modules}: ")
    trained = sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)
    total = sum(parameter.numel() for parameter in network.parameters())
    assert said.endswith(f": {trained / 1e6:.1f} of {total / 1e6:.1f} M weights ({100 * trained / total:.0f} %)")


@pytest.mark.parametrize(
    ("name", "finetune", "said"),
    [
        ("coat_mini", "last_stage", "timm does not tell where the last stage of coat_mini begins"),
        ("gemma4_vit_167m_enc", "last_stage", "has no classifier"),
        ("qwen3_vit_88m_enc", "head", "has no classifier"),
    ],
)
def test_what_cannot_be_trained_in_part_is_one_line(name: str, finetune: str, said: str) -> None:
    overrides = ["debug=fast", f"model.name={name}", f"model.finetune={finetune}", "data.image_size=224"]
    with pytest.raises(ConfigError, match=f"model.finetune={finetune}: .*{said}.*take model.finetune="):
        compose_checked("train", overrides)


SMALL = re.compile(r"nano|atto|femto|pico|tiny|_xxs|_xs|mini|18|_s\b|small|t0|_0|b0|a0|lite")


def smallest(names: list[str]) -> str:
    """Return a small network of a family, by its name: not every network of a thousand is built."""
    return min(names, key=lambda name: (not name.startswith("test_"), not SMALL.search(name), len(name)))


@pytest.mark.long
@pytest.mark.parametrize("part", range(4))
def test_of_every_family_what_is_trained_comes_after_what_is_frozen(part: int) -> None:
    """By what the network calls: the last frozen weights are used before the first trained ones, but for heads."""
    families = defaultdict(list)
    for name in timm.list_models():
        families[timm.model_entrypoint(name).__module__].append(name)
    refused = []
    names = sorted(map(smallest, families.values()))
    for name in names[part::4]:
        network = without_data(name)
        try:
            freeze(network, "last_stage")
        except ConfigError:
            refused.append(name)
        else:
            assert_in_order(network.eval(), name)
    assert len(families) > 70
    assert refused == [name for name in names[part::4] if name == "coat_mini"], "several strides from one module"


def assert_in_order(network: nn.Module, name: str) -> None:
    heads = tuple(f"{prefix}." for prefix in head_names(network))
    flags = {key: parameter.requires_grad for key, parameter in network.named_parameters()}
    assert all(flag for key, flag in flags.items() if key.startswith(heads)), name
    body = [key for key in flags if not key.startswith(heads)]
    assert any(flags[key] for key in body), f"{name}: the head alone"
    assert not all(flags[key] for key in body), f"{name}: everything"
    calls: list[tuple[bool, str]] = []

    def note(module: nn.Module, path: str) -> None:
        own = {parameter.requires_grad for parameter in module.parameters(recurse=False)}
        if own and path and not f"{path}.".startswith(heads):
            module.register_forward_pre_hook(lambda *_: calls.append((own == {True}, path)))

    for path, module in network.named_modules():
        note(module, path)
    with torch.no_grad():
        network(torch.empty(2, *network.pretrained_cfg["input_size"], device="meta"))
    first = next(place for place, (is_trained, _) in enumerate(calls) if is_trained)
    assert all(is_trained or path in {known for _, known in calls[:first]} for is_trained, path in calls[first:]), name


def test_statistics_without_parameters_are_frozen_with_what_they_are_in() -> None:
    """BatchNorm without an affine part has nothing that a gradient could be taken from."""

    def block() -> nn.Sequential:
        return nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3, affine=False), nn.Dropout())

    network = nn.Sequential(block(), nn.BatchNorm2d(3, affine=False), block(), nn.Dropout())
    for is_frozen in (True, False):
        network[0].requires_grad_(not is_frozen)
        network.train()
        frozen_to_eval(network)
        modes = [module.training for module in (network[0][1], network[0][2], network[1])]
        assert modes == [not is_frozen] * 3
        assert network[2][1].training, "trained"
        assert network[3].training, "it may be the dropout before the head"


def lr_curve(schedule: str, steps: int, **options: float) -> list[float]:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = getattr(schedules, schedule)(optimizer, steps_per_epoch=10, max_epochs=steps // 10, **options)
    curve = []
    for _ in range(steps):
        curve.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return curve


def test_schedules() -> None:
    assert set(lr_curve("constant", 50)) == {1.0}
    stepped = lr_curve("step", 60, step_size_epochs=2, gamma=0.1)
    assert stepped[:20] == [1.0] * 20
    assert stepped[20:40] == pytest.approx([0.1] * 20)
    assert stepped[40:] == pytest.approx([0.01] * 20)
    cosine = lr_curve("cosine", 100, warmup_epochs=1, min_lr_ratio=0.1)
    assert cosine[0] == pytest.approx(1 / 11)
    assert max(cosine) == cosine[10] == 1.0
    assert cosine[:10] == sorted(cosine[:10])
    assert cosine[10:] == sorted(cosine[10:], reverse=True)
    assert 0.1 <= cosine[-1] < 0.11
    assert max(lr_curve("cosine", 10, warmup_epochs=1, min_lr_ratio=0.0)) == 1.0, "one epoch still gets to full speed"


def test_network_does_not_depend_on_the_memory_format() -> None:
    torch.manual_seed(0)
    backbone = make_backbone("resnet10t", "none", 3).eval()
    pixels = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    with torch.inference_mode():
        nchw = BinNetwork(backbone, Preprocessing(64), channels_last=False)(pixels)
        nhwc = BinNetwork(backbone, Preprocessing(64), channels_last=True)(pixels)
    assert torch.allclose(nchw, nhwc, atol=1e-4)


def numpy_archive(network: nn.Module, path: Path) -> Path:
    """Write the weights of a ViT under the names and in the order of axes that Google published them in."""
    state = {key: value.numpy() for key, value in network.state_dict().items()}
    heads = network.blocks[0].attn.num_heads  # type: ignore[index, union-attr]
    width = len(state["norm.weight"])
    arrays = {
        "embedding/kernel": state["patch_embed.proj.weight"].transpose(2, 3, 1, 0),
        "embedding/bias": state["patch_embed.proj.bias"],
        "cls": state["cls_token"],
        "Transformer/posembed_input/pos_embedding": state["pos_embed"],
        "Transformer/encoder_norm/scale": state["norm.weight"],
        "Transformer/encoder_norm/bias": state["norm.bias"],
        "head/kernel": state["head.weight"].T,
        "head/bias": state["head.bias"],
    }
    for number in range(len(network.blocks)):  # type: ignore[arg-type]
        ours, theirs = f"blocks.{number}", f"Transformer/encoderblock_{number}"
        attention = f"{theirs}/MultiHeadDotProductAttention_1"
        for norm, place in (("norm1", 0), ("norm2", 2)):
            arrays[f"{theirs}/LayerNorm_{place}/scale"] = state[f"{ours}.{norm}.weight"]
            arrays[f"{theirs}/LayerNorm_{place}/bias"] = state[f"{ours}.{norm}.bias"]
        for place, name in enumerate(("query", "key", "value")):
            part = slice(place * width, (place + 1) * width)
            arrays[f"{attention}/{name}/kernel"] = state[f"{ours}.attn.qkv.weight"][part].T.reshape(width, heads, -1)
            arrays[f"{attention}/{name}/bias"] = state[f"{ours}.attn.qkv.bias"][part].reshape(heads, -1)
        arrays[f"{attention}/out/kernel"] = state[f"{ours}.attn.proj.weight"].T.reshape(heads, -1, width)
        arrays[f"{attention}/out/bias"] = state[f"{ours}.attn.proj.bias"]
        for place in (0, 1):
            arrays[f"{theirs}/MlpBlock_3/Dense_{place}/kernel"] = state[f"{ours}.mlp.fc{place + 1}.weight"].T
            arrays[f"{theirs}/MlpBlock_3/Dense_{place}/bias"] = state[f"{ours}.mlp.fc{place + 1}.bias"]
    np.savez(path, **arrays)
    return path


def test_numpy_archives_of_a_vit_are_loaded_and_the_head_is_new(tmp_path: Path) -> None:
    trained = timm.create_model("test_vit", num_classes=5)
    path = numpy_archive(trained, tmp_path / "vit.npz")
    torch.manual_seed(1)
    head = make_backbone("test_vit", "none", 5).state_dict()["head.weight"]
    torch.manual_seed(1)
    loaded = make_backbone("test_vit", str(path), 5).state_dict()
    for key, value in trained.state_dict().items():
        if not key.startswith("head."):
            torch.testing.assert_close(loaded[key], value, rtol=0, atol=0)
    assert torch.equal(loaded["head.weight"], head)  # the same number of outputs means nothing


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("resnet18", {"a": np.zeros(1)}, "timm reads no .npz weights of resnet18"),
        ("test_vit", {"a": np.zeros(1)}, "not weights of test_vit (ValueError"),
        ("test_vit", {"a": np.array([print], dtype=object)}, "not weights of test_vit"),
    ],
)
def test_numpy_archives_of_other_networks_are_named(name: str, content: Any, said: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", **content)
    with pytest.raises(InputError, match=re.escape(said)):
        make_backbone(name, str(tmp_path / "x.npz"), 5)


def test_a_file_of_safetensors_by_another_ending_is_not_taken_for_objects(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(1)}, tmp_path / "x.pth")
    with pytest.raises(InputError, match=r"torch\.save did not write it; a file of safetensors has to end in"):
        make_backbone("resnet18", str(tmp_path / "x.pth"), 5)
