"""The comparison engine against the packages on PyPI and against the floor: time, memory, error, and what goes wrong.

    pip install -e ".[bench]"
    python benchmarks/cka.py             # all of it, on a machine that does nothing else
    python benchmarks/cka.py --quick     # one tiny case and the traps, in about two minutes

Prints markdown tables. Each (package, case, allocator) runs in a process of its own. Time is the median over
repetitions of the ratio to the floor, measured alternately in one process: the forward passes plus one plain product
`x @ x.T` a layer and batch (repsim's own product is faster than that, so it can get below). "As installed" leaves
glibc's allocator as it is for packages that do not set it; "same allocator" sets it for everybody. Memory, as installed,
is the peak of the resident set above what the models take. The error is the largest of any cell against float64 HSIC of
the same activations. The images are smooth noise, the networks untrained: near-equal features, the hardest case.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import io
import json
import os
import platform
import statistics
import subprocess
import sys
import time
import warnings
from datetime import date
from itertools import combinations
from pathlib import Path

import pandas as pd
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from repsim.cka import compare
from repsim.models import build, layer_paths
from repsim.taps import tune_allocator

PACKAGES = {
    "repsim": "repsim-study",
    "cka-pytorch": "cka-pytorch",
    "pytorch-cka": "pytorch-cka",
    "torch_cka": "torch-cka",
    "ckatorch": "ckatorch",
}
CASES = {  # architecture, width, networks, images, batch
    "ResNet-18 w64, 11 layers, one pair": ("resnet18", 64, 2, 1024, 128),
    "ResNet-50 w16, 33 layers, one pair": ("resnet50", 16, 2, 1024, 128),
    "6 x ResNet-50 w16, 33 layers, all pairs": ("resnet50", 16, 6, 1024, 128),
}
QUICK = {"ResNet-18 w4, 11 layers, one pair": ("resnet18", 4, 2, 64, 16)}


# ---- the packages, each as (network, network, loader, module paths) -> CKA with its own labels on both axes ----------------


def repsim_(a: nn.Module, b: nn.Module, loader: DataLoader, layers: list[str]) -> pd.DataFrame:
    return compare({"a": a, "b": b}, loader, layers=layers, labels=False).matrix("a", "b")


def torch_cka(a: nn.Module, b: nn.Module, loader: DataLoader, layers: list[str]) -> pd.DataFrame:
    from torch_cka import CKA

    engine = CKA(a, b, "a", "b", model1_layers=layers, model2_layers=layers)
    engine.compare(loader)
    result = engine.export()
    return pd.DataFrame(result["CKA"].detach().numpy(), result["model1_layers"], result["model2_layers"])


def pytorch_cka(a: nn.Module, b: nn.Module, loader: DataLoader, layers: list[str]) -> pd.DataFrame:
    here = str(Path(__file__).resolve().parent)  # where this file, too, is called cka
    sys.path[:] = [folder for folder in sys.path if str(Path(folder).resolve()) != here]
    from cka import compute_cka

    return pd.DataFrame(
        compute_cka(a, b, loader, layers=layers, device="cpu", progress=False)[0].numpy(), layers, layers
    )


def cka_pytorch(a: nn.Module, b: nn.Module, loader: DataLoader, layers: list[str]) -> pd.DataFrame:
    from cka_pytorch import CKACalculator

    engine = CKACalculator(a, b, layers, layers, verbose=False)
    values = engine.calculate_cka_matrix(loader, num_epochs=1)
    names = engine.hook_manager1.module_names, engine.hook_manager2.module_names
    engine.reset()
    return pd.DataFrame(values.numpy(), *names)


def ckatorch(a: nn.Module, b: nn.Module, loader: DataLoader, layers: list[str]) -> pd.DataFrame:
    from ckatorch import CKA

    class Flat(CKA):  # it expects (batch, n, p): a batch of images is one such n, its features flattened
        def _hook(self, model, name, module, inputs, out):
            super()._hook(model, name, module, inputs, out.flatten(1)[None])

    images = DataLoader(TensorDataset(loader.dataset.tensors[0]), batch_size=loader.batch_size, sampler=loader.sampler)
    engine = Flat(a, b, layers, first_name="a", second_name="b")
    values = engine(images, epochs=1)
    return pd.DataFrame(values.numpy(), engine.first_model_info.layers, engine.second_model_info.layers)


ADAPTERS = {
    "repsim": repsim_,
    "cka-pytorch": cka_pytorch,
    "pytorch-cka": pytorch_cka,
    "torch_cka": torch_cka,
    "ckatorch": ckatorch,
}


# ---- the floor and the reference -----------------------------------------------------------------------------------------


@torch.no_grad()
def passes(networks: list[nn.Module], loader: DataLoader, layers: list[str], reduce=None) -> None:
    """Forward passes, with `reduce(network index, layer, output)` in the hooks where given."""
    handles = []
    for index, network in enumerate(networks):
        network.eval()
        for layer in layers if reduce else ():
            hook = lambda _, x, out, i=index, l=layer: reduce(i, l, out)  # noqa: E731
            handles.append(network.get_submodule(layer).register_forward_hook(hook))
    for x, _ in loader:
        for network in networks:
            network(x)
    for handle in handles:
        handle.remove()


def floor(networks: list[nn.Module], loader: DataLoader, layers: list[str]) -> None:
    def gram(index: int, layer: str, out: torch.Tensor) -> None:
        x = out.permute(0, 2, 3, 1).flatten(1) if out.ndim == 4 and not out.is_contiguous() else out.flatten(1)
        torch.mm(x, x.T)

    passes(networks, loader, layers, gram)


def reference(a: nn.Module, b: nn.Module, loader: DataLoader, layers: list[str]) -> pd.DataFrame:
    """Minibatch CKA by Song's formula in float64 of the same float32 activations, copied before anything in place."""
    grams: list[dict[str, list[torch.Tensor]]] = [{layer: [] for layer in layers} for _ in range(2)]

    def keep(index: int, layer: str, out: torch.Tensor) -> None:
        x = out.flatten(1).double()
        x = x - x.mean(0)
        grams[index][layer].append((x @ x.T).fill_diagonal_(0))

    passes([a, b], loader, layers, keep)

    def hsic(ks: list[torch.Tensor], ls: list[torch.Tensor]) -> float:
        total = 0.0
        for k, l in zip(ks, ls):
            n = len(k)
            middle = k.sum() * l.sum() / ((n - 1) * (n - 2)) - 2 / (n - 2) * (k.sum(0) @ l.sum(0))
            total += n * float(((k * l).sum() + middle) / (n * (n - 3)))
        return total

    own = [{layer: hsic(k, k) ** 0.5 for layer, k in side.items()} for side in grams]
    values = [
        [hsic(grams[0][i], grams[1][j]) / (own[0][i] * own[1][j] or float("nan")) for j in layers] for i in layers
    ]
    return pd.DataFrame(values, layers, layers)


