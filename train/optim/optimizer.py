"""The optimizer: Muon for the matrices inside the blocks, AdamW for the rest, over one flat buffer of each kind.

Layout: [matrices of shape 1 | of shape 2 | ... | AdamW's that decay | AdamW's that do not | train.groups with a rate or
a decay of their own], for weights and gradients alike; the model's parameters and their .grad are views. A group is so
a view: nothing is gathered by copying.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch import Tensor, nn

from train.config import AdamWConfig, GroupConfig, TrainConfig
from train.optim.adamw import AdamWGroup
from train.optim.muon import MuonGroup

NORM_PIECE = 2**22  # values


class Optimizer:
    """Both update rules over one model, the flat weights, and the flat gradient they read.

    Makes the model's parameters views of `weights`: build it when the model is on its device.
    """

    def __init__(self, model: nn.Module, cfg: TrainConfig, rank: int = 0, world: int = 1) -> None:
        self.cfg, self.world = cfg, world
        self.steps = 0  # updates made
        self.parameters = dict(model.named_parameters())
        by_shape, by_rule = _group_names(self.parameters, cfg)
        groups = [*by_shape, *(names for names, *_ in by_rule)]
        order = [name for names in groups for name in names]
        self.weights = torch.cat([self.parameters[name].detach().flatten() for name in order])
        # One buffer: one all-reduce, one norm, one clip, in an order that never changes. (DDP re-buckets after its
        # first step, so with 3 or more ranks a resumed run would sum in another order than an undisturbed one.)
        # Its last place is the loss's, which so comes to be known to all without a message of its own.
        self.grads_and_loss = self.weights.new_zeros(len(self.weights) + 1)
        self.grads, self.loss = self.grads_and_loss[:-1], self.grads_and_loss[-1]
        sizes = [self.parameters[name].numel() for name in order]
        for name, w, g in zip(order, self.weights.split(sizes), self.grads.split(sizes), strict=True):
            parameter = self.parameters[name]
            parameter.data, parameter.grad = w.view_as(parameter), g.view_as(parameter)

        group_sizes = [sum(self.parameters[name].numel() for name in names) for names in groups]
        views = zip(self.weights.split(group_sizes), self.grads.split(group_sizes), strict=True)
        self.muon_groups: list[MuonGroup] = []
        for names in by_shape:
            w, g = next(views)
            stacked = (len(names), *self.parameters[names[0]].shape)
            self.muon_groups.append(MuonGroup(names, w.view(stacked), g.view(stacked), cfg.muon, rank, world))
        self.adamw_groups: list[AdamWGroup] = []
        for names, rule, bfloat16 in by_rule:
            w, g = next(views)
            shapes = {name: self.parameters[name].shape for name in names}
            self.adamw_groups.append(AdamWGroup(shapes, w, g, rule, bfloat16))

        stacked_names = {name for names in by_shape for name in names}
        self.muon_names = [name for name in self.parameters if name in stacked_names]
        self.modules = list(dict.fromkeys(module_of(name) for name in self.parameters))
        self._prepare_norms()

    def _prepare_norms(self) -> None:
        """Prepare what `norms` reads: a norm for each of Muon's matrices, and for each run of a module in AdamW's."""
        owners = [module_of(name) for group in self.muon_groups for name in group.names]
        self._runs: list[Tensor] = []
        for group in self.adamw_groups:
            start = 0
            for module, names in itertools.groupby(group.names, module_of):
                size = sum(self.parameters[name].numel() for name in names)
                self._runs.append(group.grads[start : start + size])
                owners.append(module)
                start += size
        pieces = [[i for i, owner in enumerate(owners) if owner == module] for module in self.modules]
        longest, none = max(map(len, pieces)), len(owners)  # a 0 stands behind the last piece
        table = [[*own, *[none] * (longest - len(own))] for own in pieces]
        self._pieces = torch.tensor(table, device=self.grads.device)

    @torch.no_grad()
    def norms(self) -> Tensor:
        """Return the L2 norm of each module's gradient, (modules,) in the order of `modules`. Stays on the device."""
        pieces = [torch.linalg.vector_norm(group.grads, dim=(1, 2)) for group in self.muon_groups]
        pieces += [torch.stack([flat_norm(run) for run in self._runs]), self.grads.new_zeros(1)]
        return torch.linalg.vector_norm(torch.cat(pieces)[self._pieces], dim=1)

    @torch.no_grad()
    def clip(self) -> Tensor:
        """Scale the gradient down to a norm of at most grad_clip. Returns its L2 norm before, on the device."""
        norm = flat_norm(self.grads)
        if self.cfg.grad_clip > 0:
            self.grads.mul_((self.cfg.grad_clip / (norm + 1e-6)).clamp_(max=1.0))
        return norm

    @torch.no_grad()
    def step(self, factor: float, momentum: float | None = None) -> None:
        """Make one update with every lr times `factor`; leaves the gradients as they are. All ranks must call it.

        momentum: Muon's in this step; None: train.muon.momentum.
        """
        self.steps += 1
        beta = self.cfg.muon.momentum if momentum is None else momentum
        coming: list[tuple[MuonGroup, Tensor, dist.Work]] = []  # gathered while the next group is computed
        for group in self.muon_groups:
            update = group.update(beta)
            if self.world == 1:
                group.apply(update, factor)
            else:
                coming.append((group, *group.gather(update)))
        for adamw_group in self.adamw_groups:
            adamw_group.step(factor)
        for group, updates, message in coming:
            message.wait()
            group.apply(updates, factor)

    @torch.no_grad()
    def state_tensors(self) -> dict[str, Tensor]:
        """Return all state by parameter name, for a checkpoint. All ranks must call it; each gets everything.

        Most are views of what the next step changes. Momentum is stored wide: a tall matrix's transposed.
        """
        tensors = self._own_state()
        if self.world > 1:
            for group in self.muon_groups:
                tensors |= group.gathered_state()
        return tensors

    @torch.no_grad()
    def load(self, tensors: dict[str, Tensor], steps: int) -> None:
        """Put back what `state_tensors` gave, at any number of ranks. Raises KeyError when one is missing."""
        for name, tensor in self._own_state().items():
            tensor.copy_(tensors[name])
        for group in self.adamw_groups:
            group.steps.fill_(steps)
        self.steps = steps

    @contextlib.contextmanager
    def undone(self) -> Iterator[None]:
        """Let steps be made, and have weights and state as before afterwards, to the bit. Copies are on the host."""
        live = {"weights": self.weights, **self._own_state()}
        kept = {name: tensor.to("cpu", copy=True) for name, tensor in live.items()}
        steps = self.steps
        try:
            yield
        finally:
            with torch.no_grad():
                self.weights.copy_(kept["weights"])
                self.load(kept, steps)
                self.grads_and_loss.zero_()

    def _own_state(self) -> dict[str, Tensor]:
        """Return this rank's state by name, as views."""
        groups: list[MuonGroup | AdamWGroup] = [*self.muon_groups, *self.adamw_groups]
        return {name: tensor for group in groups for name, tensor in group.state()}


