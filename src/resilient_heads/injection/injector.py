"""Put faults into a running model, and take them out again."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from resilient_heads.errors import FaultError, InjectionError
from resilient_heads.injection.bits import bit_masks, flip_bits, words
from resilient_heads.injection.faults import BitFlip, WeightBitFlip
from resilient_heads.injection.formats import format_of

Fault = BitFlip | WeightBitFlip


@dataclass(slots=True)
class Strike:
    """What a batch injection saw at the site.

    Attributes:
        before: ``(N,)``, the fault-free values of the struck neurons; set once the forward pass has run.
        after: ``(N,)``, the same values with their bit flipped, before any range detector.
    """

    before: Tensor = field(default_factory=lambda: torch.empty(0))
    after: Tensor = field(default_factory=lambda: torch.empty(0))


@contextmanager
def inject(model: nn.Module, faults: Fault | Iterable[Fault]) -> Iterator[None]:
    """Corrupt a model inside the block; outside of it every bit and hook is as before, also when the body raises.

    Args:
        model: The model; run it inside the block.
        faults: One fault or several, in activations and weights. Several in one layer are applied together. A fault in
            an output strikes every time that its layer runs inside the block.

    Raises:
        FaultError: An unknown layer, a neuron, weight or bit that does not exist.
        InjectionError: The block ended and a fault in an activation had never struck, or a flip had no effect.
    """
    if not isinstance(faults, Iterable):
        faults = (faults,)
    chosen = tuple(faults)
    if not chosen:
        raise FaultError("No fault was given; expected at least one BitFlip or WeightBitFlip.")
    for fault in chosen:
        if not isinstance(fault, BitFlip | WeightBitFlip):
            raise FaultError(f"Expected a BitFlip or WeightBitFlip, found {type(fault).__name__}.")
    with ExitStack() as stack:
        stack.enter_context(inject_weights(model, [f for f in chosen if isinstance(f, WeightBitFlip)]))
        stack.enter_context(_inject_outputs(model, [f for f in chosen if isinstance(f, BitFlip)]))
        yield


@contextmanager
def inject_weights(model: nn.Module, faults: Sequence[WeightBitFlip]) -> Iterator[None]:
    """Corrupt weights inside the block; restore every bit on exit.

    Raises:
        FaultError: An unknown layer or parameter, an index or bit that does not exist, the same bit twice.
        InjectionError: A flip had no effect on what the parameter holds.
    """
    _refuse_repeats(faults)
    targets = [(_parameter(model, fault), fault) for fault in faults]
    kept: list[tuple[Tensor, tuple[int, ...], Tensor]] = []
    originals: dict[int, Tensor] = {}
    expected: dict[int, Tensor] = {}  # by address: names may share memory
    try:
        for tensor, fault in targets:
            held = words(tensor.data)
            before = held[fault.index].clone()
            kept.append((held, fault.index, before))
            held[fault.index] = words(flip_bits(tensor.data[fault.index], fault.bit))
            address, mask = held[fault.index].data_ptr(), _mask(fault, tensor)
            originals.setdefault(address, before)
            expected[address] = torch.bitwise_xor(expected.get(address, torch.zeros_like(before)), mask)
        for tensor, fault in targets:
            now = words(tensor.data)[fault.index]
            address = now.data_ptr()
            changed = torch.bitwise_xor(now, originals[address])
            _require_change(changed, expected[address], _mask(fault, tensor), fault)
        yield
    finally:
        for held, index, before in reversed(kept):
            held[index] = before


@contextmanager
def inject_batch(
    model: nn.Module, layer: str, neurons: Tensor, bits: Tensor, *, limit: float | None = None
) -> Iterator[Strike]:
    """Flip one bit in every row of a batch at one layer, each row in its own neuron and bit.

    Args:
        model: The model; run it exactly once inside the block, on a batch of N.
        layer: Dotted name of the module whose output is struck.
        neurons: ``(N,)``, flat index into one sample's output.
        bits: ``(N,)``, position in the word.
        limit: Range of the layer for the range detector: a flipped value that is NaN, infinite or larger in magnitude
            becomes the limit with the flipped value's sign (NaN: positive). None leaves flipped values alone.

    Yields:
        A :class:`Strike`, filled by the forward pass.

    Raises:
        InjectionError: The layer did not run exactly once, or anything else than one bit of each row changed.
        FaultError: An unknown layer, or a neuron or bit that does not exist.

    Source: range detector after Mahmoud et al., *GoldenEye*, DSN 2022.
    """
    module = _module(model, layer)
    if neurons.shape != bits.shape or neurons.ndim != 1:
        raise FaultError(
            f"Expected one neuron and one bit a row, found {tuple(neurons.shape)} and {tuple(bits.shape)}."
        )
    strike = Strike()
    fired = 0

    def hook(_module: nn.Module, _inputs: object, output: object) -> Tensor:
        nonlocal fired
        fired += 1
        golden = _tensor_output(layer, output)
        if golden.ndim < 2 or golden.shape[0] != len(neurons):
            raise InjectionError(
                f"{layer!r} gave an output of shape {tuple(golden.shape)} for {len(neurons)} faults; expected one "
                "row for each."
            )
        faulty = golden.clone(memory_format=torch.preserve_format)
        rows = torch.arange(len(neurons), device=golden.device)
        index = (rows, *_unravel(neurons.to(golden.device), golden.shape[1:], layer))
        strike.before = golden[index]
        faulty[index] = flip_bits(strike.before, bits.to(golden.device))
        strike.after = faulty[index]
        _verify(golden, faulty, index, bits.to(golden.device), layer)
        if limit is not None:
            faulty[index] = clamp_to_range(strike.after, limit)
        return faulty

    handle = module.register_forward_hook(hook)
    try:
        yield strike
    finally:
        handle.remove()
    if fired != 1:
        raise InjectionError(_never(layer) if not fired else f"{layer!r} ran {fired} times; expected one run.")


def clamp_to_range(values: Tensor, limit: float) -> Tensor:
    """Replace NaN, infinite and out-of-range values by the limit with their sign (NaN: positive).

    Args:
        values: Any floating tensor.
        limit: Largest magnitude, at least 0; one beyond the format's range stands for its largest value.

    Raises:
        FaultError: A limit that is negative or NaN.
    """
    if not limit >= 0:
        raise FaultError(f"The range of a layer must be at least 0, found {limit}.")
    limit = min(limit, torch.finfo(values.dtype).max)
    clamped = values.clamp(-limit, limit)
    return torch.where(values.isnan(), torch.full_like(values, limit), clamped)


@contextmanager
def _inject_outputs(model: nn.Module, faults: Sequence[BitFlip]) -> Iterator[None]:
    """Apply activation faults at every forward pass inside the block."""
    _refuse_repeats(faults)
    by_module: dict[nn.Module, list[BitFlip]] = {}  # one module may be known by several names
    for fault in faults:
        by_module.setdefault(_module(model, fault.layer), []).append(fault)
    unfired = set(by_module)
    handles = []

    def strike(module: nn.Module, _inputs: object, output: object) -> Tensor:
        own = by_module[module]
        golden = _tensor_output(own[0].layer, output)
        faulty = golden.clone(memory_format=torch.preserve_format)
        expected = torch.zeros_like(words(golden))
        for fault in own:
            index = _output_index(fault, golden)
            faulty[index] = flip_bits(faulty[index].clone(), fault.bit)
            expected[index] = torch.bitwise_xor(expected[index], _mask(fault, golden))
        changed = torch.bitwise_xor(words(faulty), words(golden))
        for fault in own:
            index = _output_index(fault, golden)
            _require_change(changed[index], expected[index], _mask(fault, golden), fault)
        if torch.count_nonzero(changed) != torch.count_nonzero(expected):
            raise InjectionError(f"An injection into {own[0].layer!r} changed values that no fault strikes.")
        if len(golden):
            unfired.discard(module)
        return faulty

    try:
        for module in by_module:
            handles.append(module.register_forward_hook(strike))
        yield
    finally:
        for handle in handles:
            handle.remove()
    if unfired:
        raise InjectionError(_never(min(by_module[module][0].layer for module in unfired)))


def _mask(fault: Fault, tensor: Tensor) -> Tensor:
    """Return the word with a fault's bit set, where the tensor lives."""
    return bit_masks(torch.tensor(fault.bit), tensor.dtype).to(tensor.device)