def images(count: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    smooth = nn.functional.interpolate(torch.randn(count, 3, 8, 8, generator=generator), size=32, mode="bilinear")
    return smooth + 0.3 * torch.randn(count, 3, 32, 32, generator=generator)


def loader_of(x: torch.Tensor, batch: int, **options) -> DataLoader:
    return DataLoader(TensorDataset(x, torch.zeros(len(x), dtype=torch.long)), batch_size=batch, **options)


def error(got: pd.DataFrame, expected: pd.DataFrame) -> float:
    got = got.reindex(index=expected.index, columns=expected.columns)
    return float((got - expected).abs().max(axis=None, skipna=False))


@contextlib.contextmanager
def silent():
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        yield


# ---- one measurement, in a process of its own ----------------------------------------------------------------------------


def resident(field: str) -> float:
    """VmRSS or VmHWM in MB (Linux)."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) / 1024


def prepare(size: tuple) -> tuple[list[nn.Module], DataLoader, list[str]]:
    architecture, width, count, n, batch = size
    networks = [build(architecture, width=width, seed=seed) for seed in range(count)]
    paths = layer_paths(networks[0])
    names = [l for l in paths if not l.startswith(("pool", "head"))]
    if architecture == "resnet18":
        names = [l for l in paths if not l.endswith(".residual")]
    return networks, loader_of(images(n), batch), [paths[l] for l in names]


def job(package: str, size: tuple, repeats: int) -> dict:
    """Time in seconds and as a ratio to the floor, and the largest error of any cell."""
    networks, loader, layers = prepare(size)

    def work() -> pd.DataFrame | None:
        if package == "repsim" and len(networks) > 2:
            named = {f"n{i}": network for i, network in enumerate(networks)}
            y = torch.arange(len(loader.dataset)) % 10
            return compare(named, loader, labels=y, pixels=True, layers=layers).matrix("n0", "n1")
        results = [ADAPTERS[package](a, b, loader, layers) for a, b in combinations(networks, 2)]
        return results[0]

    with silent():
        got = work()
        floor(networks, loader, layers)
        own, base = [], []
        for _ in range(repeats):
            for function, times in ((work, own), (lambda: floor(networks, loader, layers), base)):
                start = time.perf_counter()
                function()
                times.append(time.perf_counter() - start)
        for network in networks:  # some packages leave their hooks behind
            for module in network.modules():
                module._forward_hooks.clear()
        expected = reference(networks[0], networks[1], loader, layers)
    ratios = [a / b for a, b in zip(own, base)]
    return {
        "seconds": statistics.median(own),
        "floor": statistics.median(base),
        "ratio": statistics.median(ratios),
        "low": min(ratios),
        "high": max(ratios),
        "error": error(got, expected),
    }


def memory(package: str, size: tuple) -> dict:
    """Peak of the resident set above that with the models loaded and the kernels warm, in MB."""
    networks, loader, layers = prepare(size)
    pairs = list(combinations(networks, 2))
    with silent(), torch.no_grad():
        warm = loader_of(loader.dataset.tensors[0][:8], 4)
        if package in ADAPTERS:  # its imports too
            ADAPTERS[package](*pairs[0], warm, layers[:2])
        passes(networks, warm, layers)
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # restart the peak
    with silent():
        if package == "forward":
            passes(networks, loader, layers)
        elif package == "floor":
            floor(networks, loader, layers)
        elif package == "repsim":
            compare({f"n{i}": network for i, network in enumerate(networks)}, loader, layers=layers, labels=False)
        else:
            for a, b in pairs:
                ADAPTERS[package](a, b, loader, layers)
    return {"memory": resident("VmHWM") - before}


# ---- traps ---------------------------------------------------------------------------------------------------------------


class Chain(nn.Module):
    """Layers one after the other; `functions` of the first layer's output are layers of their own, `called` twice one."""

    def __init__(self, **functions):
        super().__init__()
        self.first = nn.Sequential(nn.Flatten(), nn.Linear(192, 40))
        self.drop = nn.Dropout(0.5)
        self.extra = nn.ModuleDict()
        for name, function in functions.items():
            self.extra[name] = nn.Identity()
            self.extra[name].forward = function

    def forward(self, x):
        y = self.first(x)
        for layer in self.extra.values():
            layer(y)
        return self.drop(y)


class Nested(Chain):
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(192, 40)

        def forward(self, x):
            return self.inner(x.flatten(1)).relu()

    def __init__(self):
        super().__init__()
        self.block = self.Block()

    def forward(self, x):
        return self.block(x) + super().forward(x)


class Twice(Chain):
    def __init__(self):
        super().__init__()
        self.again = nn.Linear(40, 40)

    def forward(self, x):
        return self.again(self.again(super().forward(x)).relu())


def seeded(kind, *arguments, seed: int = 0, **options) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return kind(*arguments, **options).eval()


def trap(name: str, package: str) -> str:
    """ "yes" if the package gets it right, otherwise what it does instead."""
    function = ADAPTERS[package]
    x = torch.randn(96, 3, 8, 8, generator=torch.Generator().manual_seed(0))

    def right(a: nn.Module, b: nn.Module, layers: list[str], data: DataLoader | None = None) -> str:
        data = data or loader_of(x, 32)
        expected = reference(a, b, data, layers)
        wrong = error(function(a, b, data, layers), expected)
        return "yes" if wrong < 1e-4 else "no result" if wrong != wrong else f"off by {wrong:.2g}"

    def chains(**functions) -> tuple[nn.Module, nn.Module, list[str]]:
        a, b = (seeded(Chain, seed=s, **functions) for s in (0, 1))
        return a, b, ["first.1", *(f"extra.{key}" for key in functions)]

    a, b = (seeded(Chain, seed=s) for s in (0, 1))
    if name in ("residual branch, contiguous", "residual branch, channels_last"):
        memory_format = torch.channels_last if name.endswith("last") else torch.contiguous_format
        nets = [build(width=8, seed=s).eval().to(memory_format=memory_format) for s in (0, 1)]
        return right(*nets, ["layer1.0.bn2", "layer1.1.bn2", "layer2.0.bn2"], loader_of(images(64), 32))
    if name == "constant layer undefined":
        a, b, layers = chains(dead=lambda y: torch.full_like(y, 0.1))
        value = function(a, b, loader_of(x, 32), layers).loc["extra.dead", "extra.dead"]
        return "yes" if value != value else f"returns {value:.2g}"
    if name == "mean offset of 1,000 deviations":
        return right(*chains(shifted=lambda y: y.tanh() + 1000 * y.tanh().std()))
    if name == "scale 1e-4":
        return right(*chains(small=lambda y: y.tanh() * 1e-4))
    if name == "last batch of 3":
        joined = torch.cat([x[:64], x[64:67]])
        got = function(a, b, loader_of(joined, 32), ["first.1"]).iloc[0, 0]
        return "yes" if 0 < got < 1 else f"returns {got:.2g}"
    if name == "identical networks give 1":
        got = function(a, seeded(Chain), loader_of(x, 32), ["first.1"]).iloc[0, 0]
        return "yes" if abs(got - 1) < 1e-5 else f"off by {abs(got - 1):.2g}"
    if name == "shuffled loader":
        shuffled = loader_of(x, 32, shuffle=True, generator=torch.Generator().manual_seed(0))
        got = function(a, seeded(Chain), shuffled, ["first.1"]).iloc[0, 0]
        return "yes" if abs(got - 1) < 1e-2 else f"returns {got:.2g}"
    if name == "parent and child layer together":
        return right(seeded(Nested), seeded(Nested, seed=1), ["block", "block.inner"])
    if name == "missing layer name refused":
        function(a, b, loader_of(x, 32), ["first.1", "nowhere"])
        return "ignored"
    if name == "module called twice":
        function(seeded(Twice), seeded(Twice, seed=1), loader_of(x, 32), ["first.1", "again"])
        return "merged"
    if name == "hooks removed":
        function(a, b, loader_of(x, 32), ["first.1"])
        left = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for net in (a, b) for m in net.modules())
        return f"{left} left" if left else "yes"
    if name == "mode of every submodule restored":
        a.train()
        a.first.eval()
        before = [m.training for m in a.modules()]
        function(a, b, loader_of(x, 32), ["first.1"])
        return "yes" if [m.training for m in a.modules()] == before else "no"
    raise ValueError(f"trap: unknown, got {name!r}")


