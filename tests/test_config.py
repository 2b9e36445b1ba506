"""Settings: which layer wins, what is refused and how it is told, and what the presets hold."""

import copy
import json

import pytest
import torch

from scratchlm.config import (
    OptimConfig,
    RunConfig,
    default_preset,
    make_config,
    merge,
    preset_settings,
    read_settings,
    settings_of,
)
from scratchlm.errors import InputError
from scratchlm.models import MODELS

LEAST = {"arch": "gpt", "model": {"vocab_size": 65}}
PRESETS = [(arch, preset) for arch in MODELS for preset in MODELS[arch].presets]


def value(config, name):
    """The value of "steps" or "optim.lr" in a configuration."""
    for part in name.split("."):
        config = getattr(config, part)
    return config


def setting(name, value):
    """{"optim": {"lr": value}} for "optim.lr"."""
    *group, last = name.split(".")
    return {group[0]: {last: value}} if group else {last: value}


def refusal(settings):
    with pytest.raises(InputError) as caught:
        make_config(merge(LEAST, settings))
    assert isinstance(caught.value, ValueError)
    return str(caught.value)


@pytest.mark.parametrize(
    ("name", "default", "preset", "file", "flag"),
    [
        ("steps", 1000, 3000, 7, 8),
        ("optim.lr", 1e-3, 3e-3, 0.5, 0.25),
        ("model.dim", 768, 128, 64, 32),
        ("split", (0.9, 0.05, 0.05), (0.9, 0.1, 0.0), [0.5, 0.25, 0.25], (0.8, 0.1, 0.1)),
    ],
)
def test_flags_win_over_the_file_over_the_preset_over_defaults(name, default, preset, file, flag):
    of_preset = preset_settings("gpt", "nanogpt-cpu" if name == "split" else "laptop")
    layers = [LEAST, of_preset, setting(name, file), setting(name, flag)]
    kept = copy.deepcopy(layers)
    for count, expected in enumerate((default, preset, file, flag), 1):
        config = make_config(merge(*layers[:count]))
        assert value(config, name) == (tuple(expected) if name == "split" else expected)
        assert config.model.vocab_size == 65
    assert config.optim.beta2 == 0.99, "what the upper layers leave out is the preset's"
    assert config.optim.eps == 1e-8, "what all of them leave out is the default"
    assert layers == kept, "merging changes no layer"


def test_merging_copies_what_it_takes():
    layer = {"model": {"dim": 64}}
    merged = merge(layer)
    merged["model"]["dim"] = 1
    assert layer == {"model": {"dim": 64}}
    assert merge({"model": None}, layer, {"steps": 3}) == {"model": {"dim": 64}, "steps": 3}
    assert merge() == {}


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("step", "did you mean 'steps'"),
        ("batchsize", "did you mean 'batch_size'"),
        ("qqq", "choose from: accumulate, arch, base"),
        ("lr", "did you mean 'optim.lr'"),
        ("dim", "did you mean 'model.dim'"),
        ("model.dims", "did you mean 'dim'"),
        ("model.layers", "choose from: activation, bias, context, depth"),
        ("optim.warm_up", "did you mean 'warmup'"),
        ("optim.qqq", "choose from: beta1, beta2, decay_embeddings"),
    ],
)
def test_an_unknown_setting_names_the_nearest(name, nearest):
    message = refusal(setting(name, 1))
    assert message.startswith(f"unknown setting {name}: ")
    assert nearest in message


@pytest.mark.parametrize(
    ("name", "wrong", "kind"),
    [
        ("steps", "x", "int"),
        ("steps", "12", "int"),
        ("steps", 1.5, "int"),
        ("steps", True, "int"),
        ("steps", None, "int"),
        ("steps", [1], "int"),
        ("window", "all", "int | None"),
        ("patience", 2.5, "int | None"),
        ("data", 3, "str"),
        ("errors", "ignore", "Literal['strict', 'replace']"),
        ("device", "tpu", "Literal['auto', 'cpu', 'cuda', 'mps']"),
        ("split", [0.9, 0.1], "tuple[float, float, float]"),
        ("split", ["a", "b", "c"], "tuple[float, float, float]"),
        ("split", 0.9, "tuple[float, float, float]"),
        ("save_minutes", "5", "float"),
        ("optim.lr", "fast", "float"),
        ("optim.lr", True, "float"),
        ("optim.warmup", 1.5, "int"),
        ("optim.schedule", "step", "Literal['cosine', 'linear', 'noam', 'constant']"),
        ("model.bias", "no", "bool"),
        ("model.bias", 0, "bool"),
        ("model.dim", 64.0, "int"),
        ("model.activation", "relu", "Literal['gelu-tanh', 'gelu']"),
    ],
)
def test_a_value_of_another_type_is_named_with_the_right_one(name, wrong, kind):
    assert refusal(setting(name, wrong)) == f"{name} is {wrong!r}, not {kind}"


