"""Every bad value gives one clear sentence; what passes is never checked again."""

from __future__ import annotations

import contextlib
import dataclasses
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvtier.config import (
    CACHE_POLICIES,
    HASH_ALGORITHMS,
    INTEGRITY_LEVELS,
    IO_POLICIES,
    MISMATCH_ACTIONS,
    SEED_POLICIES,
    ConfigError,
    CpuTierConfig,
    FsTierConfig,
    KVCacheGroup,
    KvtierError,
    RootError,
    RunConfig,
)

GOOD: dict[type[Any], dict[str, Any]] = {
    RunConfig: {"model_name": "org/model"},
    FsTierConfig: {"root_dir": "/kv", "block_bytes": 8192},
    CpuTierConfig: {"num_chunks": 4, "block_bytes": 8192},
    KVCacheGroup: {"tokens_per_block": 16},
}

COUNTS = [
    *(
        (RunConfig, name)
        for name in ("tokens_per_hash", "blocks_per_file", "tp_size", "pp_size", "pcp_size", "dcp_size")
    ),
    *((FsTierConfig, name) for name in ("n_read_threads", "n_write_threads", "task_bytes_max")),
    (CpuTierConfig, "num_chunks"),
    (KVCacheGroup, "tokens_per_block"),
]
SIZES = [(FsTierConfig, "block_bytes"), (CpuTierConfig, "block_bytes")]
CHOICES = [
    (FsTierConfig, "hash_algorithm", HASH_ALGORITHMS),
    (FsTierConfig, "seed_policy", SEED_POLICIES),
    (FsTierConfig, "on_mismatch", MISMATCH_ACTIONS),
    (FsTierConfig, "on_untrusted_root", MISMATCH_ACTIONS),
    (FsTierConfig, "integrity", INTEGRITY_LEVELS),
    (FsTierConfig, "io", IO_POLICIES),
    (CpuTierConfig, "cache_policy", CACHE_POLICIES),
]


def refusal(config: type[Any], **options: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        config.from_mapping({**GOOD[config], **options})
    text = str(caught.value)
    assert text
    assert "\n" not in text
    assert not text.endswith(".")
    return text


@pytest.mark.parametrize("config", GOOD)
def test_good_options_pass_and_stay(config: type[Any]) -> None:
    made = config.from_mapping(GOOD[config])
    assert all(getattr(made, name) == value for name, value in GOOD[config].items())
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(made, next(iter(GOOD[config])), 1)


@pytest.mark.parametrize("config", GOOD)
def test_unknown_options_are_all_named_with_the_valid_ones(config: type[Any]) -> None:
    text = refusal(config, zeta=1, alpha=2)
    assert "'alpha', 'zeta'" in text
    assert all(field.name in text for field in dataclasses.fields(config))


def test_an_unknown_option_need_not_be_text() -> None:
    with pytest.raises(ConfigError, match="7"):
        RunConfig.from_mapping({"model_name": "m", 7: 1, "x": 2})  # type: ignore[dict-item]


@pytest.mark.parametrize("config", GOOD)
def test_missing_options_are_all_named(config: type[Any]) -> None:
    with pytest.raises(ConfigError) as caught:
        config.from_mapping({})
    assert all(repr(name) in str(caught.value) for name in GOOD[config])


@pytest.mark.parametrize("value", [0, -1, -(1 << 70)])
@pytest.mark.parametrize(("config", "name"), COUNTS)
def test_counts_start_at_one(config: type[Any], name: str, value: int) -> None:
    assert refusal(config, **{name: value}) == f"{name} is {value}; it must be at least 1"


@pytest.mark.parametrize("value", [True, None, "8", 2.0, [1]])
@pytest.mark.parametrize(("config", "name"), [*COUNTS, *SIZES, (RunConfig, "rank"), (FsTierConfig, "known_keys_max")])
def test_numbers_are_whole_numbers(config: type[Any], name: str, value: object) -> None:
    assert refusal(config, **{name: value}) == f"{name} is {value!r}; it takes a whole number"


@pytest.mark.parametrize(("config", "name"), SIZES)
def test_block_bytes_are_a_positive_multiple_of_a_page(config: type[Any], name: str) -> None:
    for value in (0, -4096, 4095):
        assert refusal(config, **{name: value}) == f"{name} is {value}; it must be at least 4096"
    assert "multiple of 4096" in refusal(config, **{name: 4097})


def test_zero_is_valid_where_it_means_none() -> None:
    assert RunConfig("m", rank=0).rank == 0
    assert FsTierConfig("/kv", 4096, known_keys_max=0).known_keys_max == 0
    assert "at least 0" in refusal(RunConfig, rank=-1)
    assert "at least 0" in refusal(FsTierConfig, known_keys_max=-1)


def test_the_store_queue_holds_at_least_one_block() -> None:
    assert FsTierConfig("/kv", 8192, store_queue_bytes_max=8192).store_queue_bytes_max == 8192
    assert refusal(FsTierConfig, store_queue_bytes_max=8191).endswith("at least 8192")


@pytest.mark.parametrize("value", ["", "SHA256", None, 0, ("x",), ["x"]])
@pytest.mark.parametrize(("config", "name", "choices"), CHOICES)
def test_choices_are_named(config: type[Any], name: str, choices: tuple[str, ...], value: object) -> None:
    assert refusal(config, **{name: value}) == f"{name} is {value!r}; valid choices: {', '.join(choices)}"


@pytest.mark.parametrize(("config", "name", "choices"), CHOICES)
def test_each_choice_can_be_chosen(config: type[Any], name: str, choices: tuple[str, ...]) -> None:
    for choice in choices:
        assert getattr(config.from_mapping({**GOOD[config], name: choice}), name) == choice


@pytest.mark.parametrize("value", ["false", 0, 1, None])
@pytest.mark.parametrize(
    ("config", "name"),
    [(RunConfig, "parallel_agnostic"), (RunConfig, "replicated_layout"), (FsTierConfig, "enable_kv_events")],
)
def test_switches_are_true_or_false(config: type[Any], name: str, value: object) -> None:
    assert refusal(config, **{name: value}) == f"{name} is {value!r}; valid choices: True, False"


@pytest.mark.parametrize("value", ["", None, 3, b"m", "a\nb", "a\0b", "\ud800", "\u202e", "m" * 201, "é" * 101])
def test_model_names_are_short_printable_text(value: object) -> None:
    assert refusal(RunConfig, model_name=value) == f"model_name is {value!r}; it takes 1 to 200 bytes of printable text"


@pytest.mark.parametrize("name", ["dtype", "inference_engine", "canonical_format"])
@pytest.mark.parametrize("value", ["", 3, b"x"])
def test_other_names_are_text(name: str, value: object) -> None:
    assert refusal(RunConfig, **{name: value}) == f"{name} is {value!r}; it takes a name, as text"


@pytest.mark.parametrize("value", ["", None, 3, b"/kv", "/kv\0x"])
def test_the_root_is_a_path(value: object) -> None:
    assert refusal(FsTierConfig, root_dir=value) == f"root_dir is {value!r}; it takes the path of a directory"


def test_the_root_becomes_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert FsTierConfig("kv/../x", 4096).root_dir == str(tmp_path / "x")  # also once the process is elsewhere
    assert FsTierConfig(tmp_path, 4096).root_dir == str(tmp_path)  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [0, 0o400, 0o4700, 0o7777, -1, "600", None, True])
