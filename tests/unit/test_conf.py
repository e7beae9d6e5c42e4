"""Configuration: every choice composes, every mistake is named."""

from __future__ import annotations

import pytest

from mlip.errors import ConfigError
from mlip.models.registry import ARCHITECTURES, PotentialSpec, build_potential
from mlip.training.config import conf_dir, load_config, to_yaml
from mlip.training.config_checks import NUMBERS, parse_duration

CONF = conf_dir()


@pytest.mark.parametrize("model", sorted(p.stem for p in (CONF / "model").glob("*.yaml")))
def test_every_model_builds_from_its_file(model):
    options = dict(load_config([f"model={model}"])["model"])
    name = options.pop("name")
    options.pop("prior")
    assert name in ARCHITECTURES
    spec = PotentialSpec(name, options, (1, 8), ({1: -1.0, 8: -2.0},), 20.0)
    assert build_potential(spec).cutoff == options["cutoff"]


@pytest.mark.parametrize("experiment", sorted(p.stem for p in (CONF / "experiment").glob("*.yaml")))
def test_every_experiment_composes(experiment):
    config = load_config([f"experiment={experiment}"])
    assert config["data"]["train"] or config["data"]["sources"]


@pytest.mark.parametrize(
    ("override", "word"),
    [
        ("model.cutof=3", r"did you mean model\.cutoff"),
        ("modle=facet", "did you mean model"),
        ("model=facett", "did you mean model=facet"),
        ("batch_size=3", r"did you mean data\.batch_size"),
        ("+new.key=3", "drop the"),
        ("optimizer.lr=nan", "positive"),
        ("optimizer.lr=fast", "positive"),
        ("trainer.max_epochs=abc", "whole number"),
        ("trainer.max_time=soon", "max_time"),
        ("data.train=[{_target_: os.system}]", "not code"),
        ("ema.decay=1.5", "below 1"),
        ("data.val_fraction=2", "below 1"),
        ("data.val_fraction=abc", "below 1"),
        ("seed=abc", "whole number"),
        ("seed=-1", "whole number"),
        ("seed=9223372036854775808", "from 0 to below 2"),
        ("data.num_workers=abc", "auto or a whole number"),
        ("data.batch_size=true", "whole number"),
        ("trainer.gradient_clip=abc", "gradient_clip"),
        ("trainer.accelerator=quantum", "one of auto, cpu"),
        ("trainer.matmul_precision=tf32", "one of highest, high, medium"),
        ("trainer.val_rotations=0", "val_rotations=0 must be a whole number, 1 or more"),
        ("trainer.compile=maybe", "trainer.compile='maybe' must be true or false"),
        ("trainer.devices=auto", "trainer.devices='auto' must be a whole number"),
        ("optimizer.weight_decay=-1", "weight_decay"),
        ("scheduler.warmup=1", "warmup"),
        ("nonsense", "key=value"),
    ],
)
def test_mistakes_are_named(override, word):
    with pytest.raises(ConfigError, match=word) as error:
        load_config([override])
    assert error.value.exit_code == 2


def test_every_range_is_of_an_option_and_holds_its_default():
    config = load_config(["objective=latent_equivariance"])  # the objective with numbers
    for key in NUMBERS:
        section, _, name = key.rpartition(".")
        assert name in (config[section] if section else config), key


@pytest.mark.parametrize("model", ["facet", "lennard_jones"])
def test_frames_are_an_option_of_every_model(model):
    assert load_config([f"model={model}"])["model"]["frames"] == "none"
    assert load_config([f"model={model}", "model.frames=o3"])["model"]["frames"] == "o3"
    with pytest.raises(ConfigError, match=r"did you mean model\.frames"):
        load_config([f"model={model}", "model.frame=o3"])


def test_parts_must_leave_something_to_train_on():
    with pytest.raises(ConfigError, match="leave nothing to train on"):
        load_config(["data.val_fraction=0.5", "data.test_fraction=0.5"])


def test_a_data_file_is_not_a_configuration(tmp_path):
    path = tmp_path / "my.extxyz"
    path.write_text('1\nLattice="1 0 0" a: b: c\nH 0 0 0\n')
    with pytest.raises(ConfigError, match=r"to train on it: data\.train=.*my\.extxyz"):
        load_config([], path)
    with pytest.raises(ConfigError, match="No such file"):
        load_config([], tmp_path / "absent.yaml")


def test_values_keep_their_meaning():
    config = load_config(
        [
            "data.train=/a path/with=equals, commas [and] brackets.extxyz",
            "name=2024_11_24",
            "out_dir=007",
            "optimizer.lr=1e-3",
            "data.e0={H: -13.6, O: -2.041e3}",
            "model.channels=[8, 4]",
            "data.max_atoms=null",
        ]
    )
    assert config["data"]["train"] == "/a path/with=equals, commas [and] brackets.extxyz"
    assert (config["name"], config["out_dir"]) == ("2024_11_24", "007")
    assert config["optimizer"]["lr"] == 1e-3
    assert config["data"]["e0"] == {"H": -13.6, "O": -2041.0}
    assert config["model"]["channels"] == [8, 4]


@pytest.mark.parametrize("model", ["facet-xs", "lennard_jones"])
def test_a_resolved_configuration_reads_back(tmp_path, model):
    config = load_config([f"model={model}", "data.train=x.extxyz", "trainer.max_time=40m"])
    path = tmp_path / "config.yaml"
    path.write_text(to_yaml(config))
    assert load_config([], path) == config
    (tmp_path / "short.yaml").write_text(f"model: {model}\ndata: {{train: x.extxyz}}\n")
    assert load_config(["trainer.max_time=40m"], tmp_path / "short.yaml") == config


def test_durations():
    for text, seconds in (
        ("40m", 2400),
        ("6h", 21600),
        ("1:00:00", 3600),
        ("01:00:00:00", 86400),
        (90, 90),
    ):
        assert parse_duration(text) == seconds


def test_the_objective_of_an_architecture():
    """`auto` is resolved when the configuration is made, so that a run folder names what it did."""
    assert load_config([])["objective"] == {"name": "standard"}
    assert load_config(["model=transip"])["objective"]["name"] == "latent_equivariance"
    framed = load_config(["model=transip", "model.frames=so3"])
    assert framed["objective"]["name"] == "standard", "exact already: nothing to be taught"
    asked = load_config(["model=transip", "objective=augmented"])
    assert asked["objective"]["name"] == "augmented"
