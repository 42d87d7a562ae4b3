"""Adapters of peers: each has an environment script, refuses wrong options, and keeps the contract.

The slow tests need the peers' environments (`kvtier-harness install-peer NAME DIR`), and are skipped without them.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from harness.adapters import OptionRefused, adapter_class, check_options, tier_python
from harness.adapters.base import PeerMissing, TierSetup
from harness.adapters.peers import PEERS
from harness.commands.conform import conform

SETUP = TierSetup(root_dir="/", block_bytes=4096, slots=4)


@pytest.mark.parametrize("name", PEERS)
def test_each_peer_is_a_tier_with_a_script_that_installs_its_pinned_version(name: str) -> None:
    peer = PEERS[name]
    assert adapter_class(name).name == name
    script = peer.script.read_text()
    assert f"=={peer.version}" in script
    pins = (peer.script.parent / "requirements.txt").read_text()
    assert all("==" in line or line.startswith(("#", "numpy>=")) for line in pins.splitlines() if line)


@pytest.mark.parametrize("name", PEERS)
def test_a_peer_without_an_environment_is_missing_and_says_how_to_install_it(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("HARNESS_VLLM_PYTHON", raising=False)
    monkeypatch.setenv(PEERS[name].variable, str(tmp_path))
    with pytest.raises(PeerMissing, match=f"{PEERS[name].what}.*install-peer {name} DIR"):
        tier_python(name)


@pytest.mark.parametrize(
    ("name", "options", "sentence"),
    [
        ("lmcache", {"speed": 1}, "unknown option speed; the lmcache tier takes one_thread, use_odirect"),
        ("lmcache", {"use_odirect": 1}, "use_odirect is 1; valid choices: true, false"),
        ("sglang", {"speed": 1}, "unknown option speed; the sglang tier takes none"),
        ("aibrix", {"speed": 1}, "unknown option speed; the aibrix tier takes none"),
    ],
)
def test_a_wrong_option_of_a_peer_is_refused_without_its_packages(
    name: str, options: dict[str, object], sentence: str
) -> None:
    with pytest.raises(OptionRefused, match=sentence):
        check_options(name, TierSetup(root_dir="/", block_bytes=4096, slots=4, options=options))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["aibrix", "lmcache", "sglang"])
def test_a_peer_keeps_the_contract_of_adapters_through_its_own_framing(name: str, tmp_path: Path) -> None:
    try:
        tier_python(name)
    except PeerMissing as error:
        pytest.skip(str(error))
    arguments = [name, "--scenario", "contract", "--seed", "7", "--json", "--runs-dir", str(tmp_path)]
    done = CliRunner().invoke(conform, arguments)
    said = json.loads(done.stdout)
    assert said["verdict"] == "true", [verdict["findings"] for run in said["runs"] for verdict in run["verdicts"]]