@pytest.mark.parametrize(
    ("name", "wrong", "remedy"),
    [
        ("steps", 0, "it must be at least 1"),
        ("batch_size", -1, "it must be at least 1"),
        ("accumulate", 0, "it must be at least 1"),
        ("eval_every", 0, "it must be at least 1"),
        ("log_every", 0, "it must be at least 1"),
        ("keep", 0, "it must be at least 1"),
        ("patience", 0, "it must be at least 1, or left out"),
        ("horizon", 0, "it must be at least 1"),
        ("accumulate", 17, "but a batch has only 16 windows"),
        ("window", 0, "it must be at least 1"),
        ("window", -5, "it must be at least 1"),
        ("window", 1025, "fit the model's context of 1024"),
        ("seed", -1, "it must be at least 0"),
        ("seed", 1 << 63, "below 2**63"),
        ("save_minutes", 0, "it must be above 0"),
        ("save_minutes", float("nan"), "it must be above 0"),
        ("model.dropout", 1.5, "it must be at least 0 and below 1"),
        ("model.dropout", -0.1, "it must be at least 0 and below 1"),
        ("model.dropout", float("nan"), "it must be at least 0 and below 1"),
        ("model.dim", 100, "make dim a multiple of heads"),
        ("model.heads", 0, "it must be at least 1"),
        ("model.vocab_size", 0, "it must be at least 1"),
        ("model.context", 0, "it must be at least 1"),
        ("optim.lr", -1, "it must be 0 or more"),
        ("optim.lr", float("nan"), "it must be 0 or more"),
        ("optim.lr", float("inf"), "finite"),
        ("optim.warmup", -1, "it must be 0 or more"),
        ("optim.beta1", 1, "it must be at least 0 and below 1"),
        ("optim.beta2", -0.5, "it must be at least 0 and below 1"),
    ],
)
def test_a_value_out_of_range_is_named_with_the_range(name, wrong, remedy):
    message = refusal(setting(name, wrong))
    assert name.rpartition(".")[2] in message
    assert str(wrong) in message
    assert remedy in message


def test_the_largest_values_that_fit_are_taken():
    config = make_config(merge(LEAST, {"window": 1024, "accumulate": 16, "seed": (1 << 63) - 1, "patience": 1}))
    assert (config.window, config.accumulate, config.seed, config.patience) == (1024, 16, (1 << 63) - 1, 1)
    assert config.training_window == 1024
    assert make_config(LEAST).training_window == 1024
    assert make_config(merge(LEAST, {"window": 5})).training_window == 5


def test_a_whole_number_is_a_float_where_one_is_asked_for():
    config = make_config(merge(LEAST, {"split": [1, 0, 0], "optim": {"lr": 1}}))
    assert [type(share) for share in config.split] == [float] * 3
    assert type(config.optim.lr) is float


def test_a_model_without_a_context_takes_any_window_but_none_below_one(toy_registered):
    toy = {"arch": "toy", "model": {"vocab_size": 5}}
    assert make_config(toy).training_window == 256
    assert make_config({**toy, "window": 10**6}).training_window == 10**6
    with pytest.raises(InputError, match="window is 0; it must be at least 1") as caught:
        make_config({**toy, "window": 0})
    assert "None" not in str(caught.value), "there is no context to fit"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "arch"),
        ({"arch": "gtp", "model": {"vocab_size": 5}}, "unknown architecture 'gtp': did you mean 'gpt'"),
        ({"arch": 5}, "unknown architecture 5"),
        ({"arch": "gpt"}, "model.vocab_size"),
        ({"arch": "gpt", "model": {"dim": 64}}, "model.vocab_size"),
        ({"arch": "gpt", "model": 5}, "model is 5"),
        ({"arch": "gpt", "model": "large"}, "model is 'large'"),
        ({**LEAST, "optim": [1]}, "optim is [1]"),
        ({**LEAST, "optim": "adam"}, "optim is 'adam'"),
    ],
    ids=str,
)
def test_settings_of_another_shape_are_refused(settings, message):
    with pytest.raises(InputError) as caught:
        make_config(settings)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "settings",
    [{}, {"split": [0.8, 0.2, 0], "patience": 3, "horizon": 50, "window": 7}, {"save_minutes": float("inf")}]
    + [preset_settings("gpt", preset) for preset in MODELS["gpt"].presets],
)
def test_settings_written_as_json_make_the_same_configuration(settings):
    config = make_config(merge(LEAST, settings))
    written = settings_of(config)
    assert make_config(json.loads(json.dumps(written))) == config
    assert settings_of(make_config(written)) == written
    assert type(config) is RunConfig
    assert type(config.optim) is OptimConfig
    assert type(config.model) is MODELS["gpt"].Config
    with pytest.raises(AttributeError):
        config.steps = 5