def _require_change(changed: Tensor, expected: Tensor, mask: Tensor, fault: Fault) -> None:
    """Check that the faults of a word changed their bits and no others, and that none of them undid this one."""
    struck = torch.bitwise_and(expected, mask).eq(mask)
    if not bool((changed.eq(expected) & struck).all()):
        raise InjectionError(
            f"{fault} did not change its bit and no other: another fault undoes it, or the flip did not take effect; "
            "nothing would have been measured."
        )


def _verify(golden: Tensor, faulty: Tensor, index: tuple[Tensor, ...], bits: Tensor, layer: str) -> None:
    """Check that exactly one bit of one element of every row changed, in what the next layer will read."""
    difference = torch.bitwise_xor(words(faulty), words(golden))
    exact = difference[index] == bit_masks(bits, golden.dtype)
    changed = int(torch.count_nonzero(difference))
    if not bool(exact.all()) or changed != len(bits):
        raise InjectionError(
            f"An injection into {layer!r} changed {changed} elements where {len(bits)} single-bit flips were due; "
            "the trial would have measured something else."
        )


def _module(model: nn.Module, layer: str) -> nn.Module:
    """Return a submodule by name, or list the names that exist."""
    modules: dict[str, nn.Module] = dict(model.named_modules(remove_duplicate=False))
    if not layer or layer not in modules:
        names = [name for name, module in modules.items() if name and not list(module.children())]
        shown = ", ".join(names[:40]) + (f" and {len(names) - 40} more" if len(names) > 40 else "")
        raise FaultError(f"{type(model).__name__} has no layer named {layer!r}; its layers are: {shown}.")
    return modules[layer]


