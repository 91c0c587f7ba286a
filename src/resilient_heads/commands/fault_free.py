"""What ``campaign`` shows before its first trial: classes, their order, and the fault-free accuracy."""

import sys
from collections import Counter
from typing import TYPE_CHECKING

from resilient_heads.checks import printable
from resilient_heads.errors import DataError

if TYPE_CHECKING:
    from resilient_heads.campaign.golden.golden_run import GoldenRun
    from resilient_heads.inputs.images import ImageSet
    from resilient_heads.inputs.named_model import NamedModel


def check_classes(named: "NamedModel", data: "ImageSet", *, batch_size: int) -> None:
    """Raise DataError if the order of the folders is only assumed, and they are not all classes of the model.

    The model runs on the first batch, since only its output says how many classes it has.
    """
    if data.order is None or not data.order.assumed:
        return
    # torch takes seconds: --help must not wait for it
    from resilient_heads.campaign.golden.golden_run import logits_of
    from resilient_heads.evaluation import device_of, evaluating

    with evaluating(named.model):
        classes = logits_of(named.model, data.images[:batch_size].to(device_of(named.model))).shape[1]
    if len(data.order.index) < classes:
        raise DataError(
            f"The folder has {len(data.order.index)} classes and the model {classes}, so it is unclear which they are; "
            'pass --class-index FILE with JSON such as {"cat": 281, "dog": 207}, or --sort name if they are the '
            "model's first classes, sorted by name."
        )


def warn_of_other_labels(named: "NamedModel", data: "ImageSet") -> None:
    """Warn on standard error if the user's order of the folders contradicts the model's labels."""
    from resilient_heads.inputs.class_order import conflict_with  # --help must not wait for the modules beside it

    conflict = None if named.labels is None or data.order is None else conflict_with(named.labels, data.order)
    if conflict is not None:
        print(f"resilient-heads: warning: {conflict}", file=sys.stderr)


def classes_line(named: "NamedModel", data: "ImageSet") -> str:
    """Return how many classes and images there are, the first and the last class, and where their order came from."""
    counts = Counter(data.labels.tolist())
    if data.order is None:
        names, origin = {str(label): label for label in sorted(counts)}, "the labels in the file"
    else:
        names, origin = data.order.index, data.order.origin
    sizes = [counts[label] for label in names.values()]
    ends = dict.fromkeys([next(iter(names)), next(reversed(names))])
    shown = " to ".join(_class(name, names[name], named) for name in ends)
    word = "class" if len(names) == 1 else "classes"
    lines = [
        f"{len(names):,} {word} with {_range(sizes)} of {len(data.labels):,} images each: {shown}; order from {origin}"
    ]
    if data.folders is not None and data.folders.left_out:
        endings = ", ".join(printable(ending) for ending in sorted(data.folders.left_out)[:5])
        lines.append(f"Left out: {sum(data.folders.left_out.values()):,} files that are no pictures ({endings})")
    if data.folders is not None and data.folders.repeated:
        lines.append(f"Left out: {data.folders.repeated:,} links to pictures or folders that count already")
    return "\n".join(lines)


def show_accuracy(golden: "GoldenRun") -> None:
    """Print the fault-free accuracy; warn on standard error if it is not clearly above chance."""
    from resilient_heads.statistics.intervals import wilson  # loads numpy: --help must not wait for it

    estimate = wilson(float(golden.correct.mean()), len(golden.labels))
    accuracy = f"fault-free accuracy {estimate.value:.2%} [{estimate.low:.2%}, {estimate.high:.2%}]"
    print(accuracy, flush=True)
    chance = chance_agreement(golden)
    if chance < 1 and estimate.low <= chance:
        print(
            f"resilient-heads: warning: the {accuracy} on {len(golden.labels):,} images is not clearly above chance "
            f"({chance:.2%}: the same predictions for shuffled images). "
            "Check the weights, the order of the classes, and the preprocessing.",
            file=sys.stderr,
        )


def chance_agreement(golden: "GoldenRun") -> float:
    """Return the accuracy that the predictions would have on average if the images were shuffled."""
    labels, predicted = Counter(golden.labels.tolist()), Counter(golden.predicted.tolist())
    return sum(count * predicted[label] for label, count in labels.items()) / len(golden.labels) ** 2


def _range(sizes: list[int]) -> str:
    """Return the smallest and the largest number of images of a class."""
    low, high = min(sizes), max(sizes)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _class(name: str, index: int, named: "NamedModel") -> str:
    """Return a class with its number, and the model's label where it says more."""
    labels = named.labels
    label = labels[index][0] if labels is not None and index < len(labels) else name
    more = "" if label.casefold() == name.casefold() else f" ({printable(label)})"
    return f"{index}{more}" if name == str(index) else f"{index} {printable(name)}{more}"
