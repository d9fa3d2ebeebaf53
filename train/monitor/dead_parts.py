"""Dead parts: what a run had and did not use, told at its end.

Three public parameter-golf records had one and nobody saw it: a bigram table whose two factors both began at zero, so
that neither ever had a gradient; quantization-aware training that came a step before the end; and the half minute of
compiling, inside the clock, that ended the run. So three things are looked for:

* parameters that did not move since this start, or moved by weight decay alone: no step that was looked at had a
  gradient for them;
* parts of the model whose output is zero, or is their input, at the end of the run;
* graphs that were compiled inside the clock: in a step, but not in the first one of a start, which is not timed (see
  train.kernel_warmup).

Hot steps cost nothing. Weights are compared by two sums of their bits a parameter, taken at the start and the end;
gradients are looked at where a line is logged, and no more once each was seen; the outputs of parts come from one
forward pass of at most 256 tokens at the end.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from train.model.transformer import Model

CHUNK = 2**22  # values summed at once: their bits as int64 are 32 MB
TOKENS = 256  # of the forward pass whose outputs are looked at


class DeadParts(NamedTuple):
    """What was found. parameters: name -> why. outputs: parts of the model. compiled: steps that compiled a graph."""

    parameters: dict[str, str]
    outputs: list[str]
    compiled: list[int]

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON values of summary.json."""
        return self._asdict()


class DeadPartWatch:
    """The watch over one start of a run; `parameters` have the values that its first step begins with."""

    def __init__(self, parameters: Mapping[str, Tensor], first_is_timed: bool) -> None:
        self.parameters = parameters
        self.first_sums = sums_of_bits(parameters)
        self.had_gradient = torch.zeros(len(parameters), dtype=torch.bool, device=self.first_sums.device)
        self.all_had_gradient = False
        self.looks = 0  # at gradients
        self.steps = 0  # of this start
        self.first_is_timed = first_is_timed
        self.graphs = 0  # compiled ahead of the step that is being made
        self.compiled: list[int] = []

    def begin_step(self) -> None:
        """Note what is compiled already."""
        self.graphs = graphs_compiled()

    def end_step(self, step: int) -> str | None:
        """Note whether the step that is now the `step`-th of the run compiled anything; return the warning if it did.

        What the first step of a start compiles is noted only if it is timed.
        """
        self.steps += 1
        if graphs_compiled() == self.graphs or (self.steps == 1 and not self.first_is_timed):
            return None
        self.compiled.append(step)
        return f"a graph was compiled inside this step, which takes long: {reason_to_compile()}"

    @torch.no_grad()
    def look_at_gradients(self) -> None:
        """Note which parameters have a gradient. The host waits for the device here, until all have had one."""
        if self.all_had_gradient:
            return
        grads = [parameter.grad for parameter in self.parameters.values()]
        self.had_gradient |= torch.stack([self.had_gradient.new_zeros(()) if g is None else g.any() for g in grads])
        self.all_had_gradient = bool(self.had_gradient.all())
        self.looks += 1

    def find(self, model: Model, ids: Tensor) -> DeadParts | None:
        """Return what was dead, by the weights of now and a forward pass of ids (1, T); None if no step was made."""
        if not self.steps:
            return None
        moved = (sums_of_bits(self.parameters) != self.first_sums).any(1).tolist()
        why: dict[str, str] = {}
        for name, has_moved, had_gradient in zip(self.parameters, moved, self.had_gradient.tolist(), strict=True):
            size = f"{self.parameters[name].numel():,} values"
            if not has_moved:
                why[name] = f"{size} that never moved"
            elif not had_gradient and self.looks:
                why[name] = f"{size} without a gradient in {self.looks} step(s) looked at"
        return DeadParts(why, parts_without_effect(model, ids[:, :TOKENS]), self.compiled)


@torch.no_grad()
def sums_of_bits(parameters: Mapping[str, Tensor]) -> Tensor:
    """Return two sums of the bits of each parameter, (n, 2) int64, one of them weighted by place: cheap to keep.

    One value that changes always changes the first sum, and several do but for a coincidence.
    """
    rows = []
    for parameter in parameters.values():
        total = torch.zeros(2, dtype=torch.int64, device=parameter.device)
        for start, values in enumerate(parameter.detach().flatten().split(CHUNK)):
            bits = values.float().view(torch.int32).to(torch.int64)
            places = torch.arange(start * CHUNK + 1, start * CHUNK + 1 + len(bits), device=bits.device)
            total += torch.stack([bits.sum(), (bits * places).sum()])
        rows.append(total)
    return torch.stack(rows)


@torch.no_grad()
def parts_without_effect(model: Model, ids: Tensor) -> list[str]:
    """Return the names of the modules whose output for ids (B, T) is zero, or their input; not what is inside those."""
    found: list[str] = []

    def look(name: str) -> Any:
        def hook(_: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            if not isinstance(output, Tensor):
                return
            first = inputs[0] if inputs and isinstance(inputs[0], Tensor) else None
            is_input = first is not None and first.dtype == output.dtype and torch.equal(first, output)
            if is_input or not output.any():
                found.append(name)

        return hook

    hooks = [module.register_forward_hook(look(name)) for name, module in model.named_modules() if name]
    was_training = model.training
    model.eval()
    try:
        model.trunk(ids)
    finally:
        model.train(was_training)
        for hook in hooks:
            hook.remove()
    return sorted(name for name in {*found} if not any(name.startswith(f"{outer}.") for outer in found))


def reason_to_compile() -> str:
    """Return why torch.compile made its last graph, as it says itself: which guard of an earlier one failed."""
    utils = sys.modules.get("torch._dynamo.utils")
    metrics = utils.get_compilation_metrics() if utils is not None else []
    return str((metrics[-1].recompile_reason if metrics else None) or "there was none for this code").strip()


def graphs_compiled() -> int:
    """Return how many graphs torch.compile has made in this process; 0 where nothing was compiled."""
    utils = sys.modules.get("torch._dynamo.utils")  # importing it takes a second
    return int(utils.counters["stats"]["unique_graphs"]) if utils is not None else 0
