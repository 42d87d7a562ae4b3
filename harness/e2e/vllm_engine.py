"""One real vLLM engine in a process of its own. `run.py` starts it in the engines' venv and sends JSON lines.

It uses vLLM's public interface only. Prompts and generations are token ids.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from harness.runtime.process import claim_stdout, serve

MODEL: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 1000,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "torch_dtype": "float32",
    "bos_token_id": 1,
    "eos_token_id": 2,
    "tie_word_embeddings": False,
}


def make_model(path: str, seed: int) -> None:
    """A tiny Llama with random weights, the same for the same seed, as a folder that vLLM loads."""
    import torch
    from safetensors.torch import save_file

    hidden, inner, vocab = MODEL["hidden_size"], MODEL["intermediate_size"], MODEL["vocab_size"]
    kv = hidden // MODEL["num_attention_heads"] * MODEL["num_key_value_heads"]
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens": (vocab, hidden), "lm_head": (vocab, hidden)}
    for layer in (f"model.layers.{index}" for index in range(MODEL["num_hidden_layers"])):
        shapes |= {f"{layer}.self_attn.{name}_proj": (hidden, hidden) for name in "qo"}
        shapes |= {f"{layer}.self_attn.{name}_proj": (kv, hidden) for name in "kv"}
        shapes |= {f"{layer}.mlp.{name}_proj": (inner, hidden) for name in ("gate", "up")}
        shapes |= {f"{layer}.mlp.down_proj": (hidden, inner)}
        shapes |= {f"{layer}.{name}_layernorm": (hidden,) for name in ("input", "post_attention")}
    shapes["model.norm"] = (hidden,)
    torch.manual_seed(seed)
    # Large weights make the generation depend on every block of the prompt, so that a wrong block shows.
    weights = {
        f"{name}.weight": torch.randn(shape) * 0.2 if len(shape) == 2 else torch.ones(shape)
        for name, shape in shapes.items()
    }
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(MODEL, indent=2))


class Engine:
    """Answers requests: `{"do": name, ...}` calls the method of that name with the other fields."""

    def __init__(self, options: dict[str, Any]) -> None:
        from vllm import LLM
        from vllm.config import KVTransferConfig

        self._tokens_per_block = options["tokens_per_block"]
        self._llm = LLM(
            model=options["model"],
            skip_tokenizer_init=True,
            enforce_eager=True,
            dtype="float32",
            block_size=options["tokens_per_block"],
            max_model_len=options["max_model_len"],
            max_num_seqs=8,
            num_gpu_blocks_override=options["gpu_blocks"],
            enable_prefix_caching=True,
            disable_log_stats=False,  # /metrics
            seed=0,
            kv_transfer_config=KVTransferConfig(
                kv_connector="OffloadingConnector",
                kv_role="kv_both",
                engine_id=options["engine_id"],
                kv_connector_extra_config={
                    "spec_name": "CpuTieringSpec",
                    "spec_module_path": "harness.e2e.cpu_spec",
                    "cpu_bytes_to_use": options["cpu_bytes"],
                    "secondary_tiers": [options["tier"]],
                },
            ),
            **options.get("engine", {}),
        )

    def generate(self, prompts: list[list[int]], max_tokens: int, salt: str = "") -> dict[str, Any]:
        """The prompts as one batch, greedily. `cached[i]`: tokens of prompt i that were not computed. Requests
        share blocks only within one `salt`: a new one makes the engine compute all."""
        from vllm import SamplingParams

        params = SamplingParams(temperature=0.0, max_tokens=max_tokens, ignore_eos=True, detokenize=False)
        started = time.monotonic()
        requests = [{"prompt_token_ids": prompt} | ({"cache_salt": salt} if salt else {}) for prompt in prompts]
        outputs = self._llm.generate(requests, params, use_tqdm=False)
        return {
            "seconds": time.monotonic() - started,
            "tokens": [list(output.outputs[0].token_ids) for output in outputs],
            "cached": [output.num_cached_tokens or 0 for output in outputs],
        }

    def reset(self, cpu_tier: bool) -> bool:
        """Empty the GPU's prefix cache, and with `cpu_tier` the CPU tier."""
        return bool(self._llm.reset_prefix_cache(reset_connector=cpu_tier))

    def metrics(self) -> dict[str, float]:
        """The engine's own /metrics: name{label=value,...} -> value."""
        from prometheus_client import REGISTRY

        return {
            sample.name + "{" + ",".join(f"{k}={v}" for k, v in sorted(sample.labels.items())) + "}": sample.value
            for family in REGISTRY.collect()
            for sample in family.samples
            if not sample.name.endswith(("_bucket", "_created"))
        }

    def block_hashes(self, prompts: list[list[int]]) -> list[list[str]]:
        """The hash of each full block of each prompt, as engines derive it; the hash names the block's file."""
        from vllm.utils.hashing import get_hash_fn_by_name
        from vllm.v1.core import kv_cache_utils

        hash_fn = get_hash_fn_by_name("sha256")
        kv_cache_utils.init_none_hash(hash_fn)
        size, hashes = self._tokens_per_block, []
        for prompt in prompts:
            chain: list[Any] = [None]
            for start in range(0, len(prompt) - size + 1, size):
                chain.append(kv_cache_utils.hash_block_tokens(hash_fn, chain[-1], prompt[start : start + size]))
            hashes.append([block_hash.hex() for block_hash in chain[1:]])
        return hashes


def main() -> None:
    """First line: the engine's options; then requests. Each answer is one line: [answer, error text or null]."""
    engine: Engine | None = None

    def answer(request: dict[str, Any]) -> list[Any]:
        nonlocal engine
        try:
            if engine is None:
                import vllm

                engine = Engine(request)
                return [vllm.__version__, None]
            return [getattr(engine, request.pop("do"))(**request), None]
        except Exception as error:
            return [None, f"{type(error).__name__}: {error}"]

    serve(answer, claim_stdout())


if __name__ == "__main__":
    main()
