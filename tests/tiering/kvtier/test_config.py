"""Every bad value gives one clear sentence; what passes is never checked again."""

from __future__ import annotations

import dataclasses
import math
import typing
from collections.abc import Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from kvtier.config import (
    CACHE_POLICIES,
    DURABILITIES,
    HASH_ALGORITHMS,
    INTEGRITY_LEVELS,
    IO_POLICIES,
    MISMATCH_ACTIONS,
    SEED_POLICIES,
    CapacityConfig,
    ConfigError,
    CpuTierConfig,
    FsTierConfig,
    KVCacheGroup,
    KvtierError,
    RootError,
    RunConfig,
    parse_size,
)

GOOD: dict[type[Any], dict[str, Any]] = {
    RunConfig: {"model_name": "org/model"},
    FsTierConfig: {"root_dir": "/kv", "block_bytes": 8192},
    CpuTierConfig: {"num_chunks": 4, "block_bytes": 8192},
    KVCacheGroup: {"tokens_per_block": 16},
    CapacityConfig: {"max_bytes": 1 << 30},
}
# A root that everything may be missing from: what is required of `from_mapping`.
REQUIRED = {config: good for config, good in GOOD.items() if config is not CapacityConfig}

COUNTS = [
    *(
        (RunConfig, name)
        for name in ("tokens_per_hash", "blocks_per_file", "tp_size", "pp_size", "pcp_size", "dcp_size")
    ),
    *((FsTierConfig, name) for name in ("n_read_threads", "n_write_threads")),
    (CpuTierConfig, "num_chunks"),
    (KVCacheGroup, "tokens_per_block"),
]
BLOCK_SIZES = [(FsTierConfig, "block_bytes"), (CpuTierConfig, "block_bytes")]
SIZES = [
    *BLOCK_SIZES,
    (FsTierConfig, "task_bytes_max"),
    (FsTierConfig, "store_queue_bytes_max"),
    (CapacityConfig, "max_bytes"),
    (CapacityConfig, "min_free_bytes"),
]
CHOICES = [
    (FsTierConfig, "hash_algorithm", HASH_ALGORITHMS),
    (FsTierConfig, "seed_policy", SEED_POLICIES),
    (FsTierConfig, "on_mismatch", MISMATCH_ACTIONS),
    (FsTierConfig, "on_untrusted_root", MISMATCH_ACTIONS),
    (FsTierConfig, "integrity", INTEGRITY_LEVELS),
    (FsTierConfig, "io", IO_POLICIES),
    (FsTierConfig, "durability", DURABILITIES),
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


@pytest.mark.parametrize("config", REQUIRED)
def test_missing_options_are_all_named(config: type[Any]) -> None:
    with pytest.raises(ConfigError) as caught:
        config.from_mapping({})
    assert all(repr(name) in str(caught.value) for name in REQUIRED[config])


@pytest.mark.parametrize("config", GOOD)
@pytest.mark.parametrize("value", [None, [], "max_bytes", 3])
def test_options_come_in_a_mapping(config: type[Any], value: Any) -> None:
    with pytest.raises(ConfigError, match="it takes a mapping of"):
        config.from_mapping(value)


@pytest.mark.parametrize("value", [0, -1, -(1 << 70)])
@pytest.mark.parametrize(("config", "name"), COUNTS)
def test_counts_start_at_one(config: type[Any], name: str, value: int) -> None:
    assert refusal(config, **{name: value}) == f"{name} is {value}; it must be at least 1"


@pytest.mark.parametrize("value", [True, None, "8", 2.0, [1]])
@pytest.mark.parametrize(("config", "name"), [*COUNTS, (RunConfig, "rank"), (FsTierConfig, "known_keys_max")])
def test_numbers_are_whole_numbers(config: type[Any], name: str, value: object) -> None:
    assert refusal(config, **{name: value}) == f"{name} is {value!r}; it takes a whole number"


@pytest.mark.parametrize(
    ("config", "name", "value", "limit"),
    [
        *((config, name, (1 << 30) + 1, 1 << 30) for config, name in COUNTS if not name.endswith("_threads")),
        (FsTierConfig, "n_read_threads", 100_000_000, 1024),
        (FsTierConfig, "n_write_threads", 1025, 1024),
        (FsTierConfig, "thread_nice", 99, 19),
        (FsTierConfig, "known_keys_max", 1 << 31, 1 << 30),
        (FsTierConfig, "block_bytes", 1 << 50, 1 << 34),
        (FsTierConfig, "task_bytes_max", 1 << 61, 1 << 60),
        (CapacityConfig, "max_bytes", 1 << 61, 1 << 60),
    ],
)
def test_numbers_have_upper_limits(config: type[Any], name: str, value: int, limit: int) -> None:
    assert refusal(config, **{name: value}) == f"{name} is {value}; it must be at most {limit}"


@pytest.mark.parametrize("value", [0, -1, math.inf, -math.inf, math.nan, 1e9, 10**400, True, "10", None])
def test_hung_seconds_are_a_finite_number(value: object) -> None:
    assert refusal(FsTierConfig, hung_seconds=value).endswith("; it takes a number from 0.001 to 86400")
    assert FsTierConfig("/kv", 4096, hung_seconds=1).hung_seconds == 1


@pytest.mark.parametrize("value", [0, -0.5, 1.5, math.nan, math.inf, True, "0.9", None])
@pytest.mark.parametrize("name", ["low_water", "high_water"])
def test_water_marks_are_fractions(name: str, value: object) -> None:
    assert refusal(CapacityConfig, **{name: value}) == f"{name} is {value!r}; it takes a number from 0.001 to 1"


@pytest.mark.parametrize("value", [[], "m=2", 3, {"": 1}, {1: 2}])
def test_shares_map_models_to_weights(value: object) -> None:
    assert refusal(CapacityConfig, shares=value) == f"shares is {value!r}; it takes a mapping of model names to weights"


@pytest.mark.parametrize("value", [0, -1, math.nan, math.inf, 1e300, True, "2", None])
def test_weights_are_finite_and_above_zero(value: object) -> None:
    text = refusal(CapacityConfig, shares={"a": 1, "org/m": value})
    assert text == f"the weight of 'org/m' in shares is {value!r}; it takes a number from 0.001 to 1000"


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("500000", 500_000),
        ("1B", 1),
        ("64k", 64_000),
        ("256KiB", 256 << 10),
        ("256 kib", 256 << 10),
        ("1.5TB", 1_500_000_000_000),
        ("2Ti", 2 << 40),
        (" 10GiB ", 10 << 30),
        ("0.1GiB", (1 << 30) // 10),
        ("9007199254740993", 9007199254740993),
        (7, 7),
    ],
)
def test_sizes_have_units(text: object, size: int) -> None:
    assert parse_size("max_bytes", text) == size


