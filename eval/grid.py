"""Makes the models of a sweep: pruned at each theta, quantized with each k and format.

Each is made by the command that anyone would use, in a process of its own; nothing of ``pruning``
and ``quantization`` is imported here. Beside each model stands ``<name>.json``, the command and the
SHA-256 of what it started from: a model is made again only if one of them is another.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from eval.points import Point
from speech.base.recorded import run_once


@dataclass(frozen=True)
class Grid:
    """The models to make: every combination of theta, k and format.

    Attributes:
        thetas: None for not pruned.
        ks: None for not quantized.
        centroids: Formats of the centroids.
        finetune_epochs: None for no fine-tuning.
    """

    thetas: Sequence[float | None]
    ks: Sequence[int | None]
    centroids: Sequence[str]
    finetune_epochs: int | None = None

    def make(self, model: Path, folder: Path) -> list[Point]:
        """Makes what is not there, and returns the models without the one they start from.

        Args:
            model: The file to prune and quantize.
            folder: Where they go.

        Raises:
            ValueError: A command failed; the message is its own.
        """
        points = []
        for theta in self.thetas:
            pruned, labels, name = model, {}, "original"
            if theta is not None:
                labels, name = {"theta": theta}, f"theta{theta:g}"
                pruned = folder / f"{name}.h5"
                make(pruned, model, ["pruning.run", str(model), "--theta", f"{theta:g}", "-o",
                                     str(pruned)])  # fmt: skip
            for k in self.ks:
                if k is None:
                    if theta is not None:
                        points.append(Point(name, pruned, labels))
                    continue
                for how in self.centroids:
                    own = f"{name}-k{k}-{how}" if theta is not None else f"k{k}-{how}"
                    points.append(
                        Point(
                            own,
                            self._quantized(pruned, folder / own, k, how),
                            {**labels, "k": k, "centroids": how},
                        )
                    )
        return points

    def _quantized(self, source: Path, out: Path, k: int, centroids: str) -> Path:
        command = ["quantization.run", str(source), "-k", str(k), "--centroids", centroids, "-o",
                   str(out)]  # fmt: skip
        if self.finetune_epochs is not None:
            command += ["--finetune-epochs", str(self.finetune_epochs), "--work", str(out / "work")]
        packed = out / "model.icse"
        make(packed, source, command)
        return packed


def make(target: Path, source: Path, command: Sequence[str]) -> None:
    """Runs a command of this repository, unless its result is there.

    Args:
        target: The model it writes.
        source: The model it starts from.
        command: Module and arguments.

    Raises:
        ValueError: It failed; the message is the last line that it wrote to stderr.
    """
    run_once(
        command, target.with_suffix(".json"), [target], sources=[source],
        announce=lambda: print(f"making      {target}", flush=True),
    )  # fmt: skip