def _parameter(model: nn.Module, fault: WeightBitFlip) -> Tensor:
    """Return the parameter that a fault strikes, or say what does not exist."""
    module = _module(model, fault.layer)
    own = dict(module.named_parameters(recurse=False))
    if fault.parameter not in own:
        raise FaultError(f"{fault.layer!r} has no parameter {fault.parameter!r}; it has: {', '.join(own) or 'none'}.")
    tensor = own[fault.parameter]
    format_of(tensor.dtype).check(fault.bit)
    _check_index(fault.index, tensor.shape, f"the {fault.parameter} of {fault.layer!r}")
    return tensor


def _output_index(fault: BitFlip, output: Tensor) -> tuple[int | slice, ...]:
    """Return the index of the struck values in a batch's output."""
    format_of(output.dtype).check(fault.bit)
    if not output.ndim:
        raise FaultError(f"The output of {fault.layer!r} is a single number without a batch dimension.")
    _check_index(fault.neuron, output.shape[1:], f"the output of {fault.layer!r}")
    if fault.sample is None:
        return (slice(None), *fault.neuron)
    if not 0 <= fault.sample < output.shape[0]:
        raise FaultError(f"Sample {fault.sample} does not exist in a batch of {output.shape[0]}.")
    return (fault.sample, *fault.neuron)


def _check_index(index: tuple[int, ...], shape: torch.Size, what: str) -> None:
    """Raise FaultError unless ``index`` names one element of ``shape``."""
    fits = len(index) == len(shape) and all(0 <= i < size for i, size in zip(index, shape, strict=True))
    if not fits:
        raise FaultError(f"{what} has no element {tuple(index)}; its shape is {tuple(shape)}.")


def _unravel(flat: Tensor, shape: torch.Size, layer: str) -> tuple[Tensor, ...]:
    """Turn flat indices into one index a dimension."""
    if len(flat) and not (int(flat.min()) >= 0 and int(flat.max()) < shape.numel()):
        wrong = int(flat.min()) if int(flat.min()) < 0 else int(flat.max())
        raise FaultError(f"{layer!r} has {shape.numel()} neurons; found the index {wrong}.")
    return torch.unravel_index(flat, shape)


def _tensor_output(layer: str, output: object) -> Tensor:
    """Return a hook's output if it is one floating tensor."""
    if not isinstance(output, Tensor):
        raise FaultError(f"The output of {layer!r} is a {type(output).__name__}; faults strike tensors.")
    format_of(output.dtype)
    return output


def _refuse_repeats(faults: Sequence[Fault]) -> None:
    """Refuse the same flip twice: the two would cancel. A flip in every row repeats the one in a single row."""
    rows: dict[Fault, set[int | None]] = {}
    for fault in faults:
        everywhere = replace(fault, sample=None) if isinstance(fault, BitFlip) else fault
        row = fault.sample if isinstance(fault, BitFlip) else None
        earlier = rows.setdefault(everywhere, set())
        if row in earlier or None in earlier or (row is None and earlier):
            raise FaultError(f"Two faults flip the same bit, which changes nothing; give it once: {fault}.")
        earlier.add(row)


def _never(layer: str) -> str:
    """Say that a layer's hook did not run."""
    return (
        f"No fault struck {layer!r}: the layer did not run inside the block (not called, used functionally, or "
        "compiled before the hook was set)."
    )