@pytest.mark.parametrize(
    "value",
    [
        *("", " ", "GiB", "1.5", "-1", "-5GiB", "1e9", "1_000", "0x10", "5iB", "5 EiB", "1,000", "٣", "nan", "9" * 99),
        *(1.5, 2e12, math.nan, math.inf, True, False, [], {}, b"1GiB", Decimal(5)),
    ],
)
@pytest.mark.parametrize(("config", "name"), SIZES)
def test_a_size_is_a_number_or_a_number_with_a_unit(config: type[Any], name: str, value: object) -> None:
    expected = f"{name} is {value!r}; it takes a whole number of bytes, or a number with a unit: 500000, 1.5TB, 10GiB"
    assert refusal(config, **{name: value}) == expected


@pytest.mark.parametrize(("config", "name"), SIZES)
def test_every_size_may_have_a_unit(config: type[Any], name: str) -> None:
    assert getattr(config.from_mapping({**GOOD[config], name: "512MiB"}), name) == 512 << 20


def test_a_refused_size_is_shown_as_it_was_given_and_in_bytes() -> None:
    assert refusal(FsTierConfig, block_bytes="64KB").startswith(
        "block_bytes is '64KB' (64000 bytes); it must be a mult"
    )
    assert refusal(FsTierConfig, block_bytes="1KiB") == "block_bytes is '1KiB' (1024 bytes); it must be at least 4096"


@pytest.mark.parametrize("value", ["2TiB", 2 << 40, {"max_bytes": "2TiB"}, CapacityConfig(max_bytes=2 << 40)])
def test_a_capacity_of_one_size_is_max_bytes(value: object) -> None:
    made = FsTierConfig.from_mapping({**GOOD[FsTierConfig], "capacity": value})
    assert made.capacity == CapacityConfig(max_bytes=2 << 40)


@pytest.mark.parametrize(
    "value", [True, False, [], (), "", 0, -1, 1.5, 2e12, math.nan, "2 tebibytes", b"2TiB", ["2TiB"], object]
)
def test_a_capacity_of_another_type_is_refused(value: object) -> None:
    expected = f'capacity is {value!r}; it takes the size of max_bytes, such as "2TiB", or a mapping of max_bytes, '
    assert refusal(FsTierConfig, capacity=value) == expected + "min_free_bytes, high_water, low_water, shares"


def test_a_capacity_holds_at_least_one_file_below_its_high_water_mark() -> None:
    assert FsTierConfig("/kv", 8192, capacity=CapacityConfig(max_bytes=12935)).capacity
    text = refusal(FsTierConfig, capacity={"max_bytes": 12934})
    least = "it must be at least 12935: a file of 12288 bytes below the high water mark"
    assert text == f"capacity: max_bytes is 12934; {least}"
    assert "at least 12935" in refusal(FsTierConfig, capacity=1)
    assert "at least 12288" in refusal(FsTierConfig, capacity={"max_bytes": 12287, "high_water": 1.0})


def test_a_capacity_of_wrong_options_is_named_with_the_valid_ones() -> None:
    text = refusal(FsTierConfig, capacity={"max_byte": 1 << 40})
    assert text.startswith("capacity: unknown option 'max_byte'; valid options: max_bytes, min_free_bytes, high_water")
    assert refusal(FsTierConfig, capacity={}) == "capacity: no limit is set; give max_bytes, min_free_bytes, or both"