TRAPS = (
    "residual branch, contiguous",
    "residual branch, channels_last",
    "constant layer undefined",
    "mean offset of 1,000 deviations",
    "scale 1e-4",
    "last batch of 3",
    "identical networks give 1",
    "shuffled loader",
    "parent and child layer together",
    "missing layer name refused",
    "module called twice",
    "hooks removed",
    "mode of every submodule restored",
)
REFUSALS = ("missing layer name refused", "module called twice", "last batch of 3", "constant layer undefined")


def traps(package: str) -> dict[str, str]:
    found = {}
    for name in TRAPS:
        try:
            with silent():
                found[name] = trap(name, package)
        except Exception as problem:
            found[name] = "yes" if name == REFUSALS[0] else "refused" if name in REFUSALS else type(problem).__name__
    return found


# ---- all of it -----------------------------------------------------------------------------------------------------------


def measure(kind: str, package: str, size: tuple = (), repeats: int = 1, tuned: bool = False) -> dict | None:
    """One measurement in a new process; None if it fails, with its error on stderr."""
    task = json.dumps({"kind": kind, "package": package, "size": size, "repeats": repeats, "tuned": tuned})
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_")}
    done = subprocess.run([sys.executable, __file__, "--task", task], capture_output=True, text=True, env=environment)
    if done.returncode:
        print(f"{package}, {kind}: {(done.stderr.strip().splitlines() or ['no message'])[-1]}", file=sys.stderr)
        return None
    return json.loads(done.stdout.splitlines()[-1])


