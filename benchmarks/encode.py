"""Measure the encoding of class descriptions: this library's text tower against the plain open_clip loop.

``python benchmarks/encode.py --classes 1000`` writes a randomly initialised model of full size (ViT-B-32 by default;
the values of the weights change neither time nor memory) to a temporary folder. Two fresh processes embed the same
sentences with it. The script prints the ratios of time and of peak memory above the imports. The simple loop loads the
whole model and encodes one class at a time.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def write_model(architecture: str, folder: Path) -> None:
    """Write a randomly initialised model for open_clip's ``local-dir:``."""
    import open_clip
    from safetensors.torch import save_file

    model = open_clip.create_model(architecture)
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    config = {"model_cfg": open_clip.get_model_config(architecture), "preprocess_cfg": {}}
    (folder / "open_clip_config.json").write_text(json.dumps(config))


def sentences(classes: int) -> list[list[str]]:
    """Return five sentences for each class: three bundled ones of ImageNet, and two templates."""
    import resilient_heads as rh

    bundled = rh.load_descriptions("imagenet1k")
    return [
        [*texts, f"a photo of a {name}", f"a blurry photo of one {name} outdoors"]
        for name, texts in zip(bundled.class_names[:classes], bundled.sentences[:classes], strict=True)
    ]


def plain(folder: Path, texts: list[list[str]]) -> object:
    """Embed with open_clip alone."""
    import open_clip
    import torch

    model = open_clip.create_model(f"local-dir:{folder}", require_pretrained=True).eval()
    tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
    with torch.inference_mode():
        return torch.stack([model.encode_text(tokenizer(group), normalize=True).mean(dim=0) for group in texts])


def ours(folder: Path, texts: list[list[str]]) -> object:
    """Embed with this library."""
    import resilient_heads as rh

    names = [f"class {number}" for number in range(len(texts))]
    encoder = rh.text.OpenClipEncoder(f"local-dir:{folder}")
    return rh.embed_classes(rh.ClassDescriptions.match(names, texts), encoder).vectors


def measure(variant: str, folder: Path, classes: int) -> None:
    """Run one variant in this process and print its figures as JSON."""
    import open_clip  # noqa: F401
    import torch

    import resilient_heads.text.encoders.openclip
    import resilient_heads.text.encoders.pooling  # noqa: F401

    texts = sentences(classes)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.perf_counter()
    vectors = {"plain": plain, "ours": ours}[variant](folder, texts)
    seconds = time.perf_counter() - began
    assert isinstance(vectors, torch.Tensor)
    torch.save(vectors, folder / f"{variant}.pt")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    print(json.dumps({"seconds": seconds, "peak_mib_above_imports": peak / 1024}))


def main() -> None:
    """Measure both variants and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--architecture", default="ViT-B-32")
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--step", choices=["write", "plain", "ours"], help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.step == "write":
        write_model(arguments.architecture, arguments.folder)
        return
    if arguments.step:
        measure(arguments.step, arguments.folder, arguments.classes)
        return
    with tempfile.TemporaryDirectory() as folder:
        # Each step runs in a fresh process, so that it shares no memory with the others.
        command = [sys.executable, __file__, "--folder", folder, "--classes", str(arguments.classes)]
        subprocess.run([*command, "--architecture", arguments.architecture, "--step", "write"], check=True)
        figures = {}
        for variant in ("plain", "ours"):
            done = subprocess.run([*command, "--step", variant], check=True, capture_output=True, text=True)
            figures[variant] = json.loads(done.stdout.splitlines()[-1])
            print(variant, figures[variant])
        import torch

        vectors = {variant: torch.load(Path(folder) / f"{variant}.pt") for variant in figures}
        worst = (vectors["plain"] - vectors["ours"]).abs().max().item()
    print(f"largest difference of two embeddings' entries: {worst:.1e}")
    for key in ("seconds", "peak_mib_above_imports"):
        print(f"{key}: plain / ours = {figures['plain'][key] / figures['ours'][key]:.2f}")


if __name__ == "__main__":
    main()