FILES = {
    "run.toml": 'steps = 5\ndata = "é.txt"\nsplit = [1, 0, 0]\n[optim]\nlr = 0.5\n',
    "run.json": '{"steps": 5, "data": "é.txt", "split": [1, 0, 0], "optim": {"lr": 0.5}, "format_version": 1}',
    "settings": 'format_version = 1\nsteps = 5\ndata = "é.txt"\nsplit = [1, 0, 0]\noptim.lr = 0.5\n',
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_of_settings_is_read(name, tmp_path):
    path = tmp_path / name
    path.write_text(FILES[name], encoding="utf-8")
    settings = read_settings(str(path))
    assert settings == {"steps": 5, "data": "é.txt", "split": [1, 0, 0], "optim": {"lr": 0.5}}
    assert make_config(merge(LEAST, settings)).optim.lr == 0.5


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("broken.toml", b"steps =", "is neither TOML nor, by its name, JSON"),
        ("twice.toml", b"steps = 1\nsteps = 2", "is neither TOML nor, by its name, JSON"),
        ("json.toml", b'{"steps": 5}', "is neither TOML nor, by its name, JSON"),
        ("broken.json", b'{"steps": 5', "is neither TOML nor, by its name, JSON"),
        ("toml.json", b"steps = 5", "is neither TOML nor, by its name, JSON"),
        ("bytes.toml", b'data = "\xff"', "is neither TOML nor, by its name, JSON"),
        ("list.json", b"[1, 2]", "holds no settings"),
        ("missing.toml", None, "cannot read the settings"),
        ("missing.json", None, "cannot read the settings"),
        (".", None, "cannot read the settings"),
    ],
)
def test_a_file_without_settings_is_named(name, content, message, tmp_path):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        read_settings(str(path))
    assert str(path) in str(caught.value)
    assert message in str(caught.value)


@pytest.mark.parametrize(("arch", "preset"), PRESETS)
def test_every_preset_makes_a_valid_configuration(arch, preset):
    vocabulary = {"arch": arch, "model": {"vocab_size": 65}}
    config = make_config(merge(vocabulary, preset_settings(arch, preset)))
    assert (config.arch, config.preset) == (arch, preset)
    with torch.device("meta"):
        built = MODELS[arch](config.model)
    assert sum(parameter.numel() for parameter in built.parameters()) == config.model.parameters


PUBLISHED = {
    "gpt2": (50257, 124_439_808),
    "gpt2-medium": (50257, 354_823_168),
    "gpt2-large": (50257, 774_030_080),
    "gpt2-xl": (50257, 1_557_611_200),
    "nanogpt-cpu": (65, 804_096),
    "nanogpt-gpu": (65, 10_745_088),
}


@pytest.mark.parametrize("preset", PUBLISHED)
def test_presets_have_the_published_numbers_of_parameters(preset):
    vocab_size, parameters = PUBLISHED[preset]
    config = make_config(merge(LEAST, preset_settings("gpt", preset)))
    assert config.model.vocab_size == vocab_size
    assert config.model.parameters == parameters
    with torch.device("meta"):
        built = MODELS["gpt"](config.model)
    assert sum(parameter.numel() for parameter in built.parameters()) == parameters


def test_the_first_preset_is_the_default():
    assert default_preset("gpt") == "laptop"
    assert preset_settings("gpt", None) == {}


def test_an_architecture_without_presets_has_no_default(toy_registered):
    assert default_preset("toy") is None
    with pytest.raises(InputError, match="toy has no preset 'laptop'"):
        preset_settings("toy", "laptop")


@pytest.mark.parametrize(
    ("preset", "message"),
    [
        ("gpt2-medum", "gpt has no preset 'gpt2-medum': did you mean 'gpt2-medium'?"),
        ("zzz", "gpt has no preset 'zzz': choose from: gpt2, gpt2-large"),
        (5, "gpt has no preset 5"),
        (["gpt2"], "gpt has no preset ['gpt2']"),
    ],
    ids=str,
)
def test_an_unknown_preset_names_the_nearest(preset, message):
    with pytest.raises(InputError) as caught:
        preset_settings("gpt", preset)
    assert message in str(caught.value)