def perform(task: dict) -> dict:
    if task["tuned"]:
        tune_allocator()
    if task["kind"] == "traps":
        return traps(task["package"])
    if task["kind"] == "memory":
        return memory(task["package"], task["size"])
    return job(task["package"], task["size"], task["repeats"])


def markdown(rows: list[dict]) -> str:
    names = list(rows[0])
    lines = [names, ["---"] * len(names), *([str(row[name]) for name in names] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--quick", action="store_true", help="one tiny case, one repetition, and the traps: does it run?"
    )
    parser.add_argument("--repeats", type=int, default=5, help="repetitions of the one-pair cases (default 5)")
    parser.add_argument("--images", type=int, default=1024, help="of each case (default 1024)")
    parser.add_argument(
        "--cases", nargs="*", type=int, choices=(1, 2, 3), default=[1, 2, 3], help="none: the traps alone"
    )
    parser.add_argument("--packages", nargs="+", choices=list(PACKAGES), default=list(PACKAGES))
    parser.add_argument("--task", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.task:
        print(json.dumps(perform(json.loads(options.task))))
        return
    versions = {}
    for package in options.packages:
        try:
            versions[package] = importlib.metadata.version(PACKAGES[package])
        except importlib.metadata.PackageNotFoundError:
            parser.error(f'{package} is not installed: pip install -e ".[bench]"')
    print(
        f"{date.today()}, torch {torch.__version__}, {platform.machine()}, {torch.get_num_threads()} threads; ", end=""
    )
    print(", ".join(f"{package} {version}" for package, version in versions.items()))
    cases = QUICK if options.quick else {name: CASES[name] for i, name in enumerate(CASES, 1) if i in options.cases}
    for name, size in cases.items():
        size = size if options.quick else (*size[:3], options.images, size[4])
        many = size[2] > 2
        repeats = 1 if options.quick else 3 if many else options.repeats
        rows = []
        base = measure("memory", "forward", size)["memory"]
        for package in options.packages:
            if many and package in ("torch_cka", "ckatorch"):
                continue  # 15 runs at their pace take hours and say nothing new
            slow = 1 if package in ("torch_cka", "ckatorch") or (many and package != "repsim") else repeats
            installed, same = (measure("job", package, size, slow, tuned) for tuned in (False, True))
            peak = measure("memory", package, size)
            if None in (installed, same, peak):
                rows.append({"package": package} | dict.fromkeys(list(rows[0])[1:] if rows else ["result"], "failed"))
                continue
            rows.append(
                {
                    "package": f"{package} {versions[package]}",
                    "time as installed": f"{installed['seconds']:.2f} s",
                    "x floor, as installed": f"{installed['ratio']:.2f} ({installed['low']:.2f}-{installed['high']:.2f})",
                    "time, same allocator": f"{same['seconds']:.2f} s",
                    "x floor, same allocator": f"{same['ratio']:.2f} ({same['low']:.2f}-{same['high']:.2f})",
                    "peak memory": f"{peak['memory']:.0f} MB ({peak['memory'] / base:.1f} x forwards)",
                    "largest error": f"{max(installed['error'], same['error']):.1e}",
                }
            )
        print(f"\n### {name}; {size[3]:,} images, batches of {size[4]}\n\n{markdown(rows)}", flush=True)
    found = {package: measure("traps", package) or dict.fromkeys(TRAPS, "failed") for package in options.packages}
    rows = [{"right?": name} | {package: found[package][name] for package in options.packages} for name in TRAPS]
    print(f"\n### Traps\n\n{markdown(rows)}")


if __name__ == "__main__":
    main()