@pytest.mark.parametrize(("config", "name"), BLOCK_SIZES)
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


@pytest.mark.parametrize("value", ["", None, 3, b"/kv", "/kv\0x", "/\ud800"])
def test_the_root_is_a_path(value: object) -> None:
    assert refusal(FsTierConfig, root_dir=value) == f"root_dir is {value!r}; it takes the path of a directory"


@pytest.mark.parametrize("value", ["kv", "./kv", "..", "~", "~/kv", "~user/kv"])
def test_the_root_is_absolute_so_that_all_processes_mean_the_same_folder(value: str) -> None:
    assert refusal(FsTierConfig, root_dir=value) == (
        f"root_dir is {value!r}; it takes an absolute path, such as /mnt/kv (~ is not expanded)"
    )


def test_the_root_is_kept_in_its_shortest_form(tmp_path: Path) -> None:
    assert FsTierConfig("/mnt/kv/../x/", 4096).root_dir == "/mnt/x"
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
        ([{"tokens_per_block": 16}, {"tokens_per_block": 0}], "kv_cache_groups[1]: tokens_per_block is 0"),
        ([{"tokens_per_block": 16, "layer_names": "abc"}], "layer_names"),
        ([{"tokens_per_block": 16, "layer_names": [1]}], "layer_names"),
        ([{"tokens_per_block": 16, "layer_names": None}], "layer_names"),
    ],
)
def test_bad_groups_are_named(value: object, names: str) -> None:
    assert names in refusal(RunConfig, kv_cache_groups=value)


SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=8),
    st.binary(max_size=8),
    st.sampled_from([10**5000, 1 << 62, "1GiB", "/kv", "lru", Decimal(1), 1j, object(), int, Path("kv"), 1e-320]),
)
ANYTHING = st.one_of(
    SCALARS,
    st.lists(SCALARS, max_size=2),
    st.tuples(SCALARS),
    st.frozensets(st.integers(), max_size=1),
    st.dictionaries(st.one_of(st.integers(), st.text(max_size=3)), SCALARS, max_size=2),
    st.dictionaries(st.sampled_from(["max_bytes", "min_free_bytes", "high_water", "shares"]), SCALARS, max_size=3),
)
OPTIONS = [
    pytest.param(config, field.name, id=f"{config.__name__}.{field.name}")
    for config in GOOD
    for field in dataclasses.fields(config)
]


def fits(hint: Any, value: Any) -> bool:
    """Whether a value is of the type that an option declares."""
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if typing.get_origin(hint) is tuple:
        return isinstance(value, tuple) and all(fits(typing.get_args(hint)[0], one) for one in value)
    if typing.get_origin(hint) is Mapping:
        key, item = typing.get_args(hint)
        return isinstance(value, dict) and all(fits(key, k) and fits(item, v) for k, v in value.items())
    if args := typing.get_args(hint):
        return any(fits(one, value) for one in args)
    return type(value) is hint


def written_for(hint: Any, name: str, value: Any) -> bool:
    """Whether a person may write a value of this type for an option of the type `hint`."""
    sizes = (int, str) if name.endswith(("_bytes", "_bytes_max")) or name == "capacity" else ()
    others = {"root_dir": (Path,), "capacity": (dict,), "layer_names": (list,), "kv_cache_groups": (list,)}.get(
        name, ()
    )
    return fits(hint, value) or type(value) in (*sizes, *others)


def size_of(value: object) -> int | None:
    """The bytes that a text means; None if it is no size."""
    try:
        return parse_size("", value)
    except ConfigError:
        return None


@settings(max_examples=60)
@pytest.mark.parametrize(("config", "name"), OPTIONS)
@given(value=ANYTHING)
@example(value="1")
def test_a_value_of_any_type_is_kept_as_declared_or_refused_in_words(config: type[Any], name: str, value: Any) -> None:
    hint = typing.get_type_hints(config)[name]
    try:
        made = config.from_mapping({**GOOD[config], name: value})
    except ConfigError as error:
        text = str(error)
        assert name in text
        assert "\n" not in text
        if isinstance(value, (bool, float, str, bytes)):  # of others, perhaps the part that is wrong
            assert repr(value) in text or f" is {size_of(value)};" in text
    else:
        assert fits(hint, getattr(made, name))
        assert written_for(hint, name, value)


@settings(max_examples=300)
@given(st.sampled_from(sorted(GOOD, key=lambda c: c.__name__)), st.data())
def test_several_values_of_any_type_are_taken_or_refused_in_words(config: type[Any], data: st.DataObject) -> None:
    names = [field.name for field in dataclasses.fields(config)]
    options = {**GOOD[config], **data.draw(st.dictionaries(st.sampled_from(names), ANYTHING, max_size=3))}
    try:
        made = config.from_mapping(options)
    except ConfigError:
        return
    hints = typing.get_type_hints(config)
    assert all(fits(hints[name], getattr(made, name)) for name in names)


def test_one_except_clause_catches_all() -> None:
    assert issubclass(ConfigError, KvtierError)
    assert issubclass(ConfigError, ValueError)
    assert issubclass(RootError, KvtierError)
