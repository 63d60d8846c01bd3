"""Padded execution equals masked execution, waits for nothing, and keeps CUDA graphs within their bound."""

from __future__ import annotations

import weakref
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters
from torch.utils._python_dispatch import TorchDispatchMode

from dydit_cli.diffusion.options import SamplerSettings
from dydit_cli.diffusion.process import process_of, times
from dydit_cli.diffusion.sampler import sample
from dydit_cli.errors import DyditError
from dydit_cli.flops.executed import Executed
from dydit_cli.model.backbone import DynamicBackbone
from dydit_cli.model.caching import CacheOptions
from dydit_cli.model.cuda_graphs import GraphedSteps, Program
from dydit_cli.model.execution import executor
from dydit_cli.model.families.dit import DiT, DyDiT, DyDiTConfig
from dydit_cli.model.options import PaddedOptions
from dydit_cli.model.padded import PaddedModel, capacity_for, compiled_block
from dydit_cli.model.weight_cache import Part
from dydit_cli.sampling.options import SamplingConfig
from dydit_cli.sampling.sampler import run_sampler
from tests.conftest import FAMILIES, TINY, inputs, randomize

# torch's own import of its compiler
TORCH_OWN = pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated:DeprecationWarning")


def level(model: DynamicBackbone, x: Tensor, t: Tensor, y: Tensor) -> None:
    """Moves every token router's threshold so that of this batch a third of the tokens and more is on."""
    for block in model.routed_blocks:
        seen: list[Tensor] = []
        last = block.token_router.last
        hook = last.register_forward_hook(lambda module, arguments, output, seen=seen: seen.append(output))
        with torch.no_grad():
            model(x, t, y)
            hook.remove()
            last.bias.sub_(seen[0].flatten().quantile(0.6))


@pytest.fixture
def levelled(any_dynamic: DynamicBackbone) -> DynamicBackbone:
    """Of every family, with tokens on and off in each block."""
    x, t, y = inputs(any_dynamic.config, 5)
    level(any_dynamic, x, t[:1].expand(5), y)
    return any_dynamic


def one_timestep(model: DynamicBackbone, batch: int = 5) -> tuple[Tensor, Tensor, Tensor]:
    x, t, y = inputs(model.config, batch)
    return x, t[:1].expand(batch), y


@pytest.mark.parametrize("capacity", [None, 0.01, 0.5, 1.0])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)], ids=["fp32", "fp64"])
def test_padded_equals_masked(levelled: DynamicBackbone, capacity: float | None, dtype: torch.dtype, tolerance: float) -> None:
    """From the first call, which knows nothing, to those with room for what was on; the whole model, outputs of about 5."""
    model = levelled.to(dtype)
    x, t, y = one_timestep(model)
    x = x.to(dtype)
    with torch.no_grad():
        expected, masks = model(x, t, y, return_routing=True)
    assert 0.2 < masks.tokens.mean() < 0.6
    padded = executor(model, "padded", padded=PaddedOptions(capacity))
    for _ in range(3):
        out, routing = padded(x, t, y, return_routing=True)
        assert (out - expected).abs().max() < tolerance
        for name in ("heads", "groups", "tokens"):
            assert torch.equal(getattr(routing, name), getattr(masks, name))


def test_a_batch_of_mixed_timesteps(levelled: DynamicBackbone) -> None:
    x, t, y = inputs(levelled.config, 5)
    with torch.no_grad():
        expected = levelled(x, t, y)
    padded = PaddedModel(levelled)
    for _ in range(2):
        assert (padded(x, t, y) - expected).abs().max() < 1e-5


def test_a_guided_sampling_run(levelled: DynamicBackbone) -> None:
    """Two batches, the second smaller: the samples are those of masks."""
    labels = torch.zeros(5, dtype=torch.long)
    settings = SamplerSettings(steps=3, cfg=2.0 if levelled.config.num_classes else 1.0)

    def draw(runner: Any) -> Tensor:
        return run_sampler(runner, labels, settings, 0, 3, 0, None)

    padded = PaddedModel(levelled.double())
    expected = draw(levelled)
    assert (draw(padded) - expected).abs().max() < 1e-5 * expected.abs().max()
    assert {batch for _, batch in padded.counts} == ({3, 2} if settings.cfg == 1 else {6, 4})


