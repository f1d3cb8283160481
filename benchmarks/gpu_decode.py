"""How fast a GPU decodes: a model of random weights beside the roofline, and beside transformers.

    python benchmarks/gpu_decode.py [--device cuda:0] [--scheme NAME ...] [--batch N ...] [--stages N ...] [--json FILE]

A mesh of one or two stages on one card, for each scheme and number of sequences that decode at a time; two stages have
half of the sequences each in a lane of their own. Its rate is that of full rounds, the roofline the bytes that a step
has to read (layers at their scheme, head, keys and values) over the bandwidth of a copy. transformers generates with 16
bits in the same call. `--shape tiny --device cpu` goes the same way without a GPU; its figures mean nothing.
"""

import argparse
import asyncio
import gc
import json
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import torch
from rounds import Rounds, frames_of
from tokenizers import Tokenizer, models
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from llmpq.bench.workload import equal_lengths
from llmpq.client import Client
from llmpq.cluster_file import ClusterSpec, StageSpec
from llmpq.local_mesh import local_mesh
from llmpq.memory import head_bytes, kv_token_bytes, layer_bytes
from llmpq.model import read_shape
from llmpq.plan import DEFAULT_GROUP_SIZE, LayerPrecision, PlanOptions
from llmpq.schemes import SCHEMES

SHAPES = {
    "7b": {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32},
    "tiny": {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 4, "num_attention_heads": 4},
}
VOCAB_SIZE = 32_000
PROMPT_TOKENS, NEW_TOKENS = 128, 64
#: Share of the card's free memory that all stages take together.
MEMORY_SHARE = 0.8
NUM_RUNS = 3
COPY_BYTES = 2**29


@dataclass(frozen=True)
class Decoding:
    """How fast a number of sequences decode.

    Attributes:
        system: "llmpq" or "transformers".
        scheme: Of its layers.
        stages: Processes that share the card.
        batch: Sequences that decode at a time.
        tokens_per_s: Of all of them.
        roofline_share: Over what the bandwidth of a copy allows.
    """

    system: str
    scheme: str
    stages: int
    batch: int
    tokens_per_s: float
    roofline_share: float


class Roofline:
    """What the memory of a device allows.

    Args:
        model: Directory of the model.
        device: The device.
    """

    def __init__(self, model: str, device: torch.device) -> None:
        self._shape = read_shape(model)
        self._bytes_per_s = copy_bytes_per_s(device)

    def share(self, scheme: str, batch: int, tokens_per_s: float) -> float:
        """A rate over the greatest possible."""
        shape = self._shape
        precision = LayerPrecision(scheme, DEFAULT_GROUP_SIZE if SCHEMES[scheme].is_grouped else 0)
        cached_tokens = batch * (PROMPT_TOKENS + NEW_TOKENS / 2)
        num_bytes = layer_bytes(shape, precision) * shape.num_layers + head_bytes(shape)
        num_bytes += cached_tokens * kv_token_bytes(shape, activation_bytes=2) * shape.num_layers
        step_s = num_bytes / self._bytes_per_s
        return tokens_per_s * step_s / batch