@pytest.mark.parametrize("name", ["file_mode", "dir_mode"])
def test_modes_are_permission_bits_that_let_the_owner_work(name: str, value: object) -> None:
    assert refusal(FsTierConfig, **{name: value}).startswith(f"{name} is ")


def test_modes_of_a_group_pass() -> None:
    made = FsTierConfig("/kv", 4096, file_mode=0o660, dir_mode=0o2770)
    assert (made.file_mode, made.dir_mode) == (0o660, 0o2770)
    assert "0o600" in refusal(FsTierConfig, dir_mode=0o600)  # a folder that nobody can enter


def test_groups_may_be_plain_mappings() -> None:
    group = KVCacheGroup(16, ("a", "b"))
    assert RunConfig("m", kv_cache_groups=(group,)) == RunConfig.from_mapping(
        {"model_name": "m", "kv_cache_groups": [{"tokens_per_block": 16, "layer_names": ["a", "b"]}]}
    )
    assert hash(RunConfig("m", kv_cache_groups=(group,)))


@pytest.mark.parametrize(
    ("value", "names"),
    [
        (3, "kv_cache_groups"),
        ("abc", "kv_cache_groups"),
        ([3], "kv_cache_groups"),
        ([{}], "tokens_per_block"),
        ([{"tokens_per_block": 16, "layers": []}], "layer_names"),
        ([{"tokens_per_block": 0}], "tokens_per_block"),
        ([{"tokens_per_block": 16, "layer_names": "abc"}], "layer_names"),
        ([{"tokens_per_block": 16, "layer_names": [1]}], "layer_names"),
        ([{"tokens_per_block": 16, "layer_names": None}], "layer_names"),
    ],
)
def test_bad_groups_are_named(value: object, names: str) -> None:
    assert names in refusal(RunConfig, kv_cache_groups=value)


ANYTHING = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=8),
    st.binary(max_size=8),
    st.lists(st.none()),
)


@given(st.sampled_from(sorted(GOOD, key=lambda c: c.__name__)), st.data())
def test_whatever_comes_in_is_taken_or_refused_in_words(config: type[Any], data: st.DataObject) -> None:
    names = [field.name for field in dataclasses.fields(config)]
    options = {**GOOD[config], **data.draw(st.dictionaries(st.sampled_from(names), ANYTHING, max_size=3))}
    with contextlib.suppress(ConfigError):
        config.from_mapping(options)


def test_one_except_clause_catches_all() -> None:
    assert issubclass(ConfigError, KvtierError)
    assert issubclass(ConfigError, ValueError)
    assert issubclass(RootError, KvtierError)