def test_a_sampler_gives_timesteps_where_reading_them_waits_for_nothing(tiny_dynamic: DyDiT) -> None:
    """On the cpu, though its samples are elsewhere."""
    seen: list[torch.device] = []

    def denoise(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        seen.append(t.device)
        return x

    settings = SamplerSettings(steps=2, sampler="euler").for_model(FAMILIES["sit"])
    x, y = torch.empty(2, 1, 4, 4, device="meta"), torch.zeros(2, dtype=torch.long, device="meta")
    assert sample(denoise, x, y, settings, null_class=10).device.type == "meta"
    assert seen == [torch.device("cpu")] * 2


@pytest.mark.parametrize("cache", ["fora:2", "taylorseer:2:1"])
@pytest.mark.parametrize("graphs", [False, True])
def test_with_a_cache(levelled: DynamicBackbone, cache: str, graphs: bool) -> None:
    timesteps = process_of(levelled.config).grid(6)
    padded = PaddedModel(levelled)
    padded.graphs = GraphedSteps(Copies(), 10**9) if graphs else None
    x, _, y = one_timestep(levelled)
    models = [executor(levelled, "masked", cache=CacheOptions(cache)), executor(levelled, "masked", cache=CacheOptions(cache))]
    models[1].inner = padded  # type: ignore[attr-defined]
    for _ in range(3):
        for model in models:
            model.clear()
            model.plan(timesteps)
        with torch.no_grad():
            for timestep in timesteps:
                expected, out = (model(x, times(x, timestep), y) for model in models)
                assert (out - expected).abs().max() < 1e-4


def test_too_little_room_is_seen_and_mended(levelled: DynamicBackbone) -> None:
    """The call runs again with room for all; the next one has room for what was on, and no more."""
    x, t, y = one_timestep(levelled)
    with torch.no_grad():
        expected, masks = levelled(x, t, y, return_routing=True)
    padded = PaddedModel(levelled, options=PaddedOptions(0.01))
    again = []
    for _ in range(3):
        assert (padded(x, t, y) - expected).abs().max() < 1e-5
        again.append(padded.again)
    assert again == [1, 1, 1]
    (counts,) = padded.counts.values()
    assert counts == masks.tokens.sum(dim=(1, 2)).tolist()
    room = padded.capacities(t[0].item(), 5)
    assert all(count <= 5 * capacity for count, capacity in zip(counts, room, strict=True))
    assert max(room) < levelled.config.num_tokens


def test_a_step_that_is_not_known_yet_has_the_room_of_the_one_before(tiny_dynamic: DyDiT) -> None:
    x, t, y = one_timestep(tiny_dynamic)
    level(tiny_dynamic, x, t, y)
    padded = PaddedModel(tiny_dynamic)
    N = TINY.num_tokens
    now = t[0].item()
    assert padded.capacities(now, 5) == (N,) * TINY.depth
    padded(x, t, y)
    known = padded.capacities(now, 5)
    assert all(a <= b < N for a, b in zip(known, padded.capacities(now - 20, 5), strict=True))
    assert padded.capacities(now - 20, 4) == (N,) * TINY.depth  # another batch may have more on


@pytest.mark.parametrize(
    ("active", "batch", "tokens", "expected"),
    [(0, 1, 256, 16), (100, 1, 256, 116), (6400, 128, 256, 52), (256, 1, 256, 256), (512, 2, 256, 256), (0, 4, 9, 1)],
)
def test_capacities_are_buckets_with_room_to_spare(active: int, batch: int, tokens: int, expected: int) -> None:
    """The mean of more images varies less."""
    assert capacity_for(active, batch, tokens) == expected
    assert capacity_for(active, batch, tokens, spare=2) >= expected


# nothing waits


class NoWaiting(TorchDispatchMode):
    """Raises where the host would wait for the device, or a shape follow from values."""

    FORBIDDEN = ("nonzero", "item", "_local_scalar_dense", "unique", "masked_select", "is_nonzero", "equal")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__.lstrip("_")
        if name in {word.lstrip("_") for word in self.FORBIDDEN} or name.startswith("unique"):
            raise AssertionError(f"{func} waits for the device")
        if name in ("index", "index_put") and any(one is not None and one.dtype == torch.bool for one in args[1]):
            raise AssertionError(f"{func} with a mask has a shape of its own")
        if name == "to_copy" and (kwargs or {}).get("device") == torch.device("cpu") and args[0].device.type != "cpu":
            raise AssertionError(f"{func} copies to the host")
        return func(*args, **(kwargs or {}))


def test_no_waiting_sees_what_waits() -> None:
    x = torch.ones(3)
    for wait in (
        lambda: x.nonzero(), lambda: x.sum().item(), lambda: float(x.sum()), lambda: bool(x.all()), lambda: x.unique(),
        lambda: x[x > 0], lambda: torch.equal(x, x),
    ):  # fmt: skip
        with NoWaiting(), pytest.raises(AssertionError):
            wait()


def test_sparse_execution_waits(levelled: DynamicBackbone) -> None:
    x, t, y = one_timestep(levelled)
    with NoWaiting(), pytest.raises(AssertionError, match="nonzero"):
        executor(levelled, "sparse")(x, t, y)


@pytest.mark.parametrize("capacity", [0.0, 0.5, 1.0])
def test_a_step_waits_for_nothing(levelled: DynamicBackbone, capacity: float) -> None:
    x, t, y = one_timestep(levelled)
    step = PaddedModel(levelled).step(t[0].item(), (int(capacity * levelled.config.num_tokens),) * levelled.config.depth)
    with torch.no_grad(), NoWaiting():
        step(x, y)


def test_with_room_for_all_a_whole_call_waits_for_nothing(levelled: DynamicBackbone) -> None:
    """That of a planned run, t being on the cpu; with less room there is one reading, after the step."""
    x, t, y = one_timestep(levelled)
    padded = PaddedModel(levelled, options=PaddedOptions(1.0))
    padded.plan([t[0].item()])
    with NoWaiting():
        out = padded(x, t, y)
    with torch.no_grad():
        assert (out - levelled(x, t, y)).abs().max() < 1e-5


def test_a_step_needs_no_values(levelled: DynamicBackbone) -> None:
    """On the meta device there are none: whatever would read one, or copy it to the host, raises."""
    x, t, y = one_timestep(levelled)
    step = PaddedModel(levelled).step(t[0].item(), (levelled.config.num_tokens // 2,) * levelled.config.depth)
    parts = [{structure: [on_meta(part) for part in own] for structure, own in block.items()} for block in step.parts]
    step.model.to("meta")
    with torch.no_grad():
        found = replace(step, e=step.e.to("meta"), parts=parts)(x.to("meta"), y.to("meta"))
    assert {value.device.type for value in found} == {"meta"}
    for wait in (found.active.tolist, found.tokens.nonzero, found.out.cpu):
        with pytest.raises((RuntimeError, NotImplementedError)):
            wait()


def on_meta(part: Part) -> Part:
    return Part(part.units, [(weight.to("meta"), bias.to("meta")) for weight, bias in part.inputs], part.output.to("meta"))


@TORCH_OWN
def test_a_step_is_one_graph_without_a_break(levelled: DynamicBackbone) -> None:
    torch._dynamo.reset()
    x, t, y = one_timestep(levelled)
    step = PaddedModel(levelled).step(t[0].item(), (levelled.config.num_tokens // 2,) * levelled.config.depth)
    with torch.no_grad():
        expected, found = step(x, y), torch.compile(step, fullgraph=True, dynamic=False, backend="eager")(x, y)
    assert torch.equal(found.tokens, expected.tokens)
    assert torch.equal(found.active, expected.active)
    assert (found.out - expected.out).abs().max() < 1e-5


@TORCH_OWN
def test_blocks_are_compiled_for_all_widths_and_capacities(tiny_dynamic: DyDiT) -> None:
    """Fewer graphs than there are shapes of a block's work."""
    torch._dynamo.reset()
    counters.clear()
    x, t, y = one_timestep(tiny_dynamic, 4)
    level(tiny_dynamic, x, t, y)
    padded = PaddedModel(tiny_dynamic)
    padded.run_block = compiled_block("eager")
    shapes = set()
    for timestep in range(100, 350, 50):
        t = torch.full((4,), timestep)
        with torch.no_grad():
            expected = tiny_dynamic(x, t, y)
        step = padded.step(timestep, padded.capacities(timestep, 4))
        shapes |= {
            (parts["heads"][0].units, parts["groups"][0].units, room)
            for parts, room in zip(step.parts, step.capacities, strict=True)
        }
        assert (padded(x, t, y) - expected).abs().max() < 1e-5
    assert counters["stats"]["unique_graphs"] <= 5 < len(shapes)
    assert PaddedModel(tiny_dynamic, compile=True).run_block is compiled_block()


# CUDA graphs, recorded here as what they are recorded of


class Copies:
    """A recorder for any device: its programs are run as they are. Each takes `size` bytes of the pool."""

    def __init__(self, size: int = 0) -> None:
        self.size, self.resets = size, 0

    def __call__(self, program: Program, x: Tensor, y: Tensor) -> tuple[Program, int]:
        return program, self.size

    def reset(self) -> None:
        self.resets += 1


def graphed(model: DynamicBackbone, capacity: int = 10**9, size: int = 0, share: float | None = None) -> PaddedModel:
    padded = PaddedModel(model, options=PaddedOptions(share))
    padded.graphs = GraphedSteps(Copies(size), capacity)
    return padded


def test_a_step_is_recorded_when_it_comes_back(levelled: DynamicBackbone) -> None:
    x, t, y = one_timestep(levelled)
    with torch.no_grad():
        expected = levelled(x, t, y)
    padded, kept = graphed(levelled), []
    assert padded.graphs is not None
    for _ in range(3):
        assert (padded(x, t, y) - expected).abs().max() < 1e-5
        kept.append((len(padded.graphs), padded.graphs.recorded))
    assert kept == [(0, 0), (1, 1), (1, 1)]
    assert (padded(x[:2], t[:2], y[:2]) - expected[:2]).abs().max() < 1e-5  # another batch: another graph
    padded(x[:2], t[:2], y[:2])
    assert len(padded.graphs) == 2
    padded.clear()
    assert (len(padded.graphs), padded.graphs.bytes) == (0, 0)
    assert (padded(x, t, y) - expected).abs().max() < 1e-5


def test_a_graph_without_room_is_recorded_anew(tiny_dynamic: DyDiT) -> None:
    """After two calls all tokens are on, of which there were few."""
    x, t, y = one_timestep(tiny_dynamic)
    level(tiny_dynamic, x, t, y)
    padded = graphed(tiny_dynamic, share=0.01)
    assert padded.graphs is not None
    recorded = []
    for call in range(5):
        if call == 2:
            with torch.no_grad():
                for router in tiny_dynamic.token_routers:
                    router.last.bias.add_(1000)
        with torch.no_grad():
            expected = tiny_dynamic(x, t, y)
        assert (padded(x, t, y) - expected).abs().max() < 1e-5
        recorded.append((padded.graphs.recorded, len(padded.graphs), padded.again))
    assert recorded == [(0, 0, 1), (1, 1, 1), (1, 0, 2), (2, 1, 2), (2, 1, 2)]


@pytest.mark.parametrize("share", [None, 0.5, 1.0])
def test_timesteps_that_never_come_back_are_not_recorded(tiny_dynamic: DyDiT, share: float | None) -> None:
    """As of a solver that chooses its own."""
    x, _, y = one_timestep(tiny_dynamic)
    padded = graphed(tiny_dynamic, share=share)
    assert padded.graphs is not None
    for timestep in range(100, 200, 20):
        padded(x, torch.full((5,), timestep), y)
    assert padded.graphs.recorded == 0
    padded(x, torch.full((5,), 100), y)
    assert padded.graphs.recorded == 1


def program(value: int) -> Program:
    return lambda x, y: [x + value]


def test_graphs_keep_to_their_memory() -> None:
    """What was used longest ago goes; what went is not recorded again, so that a cycle that is too long is no loss."""
    recorder = Copies(size=10)
    graphs = GraphedSteps(recorder, capacity=35)
    x = torch.zeros(1)
    assert graphs.get("a") is None
    for number, key in enumerate("abc"):
        recording = graphs.record(key, (number,), program(number), [], x, x)
        assert recording is not None
        assert (recording.capacities, recording.program(x, x)) == ((number,), [x + number])
        assert graphs.bytes <= 35
    assert graphs.get("a") is not None  # now b is the oldest
    recorder.size = 0  # the pool has grown as far as its graphs need
    weights = torch.zeros(5, dtype=torch.uint8)
    assert graphs.record("d", (), program(3), [weights, weights, torch.zeros(100)[:50]], x, x) is not None
    assert graphs.bytes == 35  # copies once, and views not at all
    more = torch.zeros(3, dtype=torch.uint8)
    assert graphs.record("e", (), program(4), [more], x, x) is not None
    assert graphs.record("f", (), program(5), [more], x, x) is not None  # shared
    assert [key for key in "abcdef" if graphs.get(key)] == ["a", "b", "c", "e", "f"]  # of the others none had any to give
    assert (graphs.bytes, graphs.evicted, graphs.recorded) == (33, 1, 6)
    assert graphs.record("d", (), program(3), [], x, x) is None
    assert graphs.record("g", (), program(6), [torch.zeros(36, dtype=torch.uint8)], x, x) is None
    assert (graphs.bytes, graphs.evicted, graphs.recorded) == (33, 2, 7)
    graphs.clear()
    assert (graphs.bytes, recorder.resets) == (0, 1)
    assert graphs.record("d", (), program(3), [], x, x) is not None


def test_what_a_graph_reads_stays_as_long_as_it() -> None:
    """Real graphs hold addresses, and no tensors."""
    graphs = GraphedSteps(Forgetful(), capacity=10**9)
    x, read = torch.zeros(1), torch.ones(1)
    alive = weakref.ref(read)
    graphs.record("a", (), lambda x, y, read=read: [x + read], [], x, x)  # type: ignore[misc]
    del read
    assert alive() is not None
    graphs.drop("a")
    assert alive() is None


class Forgetful(Copies):
    def __call__(self, program: Program, x: Tensor, y: Tensor) -> tuple[Program, int]:
        return lambda x, y: [x], 0


def test_a_pool_that_is_too_large_goes_as_a_whole() -> None:
    recorder = Copies(size=5)
    graphs = GraphedSteps(recorder, capacity=9)
    x = torch.zeros(1)
    assert graphs.record("a", (), program(1), [], x, x) is not None
    assert graphs.record("b", (), program(1), [], x, x) is None
    assert (graphs.bytes, len(graphs), recorder.resets) == (0, 0, 1)
    assert graphs.record("b", (), program(1), [], x, x) is None
    assert graphs.record("a", (), program(1), [], x, x) is not None


def test_steps_run_without_a_graph_where_there_is_no_memory(levelled: DynamicBackbone) -> None:
    x, t, y = one_timestep(levelled)
    padded = graphed(levelled, capacity=0, size=1)
    with torch.no_grad():
        expected = levelled(x, t, y)
    for _ in range(3):
        assert (padded(x, t, y) - expected).abs().max() < 1e-5
    assert padded.graphs is not None
    assert (padded.graphs.recorded, len(padded.graphs)) == (1, 0)


# the rest


def test_what_a_call_costs(levelled: DynamicBackbone) -> None:
    """With room for every token, what is executed is what the closed form says of every token."""
    x, t, y = one_timestep(levelled)
    padded = PaddedModel(levelled, options=PaddedOptions(1.0))
    with Executed() as executed:
        planned = padded.plan([t[0].item()])
    assert executed.macs == planned > 0
    assert padded.plan([t[0].item()]) == padded.prepare(t[0].item(), y) == 0
    with Executed() as executed:
        _, routing = padded(x, t, y, return_routing=True)
    everything = replace(routing, tokens=torch.ones_like(routing.tokens))
    assert executed.macs == padded.macs(everything).sum() > padded.macs(routing).sum()
    assert not executed.unknown


def test_another_flops_ratio(tiny_dynamic: DyDiT) -> None:
    model = randomize(DyDiT(DyDiTConfig.from_static(TINY, token_router_reduction=4, budgets=(0.2, 0.5, 1.0))))
    x, t, y = one_timestep(model)
    padded = PaddedModel(model)
    for ratio in (0.3, 0.9):
        padded.set_flops_ratio(ratio)
        assert not padded.counts
        with torch.no_grad():
            expected = model(x, t, y)
        for _ in range(2):
            assert (padded(x, t, y) - expected).abs().max() < 1e-5


def test_mistakes(tiny_dynamic: DyDiT, tiny_static: DiT) -> None:
    assert executor(tiny_static, "padded") is tiny_static
    for model, execution in ((tiny_dynamic, "sparse"), (tiny_static, "padded")):
        with pytest.raises(DyditError, match="--token-capacity is for a DyDiT in padded execution; add --execution padded"):
            executor(model, execution, padded=PaddedOptions(capacity=0.5))
    for capacity in (0.0, 1.5, -1.0, float("nan")):
        with pytest.raises(DyditError, match=f"token-capacity {capacity:g}; it is a share of the tokens, over 0 and at most 1"):
            PaddedOptions(capacity)
    with pytest.raises(DyditError, match="cuda-graphs: the model is on cpu, which has none; use --device cuda or leave them"):
        executor(tiny_dynamic, "padded", padded=PaddedOptions(cuda_graphs=True))
    assert SamplingConfig(execution="padded").padded == PaddedOptions()