def main() -> None:
    """Prints a row for each measurement."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--shape", choices=SHAPES, default="7b")
    parser.add_argument("--scheme", nargs="+", default=["w4", "w16"])
    parser.add_argument("--batch", nargs="+", type=int, default=[1, 16, 64])
    parser.add_argument("--stages", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--json", type=Path)
    flags = parser.parse_args()
    device = torch.device(flags.device)
    with TemporaryDirectory(prefix="llmpq-random-model-") as directory:
        save_random_model(directory, flags.shape, device)
        roofline = Roofline(directory, device)
        print("| system | scheme | stages | batch | tokens/s | of the roofline |\n|---|---|---|---|---|---|")
        found = [shown(each) for each in transformers_rates(directory, device, flags.batch, roofline)]
        for stages in flags.stages:
            rates = asyncio.run(mesh_rates(directory, device, stages, flags.scheme, flags.batch, roofline))
            found += rates
    if flags.json:
        flags.json.write_text(json.dumps([asdict(each) for each in found], indent=1), encoding="utf-8")


def shown(found: Decoding) -> Decoding:
    """Prints it."""
    print(
        f"| {found.system} | {found.scheme} | {found.stages} | {found.batch} | {found.tokens_per_s:,.0f} "
        f"| {found.roofline_share:.0%} |",
        flush=True,
    )
    return found


def save_random_model(directory: str, shape: str, device: torch.device) -> None:
    """A checkpoint of random weights, and a tokenizer that knows no words: prompts are token ids."""
    config = LlamaConfig(vocab_size=VOCAB_SIZE, max_position_embeddings=2048, **SHAPES[shape])
    torch.manual_seed(0)
    with device:
        LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(directory)
    words = {f"<{number}>": number for number in range(VOCAB_SIZE)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<0>"))  # noqa: S106 no password
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<2>").save_pretrained(directory)  # noqa: S106


def copy_bytes_per_s(device: torch.device) -> float:
    """Bytes that a copy reads and writes in a second."""
    source = torch.zeros(COPY_BYTES, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * COPY_BYTES / median(seconds(lambda: target.copy_(source), device) for _ in range(10))


def seconds(work: Callable[[], object], device: torch.device) -> float:
    """That some work takes, what it leaves to the device included."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    started = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started


def transformers_rates(
    directory: str, device: torch.device, batches: Sequence[int], roofline: Roofline
) -> list[Decoding]:
    """Transformers at 16 bits: what all tokens but the first take."""
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.bfloat16).to(device).eval()
    found = []
    for batch in batches:
        prompts = torch.randint(3, VOCAB_SIZE, (batch, PROMPT_TOKENS), device=device)

        def generate(num_tokens: int, prompts: torch.Tensor = prompts) -> None:
            mask = torch.ones_like(prompts)
            lengths = {"max_new_tokens": num_tokens, "min_new_tokens": num_tokens}
            model.generate(prompts, attention_mask=mask, pad_token_id=2, do_sample=False, **lengths)

        generate(2)
        longer_s = median(
            seconds(lambda: generate(NEW_TOKENS), device) - seconds(lambda: generate(1), device)
            for _ in range(NUM_RUNS)
        )
        rate = batch * (NEW_TOKENS - 1) / longer_s
        found.append(Decoding("transformers", "w16", 1, batch, rate, roofline.share("w16", batch, rate)))
    return found


async def mesh_rates(  # noqa: PLR0917 each is another choice
    directory: str,
    device: torch.device,
    num_stages: int,
    schemes: Sequence[str],
    batches: Sequence[int],
    roofline: Roofline,
) -> list[Decoding]:
    """Our own, by the rounds in which all lanes are full."""
    gc.collect()  # what transformers left
    torch.cuda.empty_cache()
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 8 * 2**30
    budget = int(free * MEMORY_SHARE / num_stages)
    stages = tuple(
        StageSpec(f"stage-{number}", str(device), memory_budget_bytes=budget) for number in range(num_stages)
    )
    source = random.Random(0)  # noqa: S311 no secret
    words = [source.randrange(3, VOCAB_SIZE) for _ in range(max(batches) * PROMPT_TOKENS + NEW_TOKENS)]
    found = []
    with TemporaryDirectory(prefix="llmpq-gpu-decode-") as state:
        spec = ClusterSpec(stages=stages, state=Path(state))
        async with local_mesh(spec) as coordinator, Client(coordinator) as client:
            for scheme in schemes:
                for batch in batches:
                    lanes = min(num_stages, batch)
                    options = PlanOptions(
                        allowed_schemes=(scheme,),
                        use_all_devices=True,
                        num_lanes=lanes,
                        decode_micro_batch=batch // lanes,
                    )
                    workload = equal_lengths(words, batch, PROMPT_TOKENS, NEW_TOKENS)
                    runs = [await frames_of(client, directory, workload, options) for _ in range(NUM_RUNS + 1)][1:]
                    round_ms = median(Rounds.of(*found_in_run, lanes, batch).round_ms for found_in_run in runs)
                    rate = batch / round_ms * 1e3
                    share = roofline.share(scheme, batch, rate)
                    found.append(shown(Decoding("llmpq", scheme, num_stages, batch, rate, share)))
    return found


if __name__ == "__main__":
    main()