def flat_norm(values: Tensor) -> Tensor:
    """Return the L2 norm of flat `values`, fp32, as a scalar on their device.

    On a CPU torch adds up squares in a few fp32 sums, however many there are: a thread's norm of 4 million normal
    values is 0.009 % low, of 54.5 million 0.42 %. So more than NORM_PIECE are taken in pieces, in the same time.
    """
    if values.is_cuda or len(values) <= NORM_PIECE:
        return values.norm()
    return torch.stack([piece.norm() for piece in values.split(NORM_PIECE)]).norm()


def module_of(name: str) -> str:
    """Return what a parameter is counted with: its block, and outside the blocks its first name."""
    return ".".join(name.split(".")[: 2 if name.startswith("blocks.") else 1])


def group_of(name: str, parameter: Tensor) -> str:
    """Return what a parameter is trained as: `matrices`, which are Muon's, one of train.groups, or "": none of them."""
    first, last = name.split(".")[0], name.split(".")[-1]
    if first in ("memory", "mtp"):
        return first
    if first == "engram":
        return ""
    if last == "weight" and parameter.ndim == 2:
        if first == "blocks" or name == "bigram.proj.weight":
            return "matrices"
        return "tokens" if first in ("embed", "bigram") else ""
    return "scalars"


def decays(name: str, parameter: Tensor) -> bool:
    """Return whether AdamW's weight decay acts on a parameter whose group says nothing of it.

    On matrices it does, but not on the engram's: a slot that no text reads should keep its value.
    """
    return parameter.ndim >= 2 and not name.startswith("engram.") and group_of(name, parameter) != "scalars"


def _group_names(
    parameters: dict[str, nn.Parameter], cfg: TrainConfig
) -> tuple[list[list[str]], list[tuple[list[str], AdamWConfig, bool]]]:
    """Return names of Muon's matrices by shape, the largest group first, and of AdamW's with their rate and decay.

    The last of AdamW's values says whether they are held in bfloat16.
    """
    by_shape: dict[torch.Size, list[str]] = {}
    by_rule: dict[tuple[str, bool], list[str]] = {("", True): [], ("", False): []}
    for name, parameter in parameters.items():
        group = group_of(name, parameter)
        if group == "matrices" and cfg.optimizer == "muon":
            by_shape.setdefault(parameter.shape, []).append(name)
            continue
        own = getattr(cfg.groups, group, GroupConfig())
        by_rule.setdefault(("" if own == GroupConfig() else group, decays(name, parameter)), []).append(name)
    largest_first = sorted(by_shape.values(), key=lambda names: -len(names) * parameters[names[0]].numel())
    return largest_first, [(names, *_rule(cfg, *key)) for key, names in by_rule.items() if names]


def _rule(cfg: TrainConfig, group: str, is_decayed: bool) -> tuple[AdamWConfig, bool]:
    """Return AdamW's keys, and whether in bfloat16, of `group`, or of none, "", that decays by default or does not."""
    own = getattr(cfg.groups, group, GroupConfig())
    lr = cfg.adamw.lr if own.lr is None else own.lr
    by_default = cfg.adamw.weight_decay if is_decayed else 0.0
    weight_decay = by_default if own.weight_decay is None else own.weight_decay
    return dataclasses.replace(cfg.adamw, lr=lr, weight_decay=weight_decay), own.bfloat16
